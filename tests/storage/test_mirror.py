"""The mirror's thread: when it sends, how long callers wait, and how it handles failures."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tune_rescon.storage import Discard, Mirror, Pace, RemoteError, RemoteFolder, Sender, SupersededError

FAST = Pace(interval=0.05, rest=0.0, flush_timeout=30.0, first_pause=0.01, longest_pause=0.02)


class FakeSender(Sender):
    """Records its calls instead of sending; fails or blocks on request."""

    def __init__(self, remote: RemoteFolder) -> None:
        super().__init__(remote, term=1, databases={}, files={})
        self.events: list[str] = []
        self.times: list[float] = []
        self.error: Exception | None = None
        self.seconds = 0.0
        self.unblocked = threading.Event()
        self.unblocked.set()

    def send(self) -> None:
        self.unblocked.wait()
        self.times.append(time.monotonic())
        if self.error is not None:
            raise self.error
        time.sleep(self.seconds)
        self.events.append("sent")

    def discard(self, discards: Iterable[Discard]) -> None:
        self.events += [f"discarded {discard.folder}" for discard in discards]


@pytest.fixture
def sender(memory: RemoteFolder) -> Iterator[FakeSender]:
    sender = FakeSender(memory)
    yield sender
    sender.unblocked.set()


def start_mirror(sender: FakeSender, pace: Pace = FAST) -> Mirror:
    mirror = Mirror(sender, pace)
    mirror.start()
    return mirror


def test_flush_returns_after_the_changes_are_sent(sender: FakeSender) -> None:
    mirror = start_mirror(sender, Pace(interval=60, rest=0.0, flush_timeout=30.0))
    assert mirror.flush()
    assert sender.events == ["sent"]
    assert mirror.flush()
    assert sender.events == ["sent", "sent"]
    assert mirror.close(30) == 0


def test_changes_are_batched_and_rate_limited(sender: FakeSender) -> None:
    mirror = start_mirror(sender)
    assert mirror.flush()
    start = time.monotonic()
    for _ in range(20):
        mirror.changed()
        time.sleep(0.01)
    wait_until(lambda: len(sender.times) > 1)
    pauses = [
        later - sooner_than_the_rest for sooner_than_the_rest, later in itertools.pairwise(sender.times)
    ]
    assert 1 <= len(pauses) <= 1 + (time.monotonic() - start) / FAST.interval
    assert min(pauses) >= FAST.interval
    assert mirror.close(30) == 0


def test_flush_waits_for_a_hanging_url_only_until_its_timeout(sender: FakeSender) -> None:
    mirror = start_mirror(sender, Pace(interval=60, flush_timeout=0.1))
    sender.unblocked.clear()
    start = time.monotonic()
    assert not mirror.flush()
    assert 0.1 <= time.monotonic() - start < 30
    sender.unblocked.set()
    assert mirror.close(30) == 0


def test_flush_does_not_wait_for_a_failing_url(sender: FakeSender) -> None:
    mirror = start_mirror(sender, Pace(interval=60, flush_timeout=60, first_pause=60))
    sender.error = RemoteError("down")
    start = time.monotonic()
    assert not mirror.flush()
    assert not mirror.flush()
    assert time.monotonic() - start < 30
    assert len(sender.times) == 1
    assert mirror.close(0) == 3


def test_failed_changes_are_sent_when_the_url_is_back(
    sender: FakeSender, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = start_mirror(sender)
    sender.error = RemoteError("503 Slow Down")
    with caplog.at_level(logging.WARNING):
        assert not mirror.flush()
        wait_until(lambda: len(sender.times) >= 4)
    assert "the storage is behind; next try in 0.0 s: 503 Slow Down" in caplog.text
    sender.error = None
    assert mirror.close(30) == 0
    assert sender.events


def test_slow_copies_are_made_less_often_and_do_not_block_flush(sender: FakeSender) -> None:
    sender.seconds = 0.1
    mirror = start_mirror(sender, Pace(interval=0.01, rest=600, flush_timeout=30.0))
    assert mirror.flush()
    start = time.monotonic()
    assert not mirror.flush()
    mirror.changed()
    assert time.monotonic() - start < 30
    time.sleep(0.05)
    assert sender.events == ["sent"]
    assert mirror.close(30) == 0
    assert sender.events == ["sent", "sent"]


def test_changes_missing_at_the_end_are_counted(sender: FakeSender) -> None:
    mirror = start_mirror(sender)
    assert mirror.flush()
    sender.error = OSError("no space left on device")
    mirror.changed()
    mirror.changed()
    start = time.monotonic()
    # Closing sends the last files of the search.
    assert mirror.close(0.2) == 3
    assert time.monotonic() - start < 30


def test_remote_files_are_deleted_only_after_a_later_copy(sender: FakeSender) -> None:
    mirror = start_mirror(sender)
    mirror.forget(Discard(folder="trial_0001", names=frozenset({"last.ckpt"})))
    mirror.changed()
    wait_until(lambda: sender.events != [])
    # The first copy may be older than the end of the trial.
    assert sender.events == ["sent"]
    sender.error = RemoteError("down")
    assert not mirror.flush()
    assert sender.events == ["sent"]
    sender.error = None
    assert mirror.close(30) == 0
    assert sender.events[:3] == ["sent", "sent", "discarded trial_0001"]
    assert sender.events.count("discarded trial_0001") == 1


def test_a_superseded_run_stops_trying_and_reports_it(
    sender: FakeSender, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = start_mirror(sender)
    sender.error = SupersededError("a later run writes there")
    with caplog.at_level(logging.ERROR):
        assert not mirror.flush()
        assert mirror.close(30) == 2
    assert len(sender.times) == 1
    assert "nothing more is sent to the storage: a later run writes there" in caplog.text


def test_closing_twice_counts_changes_once(sender: FakeSender) -> None:
    mirror = start_mirror(sender, Pace(interval=60, flush_timeout=30.0, first_pause=60))
    sender.error = RemoteError("down")
    assert not mirror.flush()
    assert mirror.close(0) == mirror.close(0) == 2


def test_an_abandoned_url_is_not_changed(sender: FakeSender) -> None:
    mirror = start_mirror(sender, Pace(interval=60, flush_timeout=30.0))
    assert mirror.flush()
    mirror.changed()
    mirror.abandon()
    assert mirror.close(30) == 0
    assert sender.events == ["sent"]


def test_the_last_files_are_sent_at_the_end(memory: RemoteFolder, tmp_path: Path) -> None:
    table = tmp_path / "trials.csv"
    mirror = Mirror(Sender(memory, term=1, databases={}, files={"trials.csv": table}), FAST)
    mirror.start()
    assert mirror.flush()
    table.write_text("trial,state\n")
    assert mirror.close(30) == 0
    assert memory.read("trials.csv") == b"trial,state\n"

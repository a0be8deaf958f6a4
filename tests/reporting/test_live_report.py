"""The page of a running search: when it is written, and that its failures do not disturb the search."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tune_rescon.reporting import LiveReport
from tune_rescon.tuning import Decision, StudyResult, TrialRecord, Verdict

MakeTrial = Callable[..., TrialRecord]
MakeResult = Callable[..., StudyResult]

CONTINUE = Verdict(decision=Decision.CONTINUE)


@dataclass
class FakeDisk:
    """Stores pages once ``ready`` is set, and the names of the threads that wrote them."""

    pages: list[StudyResult] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    ready: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def write(self, result: StudyResult, path: Path) -> None:
        assert path.name == "report.html"
        self.ready.wait(30)
        self.threads.add(threading.current_thread().name)
        if self.error is not None:
            raise self.error
        self.pages.append(result)


@dataclass
class LiveReportOnFakeClock:
    report: LiveReport
    disk: FakeDisk
    now: list[float]
    trial: TrialRecord

    def epoch(self, *, after: float) -> None:
        self.now[0] += after
        self.report.on_epoch(self.trial, {}, CONTINUE)


@contextmanager
def live_report(
    make_result: MakeResult, make_trial: MakeTrial, snapshot: Callable[[], StudyResult] | None = None
) -> Iterator[LiveReportOnFakeClock]:
    disk, now = FakeDisk(), [0.0]
    report = LiveReport(
        snapshot or make_result, disk.write, Path("report.html"), interval=60.0, clock=lambda: now[0]
    )
    yield LiveReportOnFakeClock(report, disk, now, make_trial(0))
    disk.ready.set()
    assert report.close(30)


def test_the_page_is_written_once_a_minute(make_result: MakeResult, make_trial: MakeTrial) -> None:
    with live_report(make_result, make_trial) as search:
        search.disk.ready.set()
        for _ in range(10):
            search.epoch(after=20.0)
            _wait_for_write(search.report)
    # At 20, 80, 140 and 200 seconds.
    assert len(search.disk.pages) == 4
    assert search.disk.threads == {"report"}


def _wait_for_write(report: LiveReport) -> None:
    thread = report._thread
    if thread is not None:
        thread.join(30)


def test_a_slow_disk_delays_no_trial_and_gets_one_page_at_a_time(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    with live_report(make_result, make_trial) as search:
        for _ in range(5):
            search.epoch(after=100.0)
        assert search.disk.pages == []
        assert not search.report.close(0.0)
    assert len(search.disk.pages) == 1


def test_a_write_error_is_logged_and_the_next_page_is_written(
    make_result: MakeResult, make_trial: MakeTrial, caplog: pytest.LogCaptureFixture
) -> None:
    with live_report(make_result, make_trial) as search:
        search.disk.ready.set()
        search.disk.error = OSError(28, "No space left on device")
        search.epoch(after=1.0)
        _wait_for_write(search.report)
        search.disk.error = None
        search.epoch(after=60.0)
    assert len(search.disk.pages) == 1
    assert "report.html could not be written" in caplog.text
    assert "No space left on device" in caplog.text


def test_the_search_continues_if_the_page_cannot_be_rendered(
    make_result: MakeResult, make_trial: MakeTrial, caplog: pytest.LogCaptureFixture
) -> None:
    def raise_error() -> StudyResult:
        raise ValueError("no such preset")

    with live_report(make_result, make_trial, raise_error) as search:
        search.epoch(after=1.0)
    assert "no such preset" in caplog.text


def test_the_snapshot_is_taken_on_the_searchs_thread(make_result: MakeResult, make_trial: MakeTrial) -> None:
    threads = []

    def snapshot() -> StudyResult:
        threads.append(threading.current_thread())
        return make_result()

    with live_report(make_result, make_trial, snapshot) as search:
        search.report.on_trial_start(search.trial)
    assert threads == [threading.current_thread()]


def test_nothing_is_written_after_close(make_result: MakeResult, make_trial: MakeTrial) -> None:
    with live_report(make_result, make_trial) as search:
        search.disk.ready.set()
        search.report.close()
        search.report.on_trial_end(search.trial)
    assert search.disk.pages == []

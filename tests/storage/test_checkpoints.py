"""A trial's checkpoints between its node and the URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune_rescon.storage import CheckpointMirror, RemoteError, RemoteFolder

NAMES = ("best.ckpt", "last.ckpt")


def epochs(folder: Path) -> int:
    """A checkpoint here is its number of epochs."""
    last = folder / "last.ckpt"
    return int(last.read_text()) if last.exists() else 0


class Node:
    """A node's copy of one trial."""

    def __init__(self, path: Path, remote: RemoteFolder) -> None:
        self.notes: list[str] = []
        self.mirror = CheckpointMirror(
            local=path, remote=remote, names=NAMES, note=self.notes.append, timeout=0.05, pause=0.01
        )
        self.path = path

    def train(self, epoch: int) -> None:
        self.path.mkdir(exist_ok=True)
        (self.path / "best.ckpt").write_text(f"network {epoch}")
        (self.path / "last.ckpt").write_text(str(epoch))


@pytest.fixture
def here(tmp_path: Path, memory: RemoteFolder) -> Node:
    return Node(tmp_path / "here", memory)


@pytest.fixture
def there(tmp_path: Path, memory: RemoteFolder) -> Node:
    return Node(tmp_path / "there", memory)


@pytest.fixture
def out_of_order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls that fail while their name is in the list."""
    failing: list[str] = []

    def guarded(name: str) -> None:
        whole = getattr(RemoteFolder, name)

        def call(self: RemoteFolder, *arguments: object) -> object:
            if name in failing:
                raise RemoteError("503 Slow Down")
            return whole(self, *arguments)

        monkeypatch.setattr(RemoteFolder, name, call)

    guarded("upload")
    guarded("download")
    return failing


def test_a_trial_resumes_from_another_nodes_files(here: Node, there: Node) -> None:
    here.train(3)
    here.mirror.send()
    there.mirror.fetch(epochs)
    assert epochs(there.path) == 3
    assert (there.path / "best.ckpt").read_text() == "network 3"
    assert there.mirror.url("best.ckpt") == f"{there.mirror.remote.url}/best.ckpt"
    assert sorted(path.name for path in there.path.parent.iterdir()) == ["here", "there"]


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1]])
def test_a_copy_interrupted_by_a_kill_is_fetched_again(
    names: tuple[str, ...], here: Node, there: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(folder: Path) -> int:
        last = folder / names[-1]
        return int(last.read_text().removeprefix("network ")) if last.exists() else 0

    here.mirror.names = there.mirror.names = names
    here.train(3)
    here.mirror.send()
    there.train(2)
    replace = Path.replace

    def killed(path: Path, target: Path) -> Path:
        monkeypatch.undo()
        replace(path, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)

    def download(_remote: RemoteFolder, name: str, target: Path) -> bool:
        return bool(target.write_bytes((here.path / name).read_bytes()))

    # A real download replaces its target.
    monkeypatch.setattr(RemoteFolder, "download", download)
    with pytest.raises(KeyboardInterrupt):
        there.mirror.fetch(progress)
    there.mirror.fetch(progress)
    assert (there.path / "best.ckpt").read_text() == "network 3"
    assert (there.path / "last.ckpt").read_text() == "3"


@pytest.mark.parametrize(
    ("local", "at_url", "expected"), [(0, 0, 0), (2, 0, 2), (0, 2, 2), (3, 2, 3), (2, 3, 3), (2, 2, 2)]
)
def test_the_copy_with_more_epochs_is_used(
    local: int, at_url: int, expected: int, here: Node, there: Node
) -> None:
    if at_url:
        there.train(at_url)
        there.mirror.send()
    if local:
        here.train(local)
    here.mirror.fetch(epochs)
    assert epochs(here.path) == expected
    assert not here.notes


def test_unchanged_files_are_not_sent_again(here: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    def upload(self: RemoteFolder, source: Path, name: str) -> None:
        assert source == here.path / name
        sent.append(self.url + name)

    monkeypatch.setattr(RemoteFolder, "upload", upload)
    here.train(1)
    here.mirror.send()
    (here.path / "last.ckpt").write_text("the second epoch is no better")
    here.mirror.send()
    here.mirror.send()
    best, last = (here.mirror.remote.url + name for name in NAMES)
    assert sent == [best, last, last]


def test_a_failed_upload_is_reported_once_and_retried_later(here: Node, out_of_order: list[str]) -> None:
    out_of_order.append("upload")
    for epoch in (1, 2):
        here.train(epoch)
        here.mirror.send()
    assert here.notes == ["checkpoints are not in the storage yet: 503 Slow Down"]
    assert here.mirror.url("best.ckpt") is None
    out_of_order.clear()
    here.train(3)
    here.mirror.send()
    assert here.mirror.remote.read("last.ckpt") == b"3"
    assert len(here.notes) == 1
    out_of_order.append("upload")
    here.train(4)
    here.mirror.send()
    assert len(here.notes) == 2


def test_local_files_are_deleted_only_after_they_were_uploaded(here: Node, out_of_order: list[str]) -> None:
    out_of_order.append("upload")
    here.train(1)
    here.mirror.release()
    assert epochs(here.path) == 1
    assert not here.notes
    out_of_order.clear()
    here.mirror.release()
    assert not here.path.exists()
    assert here.mirror.remote.names() == ["best.ckpt", "last.ckpt"]


def test_an_unreadable_url_restarts_the_trial_without_failing_it(
    here: Node, there: Node, out_of_order: list[str]
) -> None:
    here.train(2)
    here.mirror.send()
    out_of_order.append("download")
    there.mirror.fetch(epochs)
    assert epochs(there.path) == 0
    assert there.notes == ["the storage does not answer: 503 Slow Down"]


def test_the_last_upload_is_retried_until_the_timeout(
    here: Node, out_of_order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_order.append("upload")
    here.train(1)
    here.mirror.send(insist=True)
    assert here.notes == ["the storage does not answer: 503 Slow Down"]

    monkeypatch.setattr(here.mirror, "timeout", 60)
    monkeypatch.setattr("time.sleep", lambda _: out_of_order.clear())
    here.mirror.send(insist=True)
    assert here.mirror.remote.read("last.ckpt") == b"1"
    assert len(here.notes) == 1

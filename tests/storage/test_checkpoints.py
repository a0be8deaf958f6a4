"""A trial's checkpoints between its node and the URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune_rescon.storage import CheckpointMirror, RemoteError, RemoteFolder

NAMES = ("best.ckpt", "last.ckpt")


def stored_epochs(folder: Path) -> int:
    """Return the number of epochs, which is the whole content of these checkpoints."""
    last = folder / "last.ckpt"
    return int(last.read_text()) if last.exists() else 0


class Node:
    """A node with a local copy of one trial."""

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
def node(tmp_path: Path, memory: RemoteFolder) -> Node:
    return Node(tmp_path / "here", memory)


@pytest.fixture
def other_node(tmp_path: Path, memory: RemoteFolder) -> Node:
    return Node(tmp_path / "there", memory)


@pytest.fixture
def failing_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the calls that fail now."""
    failing_names: list[str] = []

    def make_fallible(name: str) -> None:
        original = getattr(RemoteFolder, name)

        def call(self: RemoteFolder, *arguments: object) -> object:
            if name in failing_names:
                raise RemoteError("503 Slow Down")
            return original(self, *arguments)

        monkeypatch.setattr(RemoteFolder, name, call)

    make_fallible("upload")
    make_fallible("download")
    return failing_names


def test_a_trial_resumes_from_another_nodes_files(node: Node, other_node: Node) -> None:
    node.train(3)
    node.mirror.send()
    other_node.mirror.fetch(stored_epochs)
    assert stored_epochs(other_node.path) == 3
    assert (other_node.path / "best.ckpt").read_text() == "network 3"
    assert other_node.mirror.url("best.ckpt") == f"{other_node.mirror.remote.url}/best.ckpt"
    assert sorted(path.name for path in other_node.path.parent.iterdir()) == ["here", "there"]


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1]])
def test_a_copy_interrupted_by_a_kill_is_fetched_again(
    names: tuple[str, ...], node: Node, other_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(folder: Path) -> int:
        last = folder / names[-1]
        return int(last.read_text().removeprefix("network ")) if last.exists() else 0

    node.mirror.names = other_node.mirror.names = names
    node.train(3)
    node.mirror.send()
    other_node.train(2)
    replace = Path.replace

    def killed(path: Path, target: Path) -> Path:
        monkeypatch.undo()
        replace(path, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)

    def download(_remote: RemoteFolder, name: str, target: Path) -> bool:
        return bool(target.write_bytes((node.path / name).read_bytes()))

    # A real download replaces its target.
    monkeypatch.setattr(RemoteFolder, "download", download)
    with pytest.raises(KeyboardInterrupt):
        other_node.mirror.fetch(progress)
    other_node.mirror.fetch(progress)
    assert (other_node.path / "best.ckpt").read_text() == "network 3"
    assert (other_node.path / "last.ckpt").read_text() == "3"


@pytest.mark.parametrize(
    ("local", "at_url", "expected"), [(0, 0, 0), (2, 0, 2), (0, 2, 2), (3, 2, 3), (2, 3, 3), (2, 2, 2)]
)
def test_the_copy_with_more_epochs_is_used(
    local: int, at_url: int, expected: int, node: Node, other_node: Node
) -> None:
    if at_url:
        other_node.train(at_url)
        other_node.mirror.send()
    if local:
        node.train(local)
    node.mirror.fetch(stored_epochs)
    assert stored_epochs(node.path) == expected
    assert not node.notes


def test_unchanged_files_are_not_sent_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    def upload(self: RemoteFolder, source: Path, name: str) -> None:
        assert source == node.path / name
        sent.append(self.url + name)

    monkeypatch.setattr(RemoteFolder, "upload", upload)
    node.train(1)
    node.mirror.send()
    (node.path / "last.ckpt").write_text("the second epoch is no better")
    node.mirror.send()
    node.mirror.send()
    best, last = (node.mirror.remote.url + name for name in NAMES)
    assert sent == [best, last, last]


def test_a_failed_upload_is_reported_once_and_retried_later(node: Node, failing_calls: list[str]) -> None:
    failing_calls.append("upload")
    for epoch in (1, 2):
        node.train(epoch)
        node.mirror.send()
    assert node.notes == ["checkpoints are not in the storage yet: 503 Slow Down"]
    assert node.mirror.url("best.ckpt") is None
    failing_calls.clear()
    node.train(3)
    node.mirror.send()
    assert node.mirror.remote.read("last.ckpt") == b"3"
    assert len(node.notes) == 1
    failing_calls.append("upload")
    node.train(4)
    node.mirror.send()
    assert len(node.notes) == 2


def test_local_files_are_deleted_only_after_they_were_uploaded(node: Node, failing_calls: list[str]) -> None:
    failing_calls.append("upload")
    node.train(1)
    node.mirror.release()
    assert stored_epochs(node.path) == 1
    assert not node.notes
    failing_calls.clear()
    node.mirror.release()
    assert not node.path.exists()
    assert node.mirror.remote.names() == ["best.ckpt", "last.ckpt"]


def test_an_unreadable_url_restarts_the_trial_without_failing_it(
    node: Node, other_node: Node, failing_calls: list[str]
) -> None:
    node.train(2)
    node.mirror.send()
    failing_calls.append("download")
    other_node.mirror.fetch(stored_epochs)
    assert stored_epochs(other_node.path) == 0
    assert other_node.notes == ["the storage does not answer: 503 Slow Down"]


def test_the_last_upload_is_retried_until_the_timeout(
    node: Node, failing_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_calls.append("upload")
    node.train(1)
    node.mirror.send(retry=True)
    assert node.notes == ["the storage does not answer: 503 Slow Down"]

    monkeypatch.setattr(node.mirror, "timeout", 60)
    monkeypatch.setattr("time.sleep", lambda _: failing_calls.clear())
    node.mirror.send(retry=True)
    assert node.mirror.remote.read("last.ckpt") == b"1"
    assert len(node.notes) == 1

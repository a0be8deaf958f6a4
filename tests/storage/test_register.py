"""A value that several processes may change: no change is lost, and no unread value is replaced."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tune_rescon.storage import RemoteError, RemoteFolder, SharedValue

ON_S3 = pytest.mark.parametrize("remote", [pytest.param("s3", marks=pytest.mark.s3)], indirect=True)


def test_a_shared_value_is_the_last_one_written(remote: RemoteFolder) -> None:
    first, second = SharedValue(remote.folder("lease")), SharedValue(remote.folder("lease"))
    assert first.read() is None
    assert first.replace(None, {"who": 1})
    assert remote.names() == ["lease/0000000001.json"]
    assert first.replace({"who": 1}, {"who": 1, "beat": 2})
    assert second.read() == {"who": 1, "beat": 2}
    assert remote.names() == ["lease/0000000002.json"]


def test_replace_succeeds_only_after_reading_the_current_value(remote: RemoteFolder) -> None:
    first, second = SharedValue(remote), SharedValue(remote)
    assert first.read() is None
    assert second.read() is None
    assert first.replace(None, {"who": 1})
    assert not second.replace(None, {"who": 2})
    assert first.read() == second.read() == {"who": 1}
    assert second.replace({"who": 1}, {"who": 2})
    assert first.read() == {"who": 2}


@pytest.mark.parametrize("other_writes", [1, 4])
def test_a_delayed_write_does_not_replace_a_newer_value(
    remote: RemoteFolder, monkeypatch: pytest.MonkeyPatch, other_writes: int
) -> None:
    fast_writer = SharedValue(remote)
    slow_remote = remote.folder("")
    original_create = slow_remote.create

    def create_late(name: str, data: bytes) -> bool:
        # After several changes the number is free again: the other writers have deleted old versions.
        for count in range(other_writes):
            assert fast_writer.replace({"count": count - 1} if count else None, {"count": count})
        return original_create(name, data)

    monkeypatch.setattr(slow_remote, "create", create_late)
    assert not SharedValue(slow_remote).replace(None, {"who": "late"})
    assert fast_writer.read() == {"count": other_writes - 1}
    assert remote.names() == [f"{other_writes:010d}.json"]


def test_old_versions_left_by_a_dead_writer_are_deleted(remote: RemoteFolder) -> None:
    for version in (1, 2, 3):
        remote.write(f"{version:010d}.json", b'"old"')
    value = SharedValue(remote)
    assert value.replace(value.read(), {"who": "new"})
    assert remote.names() == ["0000000004.json"]


@ON_S3
def test_concurrent_updates_are_never_lost(remote: RemoteFolder) -> None:
    def count(writer: int) -> int:
        value, replaced, attempts = SharedValue(remote), 0, 0
        while replaced < 3:
            attempts += 1
            before = value.read()
            total = before["n"] if before else 0
            replaced += value.replace(before, {"who": writer, "mine": replaced, "n": total + 1})
        return attempts

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(count, range(3))) >= 9
    last = SharedValue(remote).read()
    assert last is not None
    assert last["n"] == int(remote.names()[0].partition(".")[0]) >= 9


def test_a_value_being_written_is_a_remote_error(remote: RemoteFolder) -> None:
    remote.write("0000000001.json", b"")
    with pytest.raises(RemoteError, match="is being written"):
        SharedValue(remote).read()

"""A value that several processes may change: no change is lost, and no unread value is replaced."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tune_rescon.storage import RemoteError, RemoteFolder, SharedValue

ON_S3 = pytest.mark.parametrize("remote", [pytest.param("s3", marks=pytest.mark.s3)], indirect=True)


def test_a_shared_value_is_the_last_one_written(remote: RemoteFolder) -> None:
    one, two = SharedValue(remote.folder("lease")), SharedValue(remote.folder("lease"))
    assert one.read() is None
    assert one.replace(None, {"who": 1})
    assert remote.names() == ["lease/0000000001.json"]
    assert one.replace({"who": 1}, {"who": 1, "beat": 2})
    assert two.read() == {"who": 1, "beat": 2}
    assert remote.names() == ["lease/0000000002.json"]


def test_replace_succeeds_only_after_reading_the_current_value(remote: RemoteFolder) -> None:
    one, two = SharedValue(remote), SharedValue(remote)
    assert one.read() is None
    assert two.read() is None
    assert one.replace(None, {"who": 1})
    assert not two.replace(None, {"who": 2})
    assert one.read() == two.read() == {"who": 1}
    assert two.replace({"who": 1}, {"who": 2})
    assert one.read() == {"who": 2}


@pytest.mark.parametrize("others", [1, 4])
def test_a_delayed_write_does_not_replace_a_newer_value(
    remote: RemoteFolder, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    quick = SharedValue(remote)
    slow = remote.folder("")
    create = slow.create

    def create_late(name: str, data: bytes) -> bool:
        # After several changes, the number is free again, because the others have cleared up.
        for count in range(others):
            assert quick.replace({"count": count - 1} if count else None, {"count": count})
        return create(name, data)

    monkeypatch.setattr(slow, "create", create_late)
    assert not SharedValue(slow).replace(None, {"who": "late"})
    assert quick.read() == {"count": others - 1}
    assert remote.names() == [f"{others:010d}.json"]


def test_old_versions_left_by_a_dead_writer_are_deleted(remote: RemoteFolder) -> None:
    for version in (1, 2, 3):
        remote.write(f"{version:010d}.json", b'"old"')
    value = SharedValue(remote)
    assert value.replace(value.read(), {"who": "new"})
    assert remote.names() == ["0000000004.json"]


@ON_S3
def test_concurrent_updates_are_never_lost(remote: RemoteFolder) -> None:
    def count(who: int) -> int:
        value, done, tries = SharedValue(remote), 0, 0
        while done < 3:
            tries += 1
            before = value.read()
            total = before["n"] if before else 0
            done += value.replace(before, {"who": who, "mine": done, "n": total + 1})
        return tries

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(count, range(3))) >= 9
    last = SharedValue(remote).read()
    assert last is not None
    assert last["n"] == int(remote.names()[0].partition(".")[0]) >= 9


def test_a_value_being_written_is_a_remote_error(remote: RemoteFolder) -> None:
    remote.write("0000000001.json", b"")
    with pytest.raises(RemoteError, match="is being written"):
        SharedValue(remote).read()

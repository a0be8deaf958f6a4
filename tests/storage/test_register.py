"""A value that several processes may change: no change is lost, and no unread value is replaced."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tune_rescon.storage import Register, RegisterEntry, RemoteError, RemoteFolder, SharedValue

ON_S3 = pytest.mark.parametrize("remote", [pytest.param("s3", marks=pytest.mark.s3)], indirect=True)


def test_a_value_is_replaced_only_by_a_process_that_has_seen_it(remote: RemoteFolder) -> None:
    register = Register(remote.folder("lease"))
    assert register.read() is None
    assert register.replace(0, b"a")
    assert not register.replace(0, b"b")
    assert register.read() == RegisterEntry(version=1, data=b"a")
    assert register.replace(1, b"c")
    assert register.read() == RegisterEntry(version=2, data=b"c")
    assert remote.names() == ["lease/0000000002.json"]


def test_a_process_that_slept_does_not_win(remote: RemoteFolder) -> None:
    register = Register(remote)
    for version in range(4):
        assert register.replace(version, f"{version}".encode())
    # Its number is free again, for the others have cleared up.
    assert not register.replace(1, b"late")
    assert register.read() == RegisterEntry(version=4, data=b"3")
    assert remote.names() == ["0000000004.json"]


def test_a_writer_that_died_before_it_cleared_up_is_cleared_up_after(remote: RemoteFolder) -> None:
    register = Register(remote)
    for version in (1, 2, 3):
        remote.write(f"{version:010d}.json", b"old")
    assert register.replace(3, b"new")
    assert remote.names() == ["0000000004.json"]


@ON_S3
def test_each_value_is_made_from_the_one_before(remote: RemoteFolder) -> None:
    def count(who: int) -> None:
        register, done = Register(remote), 0
        while done < 3:
            entry = register.read()
            version, total = (entry.version, json.loads(entry.data)["n"]) if entry else (0, 0)
            value = {"who": who, "mine": done, "n": total + 1}
            done += register.replace(version, json.dumps(value).encode())

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(count, range(3)))
    entry = Register(remote).read()
    assert entry is not None
    assert entry.version >= 9
    assert json.loads(entry.data)["n"] == entry.version


def test_a_shared_value_is_the_last_one_written(remote: RemoteFolder) -> None:
    one, two = SharedValue(remote), SharedValue(remote)
    assert one.read() is None
    assert one.replace(None, {"who": 1})
    assert one.replace({"who": 1}, {"who": 1, "beat": 2})
    assert two.read() == {"who": 1, "beat": 2}


def test_a_shared_value_is_replaced_only_by_a_process_that_has_seen_it(remote: RemoteFolder) -> None:
    one, two = SharedValue(remote), SharedValue(remote)
    assert one.read() is None
    assert two.read() is None
    assert one.replace(None, {"who": 1})
    assert not two.replace(None, {"who": 2})
    assert one.read() == two.read() == {"who": 1}
    assert two.replace({"who": 1}, {"who": 2})
    assert one.read() == {"who": 2}


def test_a_value_that_is_being_written_does_not_exist_yet(remote: RemoteFolder) -> None:
    remote.write("0000000001.json", b"")
    with pytest.raises(RemoteError, match="is being written"):
        SharedValue(remote).read()

"""Zip archives with unusual names, links, compression methods, and false or excessive sizes."""

from __future__ import annotations

import io
import os
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from tune_rescon.data import zip_archive
from tune_rescon.data.decode import BadImageError, probe_size
from tune_rescon.data.image_folder import list_folder, read_bytes
from tune_rescon.data.selection import Kind
from tune_rescon.data.zip_archive import open_zip
from tune_rescon.errors import DataError

from .conftest import encoded_image, left_out_files, write_zip

CLASSES = ["a/1.png", "b/1.png"]


@pytest.mark.parametrize("pattern", ["./{}", "/{}", "a//../{}", ".//{}", "{}"])
def test_member_names_are_normalised_or_refused(pattern: str, tmp_path: Path) -> None:
    if ".." in pattern:
        path = write_zip(tmp_path / "x.zip", [pattern.format(name) for name in CLASSES])
        with pytest.raises(DataError, match=r"must lie inside it, but got 'a//\.\./a/1\.png'"):
            list_folder(path)
        return
    path = write_zip(tmp_path / "x.zip", {pattern.format(name): name.encode() for name in CLASSES})
    assert list_folder(path).names == tuple(CLASSES)
    assert read_bytes(path, "b/1.png") == b"b/1.png"


def test_backslashes_in_member_names_become_slashes(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a\\1.png": b"1", "b\\c\\2.png": b"2"})
    assert list_folder(path).names == ("a/1.png", "b/c/2.png")
    assert read_bytes(path, "b/c/2.png") == b"2"


def test_names_in_utf8_without_their_flag_are_those_of_the_folder(tmp_path: Path) -> None:
    """As macOS writes them. zipfile reads them as cp437, so that classes and their order were others."""
    names = ["Käfer/1.png", "Zaunkönig/日本.png"]
    path = write_zip(tmp_path / "x.zip", names)
    flagged = (b"PK\3\4\x14\0\0\x08", b"PK\1\2\x14\3\x14\0\0\x08")
    data = path.read_bytes()
    for start in flagged:
        assert data.count(start) == len(names)
        data = data.replace(start, start[:-1] + b"\0")
    path.write_bytes(data)
    assert list_folder(path).class_names == ("Käfer", "Zaunkönig")
    assert list_folder(path).names == tuple(names)
    assert read_bytes(path, names[1]) == names[1].encode()


def test_names_in_cp437_are_read_as_such(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", ["Kefer/1.png", "b/1.png"])
    data = path.read_bytes().replace(b"Kefer", "Käfer".encode("cp437"))
    path.write_bytes(data)
    assert list_folder(path).class_names == ("Käfer", "b")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_last_of_duplicate_entries_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, data in (
            ("a/1.png", b"old"),
            ("b/1.png", b"b"),
            ("./a/1.png", b"mid"),
            ("a/1.png", b"new"),
        ):
            archive.writestr(name, data)
    listing = list_folder(tmp_path / "x.zip")
    assert listing.names == ("a/1.png", "b/1.png")
    assert left_out_files(listing) == {Kind.REPEATED: (1, ("a/1.png",))}
    assert read_bytes(tmp_path / "x.zip", "a/1.png") == b"new"


def test_links_in_a_zip_are_skipped(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a/2.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    path = write_zip(tmp_path / "x.zip", CLASSES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "1.png")
    listing = list_folder(path)
    assert listing.names == tuple(CLASSES)
    assert left_out_files(listing) == {Kind.ZIP_LINK: (1, ("a/2.png",))}


def patch_record(path: Path, name: str, offset: int, value: bytes) -> Path:
    """Overwrite bytes of an entry's record in the central directory."""
    data = bytearray(path.read_bytes())
    start = data.rindex(name.encode()) - 46
    data[start + offset : start + offset + len(value)] = value
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("method", "message"), [(9, "deflate64"), (95, "xz"), (77, "method 77"), (99, "not be encrypted")]
)
def test_an_unsupported_compression_method_is_reported(method: int, message: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", [*CLASSES, "notes.txt"])
    patch_record(path, "notes.txt", 10, bytes([method]))
    assert list_folder(path).names == tuple(CLASSES), "the compression of other files does not matter"
    patch_record(path, "b/1.png", 10, bytes([method]))
    with pytest.raises(DataError, match=rf"b/1\.png.*{message}|{message}.*b/1\.png") as caught:
        list_folder(path)
    assert "npack it" in str(caught.value)


def test_a_member_too_large_for_memory_is_refused_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zip_archive, "largest_member", lambda: 3_000_000)
    path = write_zip(tmp_path / "x.zip", {"a/1.png": bytes(4_000_000)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"a/1\.png inflates to 4 MB, .* at most 3 MB"):
        read_bytes(path, "a/1.png")
    with pytest.raises(BadImageError, match="inflates to 4 MB"):
        probe_size(path, "a/1.png")


def test_list_folder_refuses_a_too_large_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes before the member is read, so that a dry run shows it quickly."""
    blank = bytes(4_000_000)
    path = write_zip(tmp_path / "x.zip", dict.fromkeys(CLASSES, blank), zipfile.ZIP_DEFLATED)
    assert list_folder(path).names == tuple(CLASSES), "a member of 4 MB is allowed by default"
    monkeypatch.setattr(zip_archive, "largest_member", lambda: 3_000_000)
    with pytest.raises(DataError, match=r"x\.zip.*got a/1\.png, which inflates to 4 MB.*memory") as caught:
        list_folder(path)
    assert "`--set dataset.ignore=a/1.png`" in str(caught.value)


def test_a_member_with_an_excessive_compression_ratio_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {name: bytes(1000) for name in CLASSES}, zipfile.ZIP_DEFLATED)
    patch_record(path, "a/1.png", 24, (65 << 20).to_bytes(4, "little"))
    message = "inflates to 68 MB, more than 100 times its compressed size"
    with pytest.raises(DataError, match=rf"a/1\.png, which {message}"):
        list_folder(path)
    with pytest.raises(ValueError, match=rf"a/1\.png {message}"):
        read_bytes(path, "a/1.png")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_with_a_false_size_is_not_fully_inflated(method: int, tmp_path: Path) -> None:
    size = 30_000_000
    source = io.BytesIO()
    with zipfile.ZipFile(source, "w", method) as archive, archive.open("a/1.png", "w") as member:
        for _ in range(10):
            member.write(bytes(size // 10))
    (tmp_path / "x.zip").write_bytes(source.getvalue())
    path = patch_record(tmp_path / "x.zip", "a/1.png", 24, (10).to_bytes(4, "little"))
    open_zip(path)
    tracemalloc.start()
    try:
        with pytest.raises(zipfile.BadZipFile):
            read_bytes(path, "a/1.png")
        assert tracemalloc.get_traced_memory()[1] < size // 2
    finally:
        tracemalloc.stop()


def test_an_allowed_member_is_read_completely(tmp_path: Path) -> None:
    data = os.urandom(1_500_000)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = write_zip(tmp_path / f"{method}.zip", {"a/1.png": data}, method)
        assert read_bytes(path, "a/1.png") == data
    assert zip_archive.largest_member() >= 128 << 20


def test_an_image_in_a_zip_with_odd_names_is_found(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {f"./{name}": encoded_image(1, (20, 10)) for name in CLASSES})
    assert [probe_size(path, name) for name in list_folder(path).names] == [(20, 10)] * 2


def test_a_replaced_zip_of_equal_size_and_time_is_reopened(tmp_path: Path) -> None:
    path, other = tmp_path / "x.zip", tmp_path / "y.zip"
    for archive, content in ((path, b"old"), (other, b"new")):
        write_zip(archive, {"a/1.png": content})
        os.utime(archive, ns=(0, 0))
        time.sleep(0.02)  # the kernel's clock ticks every 4 ms
    assert read_bytes(path, "a/1.png") == b"old"
    other.replace(path)
    assert read_bytes(path, "a/1.png") == b"new", "the replaced zip is still open in this process"

"""The values that ``--storage`` accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune_rescon.errors import StorageError
from tune_rescon.storage import StorageUrl, parse_storage


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs", Path("runs")),
        ("/mnt/a b/runs", Path("/mnt/a b/runs")),
        ("file:///mnt/runs", Path("/mnt/runs")),
        ("local:///mnt/runs", Path("/mnt/runs")),
        ("s3://bucket", StorageUrl(url="s3://bucket")),
        ("s3://bucket/a/b//", StorageUrl(url="s3://bucket/a/b")),
        ("gs://bucket/a", StorageUrl(url="gs://bucket/a")),
        ("1::2", Path("1::2")),
        ("~/runs", Path("~/runs").expanduser()),
        ("~x", Path("~x")),
    ],
)
def test_a_storage_is_parsed_as_directory_or_url(text: str, expected: Path | StorageUrl) -> None:
    assert parse_storage(text) == expected
    assert parse_storage(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("s3://", "s3:///", "file://", "simplecache::s3://bucket/a", "zip://x::s3://b/y"),
        *("s3:/bucket/a", "GS:bucket/a", "file:/mnt/runs", "file://localhost/mnt/runs", "file://~/runs"),
        *("local://runs", "sftp:/host/runs"),
    ],
)
def test_an_ambiguous_or_invalid_url_is_refused(text: str) -> None:
    with pytest.raises(StorageError, match=r"^--storage: "):
        parse_storage(text)

"""A search's name at a URL: reserved once, found again, released."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from tests.conftest import S3Server
from tune_rescon.errors import StorageError
from tune_rescon.storage import SearchHome, StorageUrl, usable

pytestmark = pytest.mark.s3


@pytest.fixture
def storage(s3: S3Server) -> StorageUrl:
    return StorageUrl(url=f"{s3.bucket()}/team/runs")


def create_search(storage: StorageUrl, name: str) -> SearchHome:
    home = SearchHome.create(storage, name)
    home.remote.write("space.yaml", b"version: 1")
    return home


def test_a_search_is_found_with_its_identity(storage: StorageUrl) -> None:
    created = create_search(storage, "a")
    found = SearchHome.find(storage, "a")
    assert found.identity == created.identity
    assert found.scratch(Path("/cache")) == Path("/cache/searches") / created.identity


def test_a_name_can_be_reserved_only_once(storage: StorageUrl) -> None:
    create_search(storage, "a")
    with pytest.raises(StorageError, match=r"must be free, but s3://.*/a exists\. Resume it with --resume a"):
        SearchHome.create(storage, "a")


def test_only_one_of_concurrent_searches_gets_the_name(storage: StorageUrl) -> None:
    def reserve(_: int) -> str | None:
        try:
            return SearchHome.create(storage, "a").identity
        except StorageError:
            return None

    with ThreadPoolExecutor(4) as pool:
        identities = [identity for identity in pool.map(reserve, range(4)) if identity]
    assert len(identities) == 1


def test_a_reserved_name_is_not_a_search_and_can_be_released(storage: StorageUrl) -> None:
    home = SearchHome.create(storage, "a")
    with pytest.raises(StorageError, match="It contains no search: remove it"):
        SearchHome.create(storage, "a")
    with pytest.raises(StorageError, match="There is no search there yet"):
        SearchHome.find(storage, "a")
    home.remove()
    assert create_search(storage, "a").identity != home.identity


def test_an_unknown_name_lists_the_existing_searches(storage: StorageUrl) -> None:
    for name in ("b", "a"):
        create_search(storage, name)
    with pytest.raises(StorageError) as error:
        SearchHome.find(storage, "c")
    assert str(error.value) == f"--resume: no search named 'c' in {storage}. Searches there: a, b."


def test_a_name_being_reserved_is_reported(storage: StorageUrl) -> None:
    """On a file system a new file is empty at first."""
    create_search(storage, "a").remote.write("search.json", b"")
    for find in (SearchHome.look, SearchHome.find):
        with pytest.raises(StorageError, match=r"a/search\.json is being written"):
            find(storage, "a")


@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_is_reported_in_one_paragraph() -> None:
    with pytest.raises(StorageError) as error:
        SearchHome.create(StorageUrl(url="s3://no-such-bucket-here/runs"), "a")
    message = str(error.value)
    assert message.startswith("--storage: must be a URL that can be read and written, but got s3://no-such-")
    assert "The specified bucket does not exist" in message
    assert "The bucket must exist, and the credentials found" in message
    assert "\n" not in message


def test_only_storage_errors_become_user_errors(storage: StorageUrl) -> None:
    with pytest.raises(ZeroDivisionError), usable(storage):
        _ = 1 / 0


@pytest.mark.parametrize("method", ["create", "find"])
def test_missing_credentials_are_reported(method: str, monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> None:
    storage = StorageUrl(url=f"{s3.bucket()}/runs")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", "/nowhere")
    # fsspec caches file systems, with their credentials.
    S3FileSystem.clear_instance_cache()
    with pytest.raises(
        StorageError, match=r"Unable to locate credentials\)\. The bucket must exist, and the"
    ):
        getattr(SearchHome, method)(storage, "a")
    S3FileSystem.clear_instance_cache()

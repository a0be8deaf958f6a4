"""The same folder at three kinds of URL: an S3, a file system, and fsspec's memory."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest

from tune_rescon.storage import RemoteFolder, StorageUrl


@pytest.fixture
def memory() -> RemoteFolder:
    return RemoteFolder.connect(StorageUrl(url=f"memory://{uuid.uuid4().hex}/runs"))


@pytest.fixture
def on_disk(tmp_path: Path) -> RemoteFolder:
    """A mounted network file system, where files are renamed into place."""
    path = tmp_path / "remote" / "runs"
    return RemoteFolder(f"file://{path}", fsspec.filesystem("file"), str(path))


@pytest.fixture(params=[pytest.param("s3", marks=pytest.mark.s3), "disk", "memory"])
def remote(request: pytest.FixtureRequest) -> RemoteFolder:
    if request.param == "s3":
        bucket = request.getfixturevalue("s3").bucket()
        return RemoteFolder.connect(StorageUrl(url=f"{bucket}/some/runs"))
    folder = request.getfixturevalue("on_disk" if request.param == "disk" else "memory")
    assert isinstance(folder, RemoteFolder)
    return folder

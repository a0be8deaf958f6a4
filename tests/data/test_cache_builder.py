"""The cache on disk: damage is repaired, concurrent builders build once, and failures leave no files."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import joblib
import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import MakeFolder, OpenFolder, encode, flip_bit
from tune_rescon.config import DatasetConfig
from tune_rescon.data import ImageDataset, cache_builder, open_dataset, sources
from tune_rescon.data.cache_builder import write_cache
from tune_rescon.data.sources import Plan
from tune_rescon.errors import DataError, StorageError

FILES = ("images.npy", "labels.npy", "meta.json")
COUNTS = {"cat": 6, "dog": 6}


def cache_folder(tmp_path: Path) -> Path:
    return next(path for path in (tmp_path / "cache").iterdir() if path.is_dir())


def pixels(dataset: ImageDataset) -> bytes:
    return b"".join(
        split.gather(np.arange(len(split)))[0].tobytes() for split in (dataset.train, dataset.val)
    )


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the caches that were built."""
    names: list[str] = []
    decode_all = cache_builder._decode_all

    def counted_build(build: cache_builder._Build, scratch: Path) -> None:
        names.append(scratch.name)
        decode_all(build, scratch)

    monkeypatch.setattr(cache_builder, "_decode_all", counted_build)
    return names


def overwrite(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def truncate(name: str, length: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, length)


def replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a cache")


DAMAGE: dict[str, Callable[[Path], object]] = {
    **{f"{name} missing": remove(name) for name in FILES},
    **{f"{name} empty": overwrite(name, b"") for name in FILES},
    "images truncated": truncate("images.npy", 1000),
    "images truncated by one byte": truncate("images.npy", 128 + 12 * 16 * 16 * 3 - 1),
    "images too long": lambda folder: os.truncate(folder / "images.npy", 10**6),
    "header: magic": flip_bit("images.npy", 0),
    "header: shape": flip_bit("images.npy", 62),
    "first pixel": flip_bit("images.npy", 128),
    "last pixel": flip_bit("images.npy", -1),
    "label": flip_bit("labels.npy", -8),
    "meta: any bit": flip_bit("meta.json", 300),
    "meta: not json": overwrite("meta.json", b"{"),
    "meta: other json": overwrite("meta.json", b"[1]"),
    "meta: wrong types": overwrite("meta.json", b'{"digest": 1, "meta": 2}'),
    "meta: not text": overwrite("meta.json", b"\xff\xfe\xfd"),
    "a file instead of the folder": replace_by_file,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_detected_and_repaired(
    damage: str, make_folder: MakeFolder, open_folder: OpenFolder, tmp_path: Path, builds: list[str]
) -> None:
    root = make_folder(COUNTS)
    before = pixels(open_folder(root))
    DAMAGE[damage](cache_folder(tmp_path))
    assert pixels(open_folder(root)) == before
    assert len(builds) == 2
    open_folder(root)
    assert len(builds) == 2


def test_an_intact_cache_is_not_rebuilt(
    make_folder: MakeFolder, open_folder: OpenFolder, builds: list[str]
) -> None:
    root = make_folder(COUNTS)
    for limit in (None, 8, 4):
        open_folder(root, limit=limit, split_seed=limit or 0)
    assert len(builds) == 1


def test_a_changed_source_is_decoded_again(
    make_folder: MakeFolder, open_folder: OpenFolder, tmp_path: Path, builds: list[str]
) -> None:
    root = make_folder(COUNTS)
    before = open_folder(root)
    (root / "cat/0000.png").unlink()
    after = open_folder(root)
    assert len(builds) == 2
    assert len(after.train) + len(after.val) == 11
    assert after.digest != before.digest
    # A source has one cache. The old one is deleted, but a process that has it open can still read it.
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [
        cache_folder(tmp_path).name
    ]
    assert before.train.gather(np.arange(3))[0].shape == (3, 16, 16, 3)


def test_a_folder_that_an_earlier_version_read_is_decoded_again(
    make_folder: MakeFolder, open_folder: OpenFolder, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(COUNTS)
    with monkeypatch.context() as earlier:
        earlier.setattr(sources, "FOLDER_FORMAT", sources.FOLDER_FORMAT - 1)
        before = open_folder(root)
    assert open_folder(root).digest == before.digest
    assert len(builds) == 2


def test_a_cache_of_another_source_is_rebuilt(
    make_folder: MakeFolder, open_folder: OpenFolder, tmp_path: Path, builds: list[str]
) -> None:
    first, second = make_folder(COUNTS, "first"), make_folder({"cat": 5, "dog": 5}, "second")
    open_folder(first)
    first_cache = cache_folder(tmp_path)
    expected = pixels(open_folder(second))
    second_cache = next(
        path for path in (tmp_path / "cache").iterdir() if path.is_dir() and path != first_cache
    )
    shutil.rmtree(second_cache)
    shutil.copytree(first_cache, second_cache)
    assert pixels(open_folder(second)) == expected
    assert len(builds) == 3


def truncate_image(root: Path) -> Path:
    path = root / "dog/0003.png"
    path.write_bytes(path.read_bytes()[:100])
    return root


def test_a_broken_image_is_named_and_no_cache_remains(
    make_folder: MakeFolder, open_folder: OpenFolder, tmp_path: Path
) -> None:
    root = truncate_image(make_folder(COUNTS))
    with pytest.raises(DataError, match=r"dog/0003.png, which cannot be decoded.*on_bad_image"):
        open_folder(root)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_broken_images_are_skipped_if_asked(
    make_folder: MakeFolder, open_folder: OpenFolder, caplog: pytest.LogCaptureFixture
) -> None:
    root = truncate_image(make_folder(COUNTS))
    dataset = open_folder(root, on_bad_image="skip")
    assert len(dataset.train) + len(dataset.val) == 11
    assert "left out 1 broken image, the first is dog/0003.png" in caplog.text
    # The same cache, opened with the default `on_bad_image`.
    with pytest.raises(DataError, match=r"dog/0003.png"):
        open_folder(root)


def test_an_image_that_the_disk_does_not_give_is_no_broken_image(
    make_folder: MakeFolder, open_folder: OpenFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be left out as long as the cache lives, although the disk is well again."""
    root, read = make_folder(COUNTS), Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "0003.png":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        with pytest.raises(DataError, match=r"readable.*Input/output error"):
            open_folder(root, on_bad_image="skip")
    dataset = open_folder(root, on_bad_image="skip")
    assert len(dataset.train) + len(dataset.val) == 12


def test_statistics_leave_skipped_images_out(make_folder: MakeFolder, open_folder: OpenFolder) -> None:
    dataset = open_folder(truncate_image(make_folder(COUNTS)), on_bad_image="skip")
    rows = np.concatenate([dataset.train.rows_N, dataset.val.rows_N])
    images = dataset.train.images_NHWC[np.sort(rows)] / 255
    assert dataset.mean == pytest.approx(images.mean((0, 1, 2)))
    assert dataset.std == pytest.approx(images.std((0, 1, 2)))


@pytest.mark.parametrize("classes", [("cat",), ("cat", "dog")])
def test_a_class_of_only_broken_images_is_an_error(
    make_folder: MakeFolder, open_folder: OpenFolder, classes: tuple[str, ...]
) -> None:
    root = make_folder(COUNTS)
    for name in classes:
        for path in (root / name).iterdir():
            path.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"0 of 'cat'|no training image can be decoded"):
        open_folder(root, on_bad_image="skip")


@pytest.mark.parametrize(
    ("sizes", "settings", "side"),
    [
        ([(20, 20)], {}, 20),
        ([(48, 20)], {}, 20),
        ([(20, 20), (20, 24)], {}, 256),
        ([(300, 300)], {}, 256),
        ([(20, 20)], {"store_size": 32}, 20),
        ([(20, 20), (30, 40)], {"store_size": 16}, 16),
    ],
)
def test_stored_size_follows_image_sizes_and_settings(
    make_folder: MakeFolder,
    open_folder: OpenFolder,
    sizes: list[tuple[int, int]],
    settings: dict[str, int],
    side: int,
) -> None:
    root = make_folder({f"class{i}": 2 for i in range(2)}, size=sizes[0])
    for index, size in enumerate(sizes):
        (root / f"class{index}/0001.png").write_bytes(encode(Image.new("RGB", size)))
    assert open_folder(root, **settings).train.images_NHWC.shape == (4, side, side, 3)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("min_parallel_images", [50, 1000])
def test_a_single_odd_size_is_detected_while_decoding(
    make_folder: MakeFolder,
    open_folder: OpenFolder,
    min_parallel_images: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_builder, "_MIN_PARALLEL_IMAGES", min_parallel_images)
    root = make_folder({"a": 60, "b": 60})
    (root / "a/0001.png").write_bytes(encode(Image.new("RGB", (16, 17))))
    assert open_folder(root, store_size=None).train.images_NHWC.shape == (120, 256, 256, 3)


def test_an_unwritable_cache_root_is_reported(make_folder: MakeFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = DatasetConfig(name="folder", path=str(make_folder(COUNTS)))
    with pytest.raises(StorageError, match="must be writable"):
        open_dataset(config, data_root=tmp_path, cache_root=tmp_path / "file" / "cache")


def test_a_full_disk_is_reported(
    make_folder: MakeFolder, open_folder: OpenFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_allocation(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail_allocation)
    with pytest.raises(StorageError, match="have room, but got No space left"):
        open_folder(make_folder(COUNTS))
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


@pytest.mark.timeout(60)
@pytest.mark.skipif(joblib.cpu_count() == 1, reason="a single core decodes in the test's process")
def test_a_killed_decoding_process_is_reported(tmp_path: Path) -> None:
    plan = Plan(
        shape=(300, 8, 8, 3),
        counts={"train": 300, "val": 0, "test": 0},
        class_names=("cat", "dog"),
        labels_N=np.zeros(300, dtype=np.int64),
        # The cast is needed because this reader returns no block.
        reader=cast(Any, lambda _rows: partial(signal.raise_signal, signal.SIGKILL)),
        decodes=True,
    )
    with pytest.raises(DataError, match="must fit in this machine's memory, but got a decoding process that"):
        write_cache(plan, tmp_path, fingerprint="", show=lambda *_: None, on_bad=lambda _: None)


def test_progress_is_reported(make_folder: MakeFolder, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    config = DatasetConfig(name="folder", path=str(make_folder(COUNTS)))
    for _ in range(2):
        open_dataset(
            config,
            data_root=tmp_path,
            cache_root=tmp_path / "cache",
            progress=lambda *done: reported.append(done),
        )
    assert reported == [(12, 12)]


def test_a_bar_is_drawn(make_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(COUNTS)
    config = DatasetConfig(name="folder", path=str(root))
    open_dataset(config, data_root=tmp_path, cache_root=tmp_path / "cache", progress=True)
    assert "12/12" in capsys.readouterr().err


OPEN_SCRIPT = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from tune_rescon.config import DatasetConfig
    from tune_rescon.data import open_dataset

    folder, cache, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

    def progress(done, total):
        print("decoding", flush=True)
        time.sleep(pause)

    config = DatasetConfig(name="folder", path=str(folder))
    print(open_dataset(config, data_root=folder, cache_root=cache, progress=progress).digest)
""")


def start_opening(root: Path, cache: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OPEN_SCRIPT, str(root), str(cache), str(pause)]
    # stderr is discarded: the semaphore tracker of a killed process reports what it cleans up.
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.timeout(60)
def test_two_processes_at_once_build_one_cache(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"cat": 150, "dog": 150})
    processes = [start_opening(root, tmp_path / "cache", 0.5) for _ in range(2)]
    outputs = [process.communicate()[0].split() for process in processes]
    assert sum("decoding" in output for output in outputs) == 1
    assert outputs[0][-1] == outputs[1][-1]


@pytest.mark.timeout(60)
def test_files_of_a_killed_builder_are_discarded(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"cat": 150, "dog": 150})
    with start_opening(root, tmp_path / "cache", 60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "decoding\n"
        process.send_signal(signal.SIGKILL)
    assert any(".building-" in path.name for path in (tmp_path / "cache").iterdir())
    config = DatasetConfig(name="folder", path=str(root))
    dataset = open_dataset(config, data_root=tmp_path, cache_root=tmp_path / "cache")
    assert len(dataset.train) == 270
    assert not any(".building-" in path.name for path in (tmp_path / "cache").iterdir())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("reason", ["few images", "no joblib"])
def test_parallel_decoding_matches_a_single_process(
    make_folder: MakeFolder,
    open_folder: OpenFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
) -> None:
    root = make_folder({"train/cat": 150, "train/dog": 150, "test/cat": 9})
    parallel = open_folder(root)
    shutil.rmtree(tmp_path / "cache")
    if reason == "few images":
        monkeypatch.setattr(cache_builder, "_MIN_PARALLEL_IMAGES", 1000)
    else:
        monkeypatch.setitem(sys.modules, "joblib", None)
    single = open_folder(root)
    assert (parallel.digest, parallel.mean, parallel.std) == (single.digest, single.mean, single.std)


@pytest.mark.timeout(60)
def test_parallel_decoding_names_a_broken_image(make_folder: MakeFolder, open_folder: OpenFolder) -> None:
    with pytest.raises(DataError, match=r"dog/0003.png, which cannot be decoded"):
        open_folder(truncate_image(make_folder({"cat": 150, "dog": 150})))

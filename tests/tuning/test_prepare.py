"""The paths of a space become absolute, and the images of a folder are listed and recorded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from tune_rescon.config import DatasetConfig
from tune_rescon.data import Account, describe
from tune_rescon.data.catalog import dataset_path
from tune_rescon.data.selection import LeftOut
from tune_rescon.errors import ConfigError, DataError
from tune_rescon.spaces import dump_space, is_active, load_space, parse_space
from tune_rescon.tuning import RunOptions, StudyRecord
from tune_rescon.tuning.prepare import PreparedDataset, prepare_data, with_absolute_paths
from tune_rescon.tuning.study_attributes import read_run_attributes, record_run


def test_the_account_of_a_folder_is_in_the_record(record: StudyRecord, digits: PreparedDataset) -> None:
    folder_account = Account(
        class_names=("a", "b"),
        per_class={"train": (2, 3), "val": (0, 0), "test": (0, 0)},
        left_out=(LeftOut(kind="hidden files", count=1, names=(".x.png",)),),
    )
    datasets = {"digits": digits.info, "folder": dataclasses.replace(digits.info, account=folder_account)}
    record_run(record, datasets, None)
    assert read_run_attributes(record).datasets == datasets
    assert list(record.attribute("dataset_account")) == ["folder"]
    assert "account" not in record.attribute("datasets")["folder"]


def test_a_tilde_path_is_the_same_for_the_dry_run_and_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    space = load_space("folder", ["dataset.path=~/my photos #1", "fixed.init_from=~/best.ckpt"])
    prepared = with_absolute_paths(space)
    assert (
        prepared.dataset.path == str(dataset_path(space.dataset, tmp_path)) == str(tmp_path / "my photos #1")
    )
    assert prepared.fixed["init_from"] == str(tmp_path / "best.ckpt")


def test_conditions_on_initial_weights_follow_their_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = "{type: categorical, choices: [best.ckpt, null]}"
    rate = "{type: float, low: 0.01, high: 0.1, when: {parameter: init_from, in: [best.ckpt]}}"
    settings = ["initial=[]", "fixed={}", f"parameters={{init_from: {weights}, learning_rate: {rate}}}"]
    prepared = with_absolute_paths(load_space("digits", settings))
    assert is_active(prepared.parameters["learning_rate"], {"init_from": str(tmp_path / "best.ckpt")})
    assert not is_active(prepared.parameters["learning_rate"], {"init_from": None})
    assert parse_space(dump_space(prepared), source="space.yaml") == prepared, (
        "a resume uses the absolute path"
    )


def test_a_missing_home_folder_is_refused() -> None:
    with pytest.raises(DataError, match="home folder that this machine has, but got ~nosuchuser/x"):
        with_absolute_paths(load_space("folder", ["dataset.path=~nosuchuser/x"]))
    with pytest.raises(ConfigError, match="init_from: must begin with a home directory"):
        with_absolute_paths(load_space("digits", ["fixed.init_from=~nosuchuser/x.ckpt"]))


def test_preparing_a_search_reports_the_images_of_its_folder(tmp_path: Path, progress: list[str]) -> None:
    for label in "ab":
        (tmp_path / "x" / label).mkdir(parents=True)
        for number in range(4):
            gray_value = number + 4 * (label == "b")
            Image.new("RGB", (16, 16), (gray_value,) * 3).save(tmp_path / "x" / label / f"{number}.png")
    (tmp_path / "x/stray.png").write_bytes(b"left out, so not decoded")
    space = load_space("folder", [f"dataset.path={tmp_path / 'x'}", "dataset.val_fraction=0.25"])
    options = RunOptions(
        name="s",
        storage=tmp_path,
        data_root=tmp_path / "data",
        cache_root=tmp_path / "cache",
        show_progress=False,
    )
    prepare_data(space, options)
    *image_lines, evaluated_by, darkness_warning = progress
    assert image_lines == [
        "folder: found 2 classes; images: train 8 (a 4, b 4), val 0, test 0",
        "folder: left out, images without a class folder: 1 (stray.png)",
        "folder: the cache keeps 8 squares of 16 pixels: 6.1 kB of disk on each node, mapped into memory",
    ]
    assert "will evaluate the winners on the 2 validation images" in evaluated_by
    assert "dataset.test_fraction" in evaluated_by
    assert darkness_warning.startswith("folder: the training pictures are nearly black")


def test_a_search_begins_with_the_images_that_it_skips(tmp_path: Path, progress: list[str]) -> None:
    """The account that is printed before they are decoded counts them; the recorded one does not."""
    for label in "ab":
        (tmp_path / "x" / label).mkdir(parents=True)
        for number in range(6):
            shade = 60 + 30 * number + (label == "b")
            Image.new("RGB", (16, 16), (shade,) * 3).save(tmp_path / "x" / label / f"{number}.png")
    for broken in ("a/1.png", "b/0.png"):
        (tmp_path / "x" / broken).write_bytes(b"broken")
    settings = [f"dataset.path={tmp_path / 'x'}", "dataset.on_bad_image=skip"]
    prepared = prepare_data(
        load_space("folder", settings),
        RunOptions(name="s", storage=tmp_path, cache_root=tmp_path / "cache", show_progress=False),
    )
    assert progress[0] == "folder: found 2 classes; images: train 12 (a 6, b 6), val 0, test 0"
    assert progress[-1] == "folder: left out, images that cannot be decoded: 2 (a/1.png, b/0.png)"
    info = prepared["folder"].info
    assert info.account is not None
    assert info.account.lines()[0] == "found 2 classes; images: train 10 (a 5, b 5), val 0, test 0"
    assert info.account.lines()[-1] == progress[-1].removeprefix("folder: ")
    assert info.train_images + info.val_images == 10


@pytest.fixture
def digits(tmp_path: Path) -> PreparedDataset:
    return PreparedDataset(info=describe(DatasetConfig(name="digits"), data_root=tmp_path), digest="0123")

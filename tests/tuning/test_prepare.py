"""The data of a search: absolute paths, a folder's listing, metrics of single classes, the stored size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tune_rescon.config import DatasetConfig
from tune_rescon.data import Account, DatasetInfo, describe
from tune_rescon.data.catalog import dataset_path
from tune_rescon.data.selection import LeftOut
from tune_rescon.errors import ConfigError, DataError
from tune_rescon.metric_names import MAX_CLASSES_LOGGED
from tune_rescon.spaces import Space, dump_space, is_active, load_space, parse_space
from tune_rescon.tuning import RunOptions, StudyRecord
from tune_rescon.tuning.prepare import (
    cache_messages,
    check_metric_classes,
    check_weights,
    largest_image_size,
    prepare_data,
    read_weights,
    with_absolute_paths,
    with_store_size,
)
from tune_rescon.tuning.resume import change_problems
from tune_rescon.tuning.study_attributes import read_run_attributes, record_run


def test_the_account_of_a_folder_is_in_the_record(record: StudyRecord, digits: DatasetInfo) -> None:
    folder_account = Account(
        class_names=("a", "b"),
        per_class={"train": (2, 3), "val": (0, 0), "test": (0, 0)},
        left_out=(LeftOut(kind="hidden files", count=1, names=(".x.png",)),),
    )
    datasets = {"digits": digits, "folder": dataclasses.replace(digits, account=folder_account)}
    record_run(record, datasets, None)
    assert read_run_attributes(record).datasets == datasets
    assert list(record.attribute("dataset_account")) == ["folder"]
    assert "account" not in record.attribute("datasets")["folder"]


@pytest.mark.torch
def test_a_search_says_once_that_the_classifier_of_other_classes_is_not_used(
    checkpoint: Path, digits: DatasetInfo, progress: list[str]
) -> None:
    fixed = f"fixed={{layout: cifar, depth: 56, width: 0.125, init_from: {checkpoint}}}"
    sizes = "parameters={image_size: {type: categorical, choices: [16, 32]}}"
    space = load_space("digits", ["initial=[]", fixed, sizes])
    letters = dataclasses.replace(digits, channels=3, classes=3, class_names=("a", "b", "c"))
    weights = read_weights(space)
    check_weights(space, weights, {"digits": letters})
    source = f"init_from {checkpoint}"
    assert progress == [
        f"digits: {source} has other classes (ant, bee, cat), so the classifier is drawn at random"
    ]
    check_weights(space, weights, {"digits": dataclasses.replace(letters, class_names=("ant", "bee", "cat"))})
    assert len(progress) == 1


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
    info = prepared.infos["folder"]
    assert info.account is not None
    assert info.account.lines()[0] == "found 2 classes; images: train 10 (a 5, b 5), val 0, test 0"
    assert info.account.lines()[-1] == progress[-1].removeprefix("folder: ")
    assert info.train_images + info.val_images == 10


@pytest.fixture
def digits(tmp_path: Path) -> DatasetInfo:
    return describe(DatasetConfig(name="digits"), data_root=tmp_path)


def space(metric: str) -> Space:
    return load_space("digits", [f"metric={metric}"])


def classes(count: int, tmp_path: Path) -> DatasetInfo:
    info = describe(space("{name: val_loss, mode: min}").dataset, data_root=tmp_path)
    return dataclasses.replace(info, classes=count, class_names=tuple(map(str, range(count))))


def test_per_class_metrics_of_too_many_classes_are_refused(tmp_path: Path) -> None:
    all_classes = space("{name: val_loss, mode: min, log: [val_f1_by_class]}")
    check_metric_classes(all_classes, classes(MAX_CLASSES_LOGGED, tmp_path))
    with pytest.raises(ConfigError, match=r"at most 100 classes, but got 101 .*val_f1/CLASS"):
        check_metric_classes(all_classes, classes(MAX_CLASSES_LOGGED + 1, tmp_path))


def test_single_classes_of_a_thousand_may_be_named(tmp_path: Path) -> None:
    single_classes = space("{name: val_f1/999, mode: max, log: [val_auroc/0]}")
    check_metric_classes(single_classes, classes(1000, tmp_path))
    with pytest.raises(ConfigError, match=r"metric\.name: unknown class '999'"):
        check_metric_classes(single_classes, classes(999, tmp_path))


def test_an_objective_class_without_validation_images_is_refused(tmp_path: Path) -> None:
    single_classes = space("{name: val_f1/3, mode: max, log: [val_auroc/0]}")
    check_metric_classes(single_classes, classes(10, tmp_path), val_labels_N=np.array([3, 5]))
    with pytest.raises(DataError, match=r"metric\.name: .* must have validation images, but got none of 3"):
        check_metric_classes(single_classes, classes(10, tmp_path), val_labels_N=np.array([0, 5]))


RATE = '"learning_rate": {"type": "float", "low": 0.01, "high": 0.1}'
SIZES = f'parameters={{{RATE}, "image_size": {{"type": "categorical", "choices": [64, 320]}}}}'


def folder_space(path: Path | str = "pictures", settings: Sequence[str] = ()) -> Space:
    return load_space("folder", [f"dataset.path={path}", f"parameters={{{RATE}}}", "initial=[]", *settings])


def sides(space: Space, recorded: Space | None = None) -> int | None:
    return with_store_size(space, recorded).dataset.store_size


@pytest.mark.parametrize(
    ("settings", "largest"),
    [
        (["fixed.image_size=48"], 48),
        ([SIZES], 320),
        (["fixed={preset: attention56}"], 224),
        (["fixed={preset: port_attention_448}"], 448),
    ],
)
def test_the_size_is_that_of_the_largest_network(settings: list[str], largest: int) -> None:
    assert largest_image_size(folder_space(settings=settings)) == largest


def test_a_new_search_stores_images_at_its_largest_image_size() -> None:
    assert sides(folder_space(settings=[SIZES])) == 320


def test_small_networks_give_a_small_store_size() -> None:
    assert sides(folder_space(settings=["fixed.image_size=48"])) == 48


def test_a_given_store_size_is_kept() -> None:
    assert sides(folder_space(settings=["dataset.store_size=100", "fixed.image_size=300"])) == 100


def test_a_resumed_search_keeps_its_store_size() -> None:
    started = with_store_size(folder_space(settings=["fixed.image_size=300"]), None)
    resumed = folder_space(settings=["fixed.image_size=300"])
    assert sides(resumed, started) == 300
    assert change_problems(started, with_store_size(resumed, started), []) == []


def test_a_search_of_an_earlier_version_keeps_256() -> None:
    earlier_version = folder_space(settings=["fixed.image_size=300"])
    assert sides(folder_space(settings=["fixed.image_size=300"]), earlier_version) is None


def test_cache_size_and_enlarged_images_are_reported(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(2):
            Image.new("RGB", (400, 300 + number)).save(tmp_path / label / f"{number}.png")
    space = folder_space(tmp_path, ["fixed.image_size=300"])
    with_message = with_store_size(space, None)
    (line,) = cache_messages(with_message, describe(with_message.dataset, data_root=tmp_path))
    assert line.startswith("the cache keeps 4 squares of 300 pixels: 1.1 MB of disk")
    small = folder_space(tmp_path, ["fixed.image_size=300", "dataset.store_size=64"])
    assert (
        "see these squares enlarged: `--set dataset.store_size=300`"
        in cache_messages(small, describe(small.dataset, data_root=tmp_path))[-1]
    )

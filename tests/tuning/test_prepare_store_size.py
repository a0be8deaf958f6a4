"""The cache stores images at the size that the largest network of the search reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from tune_rescon.data import describe
from tune_rescon.spaces import Space, load_space
from tune_rescon.tuning.prepare import cache_messages, largest_image_size, with_store_size
from tune_rescon.tuning.resume import change_problems

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

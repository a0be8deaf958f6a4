"""The mistakes of a network of a search, on this machine's copy of the search's images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tune_rescon.storage import local_file
from tune_rescon.tuning import RunOptions, StudyResult, write_atomically

if TYPE_CHECKING:
    from torch import nn

    from tune_rescon.inference.mistakes import Mistakes
    from tune_rescon.training import TrainedNetwork

__all__ = ["find_search_mistakes", "write_mistakes"]

#: Seconds that a search may spend at its end on the mistakes of its best network.
SECONDS: Final = 20.0


def find_search_mistakes(
    result: StudyResult,
    network: nn.Module,
    about: TrainedNetwork,
    *,
    data_root: Path,
    cache_root: Path,
    seconds: float = math.inf,
) -> tuple[Mistakes, str]:
    """Find the mistakes of a network on the images whose metric ranked the trials of its search.

    These are the validation images, or the test images of final trainings.

    Args:
        result: The search.
        network: A trained network of the search.
        about: Metadata of the network.
        data_root: The directory of the datasets.
        cache_root: The directory of the decoded images.
        seconds: See :func:`.find_mistakes`.

    Returns:
        The mistakes, and the name of the split: "validation" or "test".

    Raises:
        DataError: The images are not those of the training.
    """
    # Imported here because they import torch, which the driver of a search imports only at its end.
    from tune_rescon.data import open_dataset
    from tune_rescon.inference.mistakes import find_mistakes
    from tune_rescon.training.device import resolve_device

    images = result.space.dataset_config(about.config.dataset)
    dataset = open_dataset(images, data_root=data_root, cache_root=cache_root)
    on_test = result.space.metric.of_test_images
    split, split_name = (dataset.test, "test") if on_test else (dataset.val, "validation")
    placement = resolve_device("auto", precision=about.config.precision)
    mistakes = find_mistakes(network, about, dataset, split, placement=placement, seconds=seconds)
    return mistakes, split_name


def write_mistakes(result: StudyResult, path: Path, *, options: RunOptions) -> None:
    """Write the mistakes of a search's best network to ``path``, from which the report takes them.

    Nothing is written if the best trial has no checkpoint. After :data:`SECONDS`, the remaining images are
    left out.

    Args:
        result: A search that has ended.
        path: The file to write.
        options: The options of the search, which have the directories of the images.

    Raises:
        UserError: The images or the network cannot be read.
        OSError: The file cannot be written.
    """
    from tune_rescon.inference.mistakes import mistakes_document
    from tune_rescon.training import load_trained

    kept = None if result.best is None else result.kept_checkpoint(result.best)
    if result.best is None or kept is None:
        return
    with local_file(kept) as file:
        network, about = load_trained(file)
    mistakes, split_name = find_search_mistakes(
        result, network, about, data_root=options.data_root, cache_root=options.cache_root, seconds=SECONDS
    )
    identity = {"trial": result.best.number, "epoch": about.epoch}
    document = identity | mistakes_document(mistakes, split_name=split_name, in_report=True)
    write_atomically(path, f"{json.dumps(document)}\n")

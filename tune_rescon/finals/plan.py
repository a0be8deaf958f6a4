"""Build the space of the finals: the search's engine runs every row of the space, and nothing else.

The space's metric is measured on the test images. Therefore no images are held out, no trial is stopped
early and no parameter is sampled: see :mod:`tune_rescon.spaces.space`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tune_rescon.config import DatasetConfig, TrialConfig, TrialState
from tune_rescon.data import describe
from tune_rescon.errors import ConfigError, StorageError, counted, format_error, unknown_name_message
from tune_rescon.models import describe_network
from tune_rescon.spaces import Resources, Space, parse_space
from tune_rescon.tuning import StudyResult, TrialRecord
from tune_rescon.tuning.resources import this_machine

__all__ = [
    "METRIC",
    "RECIPES",
    "Recipe",
    "TrainingPlan",
    "as_trained_now",
    "epochs_within",
    "finals_seconds",
    "finals_space",
    "find_recipe",
    "image_growth",
    "limit_message",
    "local_resources",
    "of_dataset",
    "preset_config",
    "read_duration",
    "seconds_per_epoch",
    "top_configs",
    "trial_configs",
]


_DURATION = re.compile(r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?")


def read_duration(text: str) -> float:
    """Return the seconds of a duration.

    >>> read_duration("2h"), read_duration("1h30m"), read_duration("90s")
    (7200.0, 5400.0, 90.0)

    Raises:
        ConfigError: ``text`` is not a duration.
    """
    found = _DURATION.fullmatch(text)
    parts = [float(part or 0) for part in found.groups()] if found else [0.0]
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not seconds > 0:
        rule = "must be a time, such as 2h, 1h30m or 90s"
        raise ConfigError(format_error(rule, got=repr(text), where="--budget"))
    return seconds


def finals_seconds(epoch_seconds: float, *, epochs: int, trainings: int, slots: int) -> float:
    """Return the wall time in seconds of ``trainings`` trainings, of which ``slots`` run at once.

    Args:
        epoch_seconds: seconds of an epoch.
        epochs: epochs of each training.
        trainings: number of trainings.
        slots: number of trainings that run at once.

    >>> finals_seconds(10, epochs=3, trainings=5, slots=2)
    90
    """
    return math.ceil(trainings / slots) * epochs * epoch_seconds


def epochs_within(
    seconds: float, epoch_seconds: float, configs: Sequence[TrialConfig], *, trainings: int, slots: int
) -> int:
    """Return the maximum number of epochs for which :func:`finals_seconds` is at most ``seconds``.

    Args:
        seconds: the time budget.
        epoch_seconds: seconds of an epoch.
        configs: the configurations to train, which have the number of warm-up epochs.
        trainings: number of trainings.
        slots: number of trainings that run at once.

    Raises:
        ConfigError: ``seconds`` are not enough for one epoch, or for the warm-up epochs.
    """
    epochs = int(seconds / finals_seconds(epoch_seconds, epochs=1, trainings=trainings, slots=slots))
    least = max(1, math.ceil(max(config.warmup_epochs for config in configs)))
    if epochs < least:
        needed = finals_seconds(epoch_seconds, epochs=least, trainings=trainings, slots=slots)
        work = f"{counted(least, 'epoch')} of {counted(trainings, 'training')}"
        rule = f"must be enough for {work}, about {needed:.0f} s"
        hint = "Give more, or smaller --top or --seeds."
        raise ConfigError(format_error(rule, got=f"{seconds:.0f} s", where="--budget", hint=hint))
    return epochs


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The number of epochs of a network, and the other settings of its training."""

    about: str
    epochs: int
    settings: Mapping[str, Any]
    """Fields of TrialConfig; a field that is left out has TrialConfig's default."""


#: The paper's 160,000 iterations on batches of 64 of CIFAR's 50,000 images are 204.8 epochs.
_PAPER_EPOCHS: Final = 205

RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        # Wang et al., section 4.1; the learning rate falls at 64k and 96k of 160k iterations.
        "paper": Recipe(
            about="Wang et al.: 160k iterations on batches of 64, Nesterov SGD, 0.1 divided by 10 twice",
            epochs=_PAPER_EPOCHS,
            settings={
                "batch_size": 64,
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 1e-4,
                "schedule": "multistep",
                "step_fractions": [40, 60],
                "crop_padding": 4,
                "flip": True,
            },
        ),
        # ResCon's README states no weight decay, so the paper's is used.
        "rescon": Recipe(
            about="ResCon: 10 epochs on batches of 16, Nesterov SGD at 0.1, images as they are",
            epochs=10,
            settings={
                "batch_size": 16,
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 1e-4,
                "schedule": "constant",
                "normalize": False,
                "crop_padding": 0,
                "flip": False,
            },
        ),
        "modern": Recipe(
            about="100 epochs on batches of 128, cosine, TrivialAugment, label smoothing, averaged weights",
            epochs=100,
            settings={
                "batch_size": 128,
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 5e-4,
                "schedule": "cosine",
                "warmup_epochs": 5,
                "label_smoothing": 0.1,
                "augment": "trivialaugment",
                "ema_decay": 0.999,
                "crop_padding": 4,
                "flip": True,
            },
        ),
    }
)


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        ConfigError: no recipe has this name; the message lists the known names.
    """
    if name not in RECIPES:
        raise ConfigError(unknown_name_message("recipe", name, list(RECIPES), where="--recipe"))
    return RECIPES[name]


#: The metric by which finalists are compared.
METRIC: Final = "test_accuracy"

#: The field that is always a parameter, because a space of one finalist would have no parameter otherwise.
_KEPT_PARAMETER: Final = "learning_rate"


def top_configs(result: StudyResult, top: int) -> tuple[TrialConfig, ...]:
    """Return the distinct configurations of the finished trials, the best first, at most ``top``.

    Raises:
        StorageError: no trial has finished, or the configuration of one of the best is not known.
    """
    found: dict[TrialConfig, None] = {}
    for trial in sorted(result.trials, key=lambda trial: trial.rank_key()):
        if len(found) == top:
            break
        if trial.state is TrialState.FINISHED and math.isfinite(trial.value):
            found.setdefault(_config(result, trial))
    if not found:
        rule = "a search must have a trial that reached its last epoch"
        got = f"{result.name}, which has none" + (" yet" if result.state.value == "running" else "")
        raise StorageError(format_error(rule, got=got, where="--from"))
    return tuple(found)


def trial_configs(result: StudyResult, numbers: Sequence[int]) -> tuple[TrialConfig, ...]:
    """Return the distinct configurations of the trials with these numbers, in the given order.

    The trials need not have finished, but each must have an epoch from which the time can be estimated.

    Raises:
        StorageError: no trial has one of the numbers, or it has no epoch.
    """
    trials = {trial.number: trial for trial in result.trials}
    unknown = [number for number in numbers if number not in trials]
    if unknown:
        rule = f"must be the number of a trial of {result.name}"
        hint = f"Its trials are 0 to {max(trials)}." if trials else "It has no trials yet."
        raise StorageError(format_error(rule, got=_listed(unknown), where="--trial", hint=hint))
    empty = [number for number in numbers if not trials[number].epochs]
    if empty:
        rule = "must be a trial with at least one epoch, from which the time can be estimated"
        got = f"{_listed(empty)} of {result.name}, without one"
        raise StorageError(format_error(rule, got=got, where="--trial"))
    return tuple(dict.fromkeys(_config(result, trials[number]) for number in numbers))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, dict.fromkeys(numbers)))


def as_trained_now(result: StudyResult, configs: Sequence[TrialConfig]) -> StudyResult:
    """Return the search with only those trials that always had the devices that a trial gets now.

    A resume may have changed them, and with them the time of an epoch and how many trials run at once. If no
    such trial has one of ``configs``, return the whole search.
    """
    resources = result.space.resources_per_trial
    same = tuple(trial for trial in result.trials if _had_present_devices(trial, resources))
    wanted = set(configs)
    known = any(trial.epochs and trial.config(result.space) in wanted for trial in same)
    return dataclasses.replace(result, trials=same) if known else result


def _had_present_devices(trial: TrialRecord, resources: Resources) -> bool:
    """Return whether no epoch of a trial is known to have had other devices, or another number of them."""
    has_other_number = any(count not in (None, resources.devices) for count in trial.device_counts)
    has_other_kind = any(
        kind is not None and (kind == "CPU") is not (resources.device == "CPU") for kind in trial.devices
    )
    return not has_other_number and not has_other_kind


def seconds_per_epoch(
    result: StudyResult, configs: Sequence[TrialConfig], *, image_size: int | None = None
) -> float:
    """Return the mean seconds of an epoch, over all epochs of the trials with these configurations.

    Args:
        result: the search.
        configs: the configurations.
        image_size: the image size to which the seconds are scaled, by the number of pixels. None for that of
            each trial.
    """
    wanted = set(configs)
    trials = [trial for trial in result.trials if trial.config(result.space) in wanted]
    seconds = sum(trial.seconds for trial in trials) / sum(trial.epochs for trial in trials)
    if image_size is None:
        return seconds
    sizes = [describe_network(config, classes=2, in_channels=3).image_size for config in configs]
    return seconds * image_size**2 * len(sizes) / sum(size**2 for size in sizes)


def of_dataset(configs: Sequence[TrialConfig], space: Space) -> tuple[tuple[TrialConfig, ...], DatasetConfig]:
    """Return the configurations and their dataset, for a ``space`` that may search over datasets too.

    If all configurations have the same dataset, it becomes the dataset of the finals, and the configurations
    do not name it.
    """
    named = [dataclasses.replace(config, dataset=config.dataset or space.dataset.name) for config in configs]
    names = list(dict.fromkeys(config.dataset for config in named))
    if len(names) == 1:
        named = [dataclasses.replace(config, dataset=None) for config in named]
    # The section has the path of the user's own images, if any finalist was trained on them.
    return tuple(named), space.dataset_config("folder" if "folder" in names else names[0])


def _finals_dataset(dataset: DatasetConfig) -> DatasetConfig:
    """Return the dataset of the finals, which train on its validation images too if it has test images."""
    return dataclasses.replace(dataset, hold_out=False, without_test="val")


def image_growth(dataset: DatasetConfig, data_root: Path) -> float:
    """Return the ratio of the finals' number of training images to that of a search on ``dataset``.

    Args:
        dataset: the dataset of the search.
        data_root: the directory of the datasets on this machine.

    Raises:
        DataError: the images are missing, or their folders are faulty.
    """
    search, finals = (
        describe(each, data_root=data_root).train_images for each in (dataset, _finals_dataset(dataset))
    )
    return finals / search


def limit_message(space: Space) -> str | None:
    """Return a message about the images that the finals leave out; None if they use all images."""
    limit = space.dataset.limit
    if limit is None:
        return None
    return (
        f"dataset.limit is {limit}, as in the search: at most {limit} images of each part (training,"
        " validation, test) are used. To use all images: --set dataset.limit=null"
    )


def preset_config(preset: str, recipe: Recipe, *, epochs: int, image_size: int | None) -> TrialConfig:
    """Return the configuration of a preset that is trained by a recipe for ``epochs`` epochs.

    Args:
        preset: the name of the network.
        recipe: the recipe of the training.
        epochs: number of epochs; the warm-up keeps its fraction of them.
        image_size: side of the images in pixels; None: the preset's.

    Raises:
        ConfigError: a value breaks its field's rule.
    """
    warmup = recipe.settings.get("warmup_epochs", 0) * epochs / recipe.epochs
    own = {"preset": preset, "image_size": image_size, "warmup_epochs": warmup}
    return TrialConfig.from_dict({**recipe.settings, **own})


def local_resources() -> Resources:
    """Return the resources of one training on this machine: a GPU if it has one, and at most 4 CPU cores.

    The function assumes no more, because nothing else is known about the machine. A GPU that torch cannot use
    ends the training with the reason, instead of a training on the CPU. A torch that is built without CUDA is
    a choice for the CPU.
    """
    import torch

    has_gpu = torch.version.cuda is not None and this_machine().resources["GPU"] > 0
    return Resources(cpu=min(4, os.cpu_count() or 1), gpu=1.0 if has_gpu else 0.0)


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How each configuration is trained."""

    epochs: int
    seeds: int
    """Number of trainings of each configuration, which differ by their seed."""
    seed: int = 0
    """The seed from which all seeds are derived."""
    resources: Resources
    """Resources of each training."""
    concurrent: int | None = None
    """Maximum number of trainings at once."""


def finals_space(
    name: str,
    configs: Sequence[TrialConfig],
    plan: TrainingPlan,
    *,
    dataset: DatasetConfig,
    about: str = "",
    overrides: Sequence[str] = (),
) -> Space:
    """Return a space that trains each of ``configs`` by ``plan``.

    Trial ``n`` trains configuration ``n % len(configs)``, so that finals that are interrupted early have
    trained all configurations equally often.

    Args:
        name: name of the search that runs the finals.
        configs: the configurations, which must differ from each other.
        plan: how each of them is trained.
        dataset: the dataset that they were searched on. No images are held out, except that validation images
            are held out if the dataset has no test images to evaluate the networks on.
        about: the description in the space file.
        overrides: ``KEY=VALUE`` pairs that change the space file, as for ``--set``.

    Raises:
        SpaceError: the space breaks a rule, for example because the images are too small for a network.
    """
    fixed, parameters = _split_fields(configs)
    rows = [{field: values[index] for field, values in parameters.items()} for index in range(len(configs))]
    document = {
        "version": 1,
        "name": name,
        "description": about,
        "dataset": dataclasses.asdict(_finals_dataset(dataset)),
        "metric": {"name": METRIC, "mode": "max"},
        "fidelity": {"min": plan.epochs, "max": plan.epochs},
        "sampler": {"type": "random", "seed": plan.seed},
        "scheduler": {"type": "none"},
        "budget": {"trials": plan.seeds * len(configs), "concurrent": plan.concurrent},
        "resources_per_trial": plan.resources.model_dump(by_alias=True),
        "fixed": fixed,
        "parameters": {
            field: {"type": "categorical", "choices": list(dict.fromkeys(values))}
            for field, values in parameters.items()
        },
        "initial": rows * plan.seeds,
    }
    # Passed as text, so that errors are reported as for any other space. JSON is valid YAML and keeps all
    # digits.
    return parse_space(json.dumps(document, indent=1), source=f"the space of {name}", overrides=overrides)


def _split_fields(configs: Sequence[TrialConfig]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the non-default values that all configurations share, and each one's values of other fields."""
    fixed: dict[str, Any] = {}
    own: dict[str, list[Any]] = {}
    for name, default in TrialConfig().to_dict().items():
        values = [getattr(config, name) for config in configs]
        if name == _KEPT_PARAMETER or any(value != values[0] for value in values):
            own[name] = values
        elif values[0] != default:
            fixed[name] = values[0]
    return fixed, own


def _config(result: StudyResult, trial: TrialRecord) -> TrialConfig:
    config = trial.config(result.space)
    if config is None:
        rule = "a trial can be trained again only if its configuration is known"
        got = f"trial {trial.number} of {result.name}, recorded before its space.yaml was edited"
        raise StorageError(format_error(rule, got=got, where="--from"))
    return config

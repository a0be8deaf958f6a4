"""From what is to be retrained to a space that the engine runs: every row of it, and nothing else.

The space's metric is of the test images, so nothing is held out, nothing is stopped early and nothing is
drawn: see :mod:`tune_rescon.spaces.rules`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from tune_rescon.config import DatasetConfig, TrialConfig, TrialState
from tune_rescon.errors import ConfigError, StorageError, format_error, unknown_name_message
from tune_rescon.spaces import Resources, Space, parse_space
from tune_rescon.tuning import StudyResult, TrialRecord

__all__ = [
    "METRIC",
    "RECIPES",
    "Recipe",
    "epochs_within",
    "finalists",
    "finals_seconds",
    "finals_space",
    "find_recipe",
    "local_resources",
    "of_dataset",
    "preset_config",
    "read_duration",
    "seconds_per_epoch",
]


_DURATION = re.compile(r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?")


def read_duration(text: str) -> float:
    """Seconds.

    >>> read_duration("2h"), read_duration("1h30m"), read_duration("90s")
    (7200.0, 5400.0, 90.0)

    Raises:
        ConfigError: it is none.
    """
    found = _DURATION.fullmatch(text)
    parts = [float(part or 0) for part in found.groups()] if found else [0.0]
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not seconds > 0:
        rule = "must be a time, such as 2h, 1h30m or 90s"
        raise ConfigError(format_error(rule, got=repr(text), where="--budget"))
    return seconds


def finals_seconds(epoch_seconds: float, *, epochs: int, trainings: int, slots: int) -> float:
    """Wall time of ``trainings`` of ``epochs`` epochs, ``slots`` at once.

    >>> finals_seconds(10, epochs=3, trainings=5, slots=2)
    90
    """
    return math.ceil(trainings / slots) * epochs * epoch_seconds


def epochs_within(
    seconds: float, epoch_seconds: float, configs: Sequence[TrialConfig], *, trainings: int, slots: int
) -> int:
    """The most epochs for which :func:`finals_seconds` is at most ``seconds``.

    Raises:
        ConfigError: they do not reach past the warm-up.
    """
    epochs = int(seconds / finals_seconds(epoch_seconds, epochs=1, trainings=trainings, slots=slots))
    least = max(1, math.ceil(max(config.warmup_epochs for config in configs)))
    if epochs < least:
        needed = finals_seconds(epoch_seconds, epochs=least, trainings=trainings, slots=slots)
        rule = f"must be enough for {least} epochs of {trainings} trainings, about {needed:.0f} s"
        hint = "Give more, or smaller --top or --seeds."
        raise ConfigError(format_error(rule, got=f"{seconds:.0f} s", where="--budget", hint=hint))
    return epochs


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long a network is trained, and with what."""

    about: str
    epochs: int
    settings: Mapping[str, Any]
    """TrialConfig's fields; those left out have its defaults."""


#: The paper's 160,000 iterations on batches of 64 of CIFAR's 50,000 images are 204.8 epochs.
_PAPER_EPOCHS: Final = 205

RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        # Wang et al., section 4.1; the rate falls at 64k and 96k of 160k iterations.
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
        # Its README has no weight decay: the paper's is taken.
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
    """The recipe of a name.

    Raises:
        ConfigError: there is none; the names there are, are listed.
    """
    if name not in RECIPES:
        raise ConfigError(unknown_name_message("recipe", name, list(RECIPES), where="--recipe"))
    return RECIPES[name]


#: What finalists are compared by.
METRIC: Final = "test_accuracy"

#: The field that every finalist has as a parameter, lest a space of one finalist have none.
_ALWAYS: Final = "learning_rate"


def finalists(result: StudyResult, top: int) -> tuple[TrialConfig, ...]:
    """The configurations of the best ``top`` trials that finished, the best first; none twice.

    Raises:
        StorageError: no trial has.
    """
    found: dict[TrialConfig, None] = {}
    for trial in sorted(result.trials, key=lambda trial: trial.rank_key()):
        if trial.state is TrialState.FINISHED and math.isfinite(trial.value):
            found.setdefault(_config(result, trial))
    if not found:
        rule = "a search must have a trial that reached its last epoch"
        got = f"{result.name}, which has none" + (" yet" if result.state.value == "running" else "")
        raise StorageError(format_error(rule, got=got, where="--from"))
    return tuple(found)[:top]


def seconds_per_epoch(result: StudyResult, configs: Sequence[TrialConfig]) -> float:
    """Mean seconds of an epoch, over the epochs that trials of these configurations have trained."""
    wanted = set(configs)
    trials = [trial for trial in result.trials if _config(result, trial) in wanted]
    return sum(trial.seconds for trial in trials) / sum(trial.epochs for trial in trials)


def of_dataset(configs: Sequence[TrialConfig], space: Space) -> tuple[tuple[TrialConfig, ...], DatasetConfig]:
    """The images of configurations that were found by searching ``space``, which may search datasets too.

    Where they share one, it becomes the finals' own, and no field of theirs.
    """
    names = list(dict.fromkeys(config.dataset or space.dataset.name for config in configs))
    if len(names) > 1:
        named = tuple(
            dataclasses.replace(config, dataset=config.dataset or space.dataset.name) for config in configs
        )
        return named, space.dataset_config(names[0])
    return tuple(dataclasses.replace(config, dataset=None) for config in configs), space.dataset_config(
        names[0]
    )


def preset_config(preset: str, recipe: Recipe, *, epochs: int, image_size: int | None) -> TrialConfig:
    """A network by name, trained by a recipe for ``epochs``: its warm-up keeps its share of them.

    Raises:
        ConfigError: a value breaks its rule.
    """
    warmup = recipe.settings.get("warmup_epochs", 0) * epochs / recipe.epochs
    own = {"preset": preset, "image_size": image_size, "warmup_epochs": warmup}
    return TrialConfig.from_dict({**recipe.settings, **own})


def local_resources() -> Resources:
    """What one training takes of this machine, of which nothing else is known: a GPU where there is one."""
    import torch

    return Resources(cpu=min(4, os.cpu_count() or 1), gpu=1.0 if torch.cuda.is_available() else 0.0)


def finals_space(
    name: str,
    configs: Sequence[TrialConfig],
    *,
    dataset: DatasetConfig,
    epochs: int,
    seeds: int,
    resources: Resources,
    concurrent: int | None = None,
    seed: int = 0,
    about: str = "",
    overrides: Sequence[str] = (),
) -> Space:
    """Each of ``configs`` ``seeds`` times: trial ``n`` is configuration ``n % len(configs)``.

    One that is interrupted early has then trained all of them equally often.

    Args:
        name: of the search that the finals are.
        configs: different from each other.
        dataset: what they were searched on. Nothing of it is held out, but for validation images where there
            are no test images for the networks to be judged by.
        epochs: of each training.
        seeds: trainings of each configuration, which differ by their seed.
        resources: of each training.
        concurrent: trainings at once at most.
        seed: of all of the seeds.
        about: what the space file says of itself.
        overrides: ``KEY=VALUE`` of the space file, as ``--set`` takes them.

    Raises:
        SpaceError: a rule of spaces is broken, as by a network that the images are too small for.
    """
    fixed, parameters = _common_and_own(configs)
    rows = [{field: values[index] for field, values in parameters.items()} for index in range(len(configs))]
    document = {
        "version": 1,
        "name": name,
        "description": about,
        "dataset": dataclasses.asdict(dataclasses.replace(dataset, hold_out=False, without_test="val")),
        "metric": {"name": METRIC, "mode": "max"},
        "fidelity": {"min": epochs, "max": epochs},
        "sampler": {"type": "random", "seed": seed},
        "scheduler": {"type": "none"},
        "budget": {"trials": seeds * len(configs), "concurrent": concurrent},
        "resources_per_trial": resources.model_dump(by_alias=True),
        "fixed": fixed,
        "parameters": {
            field: {"type": "categorical", "choices": list(dict.fromkeys(values))}
            for field, values in parameters.items()
        },
        "initial": rows * seeds,
    }
    # As a text, so that what is wrong is said as of any other space. JSON is YAML, and has every digit.
    return parse_space(json.dumps(document, indent=1), source=f"the space of {name}", overrides=overrides)


def _common_and_own(configs: Sequence[TrialConfig]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What all configurations share, defaults left out; and of what they do not, each one's value."""
    fixed: dict[str, Any] = {}
    own: dict[str, list[Any]] = {}
    for name, default in TrialConfig().to_dict().items():
        values = [getattr(config, name) for config in configs]
        if name == _ALWAYS or any(value != values[0] for value in values):
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

"""Prepare the data of a search before Ray starts, so that bad images end the search before it begins."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tune_rescon.config import TrialConfig
from tune_rescon.data import (
    USUAL_STORE_SIZE,
    DatasetInfo,
    ImageDataset,
    describe,
    is_url,
    local_path,
    open_dataset,
)
from tune_rescon.data.decode import darkness_message, levels_text
from tune_rescon.data.opening import zero_end_message
from tune_rescon.errors import (
    ConfigError,
    DataError,
    NetworkError,
    counted,
    format_error,
    unknown_name_message,
)
from tune_rescon.metric_names import BY_CLASS, MAX_CLASSES_LOGGED, class_metric, custom_metric_name
from tune_rescon.models import ExternalSpec, describe_network
from tune_rescon.paths import expanded_path
from tune_rescon.spaces import CategoricalParameter, Parameter, Space, corners
from tune_rescon.tuning.cost_model import datasets_of
from tune_rescon.tuning.options import RunOptions

if TYPE_CHECKING:
    from tune_rescon.training.initial_weights import InitialWeights

__all__ = [
    "PreparedData",
    "cache_messages",
    "check_external_networks",
    "check_metric_classes",
    "check_metric_functions",
    "check_weights",
    "evaluation_messages",
    "external_trials",
    "largest_image_size",
    "metric_functions",
    "prepare_data",
    "read_weights",
    "with_absolute_paths",
    "with_store_size",
]


#: Fields that determine the side of a network's input.
_SIDE_FIELDS: Final = ("network", "preset", "layout", "depth", "image_size")

_PROGRESS = logging.getLogger("tune_rescon.progress")


def with_store_size(space: Space, recorded: Space | None) -> Space:
    """Return ``space`` with ``dataset.store_size`` filled in, if its dataset has a path but no store size.

    ``recorded`` is the newest space of a resumed search, whose images must not change.
    """
    dataset = space.dataset
    if dataset.path is None or dataset.store_size is not None:
        return space
    # In a record of an earlier version of this package, None means the size that its trials used.
    size = largest_image_size(space) if recorded is None else recorded.dataset.store_size
    return space.model_copy(update={"dataset": dataclasses.replace(dataset, store_size=size)})


def largest_image_size(space: Space) -> int:
    """Return the largest side of a network's input over the trials of ``space``, in pixels."""
    rows = [{}, *corners(space, _SIDE_FIELDS), *space.initial]
    return max(_image_size({**space.fixed, **row}) for row in rows)


def cache_messages(space: Space, info: DatasetInfo) -> list[str]:
    """Return messages about a folder's cache: its size, and whether images will be enlarged."""
    if info.cache_bytes is None or info.stored_images is None:
        return []
    squares = f"{counted(info.stored_images, 'square')} of {info.stored_side} pixels"
    lines = [f"the cache keeps {squares}: {_size(info.cache_bytes)} of disk on each node, mapped into memory"]
    kept = space.dataset.store_size or USUAL_STORE_SIZE
    largest = largest_image_size(space)
    if info.stored_side == kept < largest:
        lines.append(
            f"networks of image_size {largest} will see these squares enlarged: `--set"
            f" dataset.store_size={largest}` keeps the detail, in a new search"
        )
    return lines


def _image_size(values: Mapping[str, Any]) -> int:
    chosen = {name: value for name, value in values.items() if name in _SIDE_FIELDS}
    try:
        spec = describe_network(TrialConfig.from_dict(chosen), classes=2, in_channels=3)
    except NetworkError:
        # No trial can have this combination. The networks of a space are checked when the space is read.
        return 0
    return spec.image_size


def _size(count: int) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


_INIT_FROM: Final = "init_from"

#: Fields that determine the weights that a trial begins with, and the network of those weights.
_WEIGHT_FIELDS: Final = (
    *("dataset", _INIT_FROM, "network", "preset", "layout", "depth", "width", "image_size"),
    *("attention", "attention_learning", "mask", "added_reference"),
)


def metric_functions(space: Space) -> list[str]:
    """Return the user's functions of ``metric.log``, as ``module:function``."""
    return [name for name in space.metric.log if custom_metric_name(name) is not None]


def check_metric_functions(space: Space) -> None:
    """Import the user's functions of ``metric.log``, so that a mistake is found before the first trial.

    Raises:
        ConfigError: If a function cannot be imported.
    """
    if functions := metric_functions(space):
        # Imported here because it imports torch, which the driver of most searches does not need.
        from tune_rescon.training.metrics import load_metric

        for name in functions:
            load_metric(name)


def check_metric_classes(
    space: Space, info: DatasetInfo, *, val_labels_N: npt.NDArray[np.int64] | None = None
) -> None:
    """Check that the metrics of single classes that ``space`` names exist for a dataset.

    Args:
        space: The space to search.
        info: The description of the dataset.
        val_labels_N: The labels of the validation images; None before the images are prepared.

    Raises:
        ConfigError: If a class does not exist, or the dataset has too many classes for a metric of each.
        DataError: If the class of ``metric.name`` has no validation images.
    """
    asked = dict.fromkeys(space.metric.log, "metric.log") | {space.metric.name: "metric.name"}
    for name, where in asked.items():
        if name in BY_CLASS and info.classes > MAX_CLASSES_LOGGED:
            rule = f"metrics of every class are recorded for at most {MAX_CLASSES_LOGGED} classes"
            hint = (
                f"Name the classes that matter, as {name.removesuffix('_by_class')}/CLASS. The"
                " report has the best network's accuracy on every class."
            )
            got = f"{info.classes} in {info.name}"
            raise ConfigError(format_error(rule, got=got, where=where, hint=hint))
        parts = class_metric(name)
        if parts is not None and parts[1] not in info.class_names:
            raise ConfigError(unknown_name_message("class", parts[1], info.class_names, where=where))
    objective = class_metric(space.metric.name)
    if objective is None or val_labels_N is None:
        return
    if info.class_names.index(objective[1]) not in val_labels_N:
        rule = "the class by which trials are compared must have validation images"
        hint = "Set dataset.val_fraction higher, or put some into val/CLASS."
        raise DataError(format_error(rule, got=f"none of {objective[1]}", where="metric.name", hint=hint))


#: Fields that determine an external network (timm's or the user's) and its initial weights.
_EXTERNAL_FIELDS: Final = ("dataset", "network", "pretrained", "image_size", "drop_path")


def external_trials(space: Space) -> list[TrialConfig]:
    """Return one configuration for each external network in ``space`` and each set of its arguments.

    Among configurations that differ only in ``drop_path``, only the one with the largest rate is returned.
    """
    if not {"network"} & (space.fixed.keys() | space.parameters.keys()):
        return []
    known = {name: value for name, value in space.fixed.items() if name in _EXTERNAL_FIELDS}
    rows = [{**known, **chosen} for chosen in corners(space, _EXTERNAL_FIELDS)]
    configs = [TrialConfig.from_dict(row) for row in rows if row.get("network") is not None]
    configs.sort(key=lambda config: config.drop_path)
    return list({dataclasses.replace(config, drop_path=0.0): config for config in configs}.values())


def check_external_networks(space: Space, datasets: Mapping[str, DatasetInfo] | None = None) -> None:
    """Check the external networks of ``space``, so that a mistake is found before the first trial.

    Args:
        space: The space to search.
        datasets: The description of each dataset, by name. If None, because the images are not prepared yet,
            check only that the networks and their pretrained weights exist, for ten classes of colour images.

    Raises:
        NetworkError, ConfigError: If a network does not exist or does not map the images to logits, timm is
            not installed, or pretrained weights cannot be had.
    """
    for config in external_trials(space):
        # Imported here because it imports torch, which the driver of most searches does not need.
        from tune_rescon.models.external import check_exists, check_external

        images = None if datasets is None else datasets[config.dataset or space.dataset.name]
        classes, in_channels = (10, 3) if images is None else (images.classes, images.channels)
        spec = describe_network(config, classes=classes, in_channels=in_channels)
        assert isinstance(spec, ExternalSpec)
        if images is None:
            check_exists(spec, pretrained=config.pretrained)
        else:
            check_external(spec)


def read_weights(space: Space) -> dict[str, InitialWeights]:
    """Read the weight files that trials of ``space`` begin with, by path or URL.

    Raises:
        StorageError, NetworkError: If a file is missing, damaged, or not a file of initial weights.
    """
    searched = space.parameters.get(_INIT_FROM)
    choices = (
        searched.choices if isinstance(searched, CategoricalParameter) else (space.fixed.get(_INIT_FROM),)
    )
    sources = [source for source in choices if source is not None]
    if not sources:
        return {}
    # Imported here because it imports torch, which the driver of most searches does not need.
    from tune_rescon.training.initial_weights import read_initial

    external = bool(external_trials(space))
    return {source: read_initial(source, external=external) for source in sources}


def check_weights(
    space: Space, weights: Mapping[str, InitialWeights], datasets: Mapping[str, DatasetInfo]
) -> None:
    """Check that every network of ``space`` matches the network of its initial weights.

    Messages tell the user of which files the classifier is not used, or is used although the file does not
    record its classes.

    Args:
        space: The space to search.
        weights: The initial weights, by path or URL, from :func:`read_weights`.
        datasets: The description of each dataset, by name.

    Raises:
        NetworkError: If a network does not match. The message names the trials, the difference and the values
            to choose.
    """
    if not weights:
        return
    messages: list[str] = []
    for chosen in corners(space, _WEIGHT_FIELDS):
        config = TrialConfig.from_dict({**space.fixed, **chosen})
        if config.init_from is None:
            continue
        images = datasets[config.dataset or space.dataset.name]
        spec = describe_network(config, classes=images.classes, in_channels=images.channels)
        others = ", ".join(f"{name} {value}" for name, value in chosen.items() if name != _INIT_FROM)
        where = f"{_INIT_FROM}, with {others}" if others else _INIT_FROM
        initial = weights[config.init_from]
        initial.check_fits(spec, where=where)
        if (message := initial.classifier_message(spec, images.class_names)) is not None:
            messages.append(f"{images.name}: {message}")
    for message in dict.fromkeys(messages):
        _PROGRESS.info(message)


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """The datasets of a search in this machine's cache, by name."""

    infos: Mapping[str, DatasetInfo]
    digests: Mapping[str, str]
    """The digest of each dataset's images, labels and splits; it is equal if these are equal."""


def with_absolute_paths(space: Space) -> Space:
    """Return ``space`` with absolute paths of the images and of ``init_from``.

    Worker processes do not run in the driver's directory. The process that resumes the search may not either.
    """
    parameters = {name: _absolute_parameter(name, parameter) for name, parameter in space.parameters.items()}
    rows = tuple(_absolute_values(row) for row in space.initial)
    dataset = space.dataset
    if dataset.path is not None and not is_url(dataset.path):
        dataset = dataclasses.replace(dataset, path=str(local_path(dataset.path)))
    changed = {"fixed": _absolute_values(space.fixed), "parameters": parameters, "initial": rows}
    return space.model_copy(update={**changed, "dataset": dataset})


def _absolute_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _absolute(value) if name == _INIT_FROM else value for name, value in values.items()}


def _absolute_parameter(name: str, parameter: Parameter) -> Parameter:
    """Make the choices of ``init_from`` absolute, also in another parameter's ``when`` condition."""
    changes: dict[str, Any] = {}
    if name == _INIT_FROM and isinstance(parameter, CategoricalParameter):
        changes["choices"] = tuple(map(_absolute, parameter.choices))
    if parameter.when is not None and parameter.when.parameter == _INIT_FROM:
        within = tuple(map(_absolute, parameter.when.within))
        changes["when"] = parameter.when.model_copy(update={"within": within})
    return parameter.model_copy(update=changes)


def _absolute(source: Any) -> Any:
    if source is None or is_url(source):
        return source
    return str(expanded_path(source, where=_INIT_FROM).resolve())


def prepare_data(space: Space, options: RunOptions) -> PreparedData:
    """Decode the images that are not in this machine's cache yet.

    Messages to the user describe each dataset. Before the first image is decoded, they list the files of a
    folder that are read and those that are left out.

    Args:
        space: The space whose datasets are prepared.
        options: The options with the directories of the datasets and the cache.

    Raises:
        DataError: If images are missing, unreadable or too few.
    """
    infos: dict[str, DatasetInfo] = {}
    digests: dict[str, str] = {}
    for dataset in datasets_of(space):
        info = describe(dataset, data_root=options.data_root)
        check_metric_classes(space, info)
        account = info.account.lines() if info.account else []
        evaluation = evaluation_messages(space, info) if info.account else []
        for line in (*account, *cache_messages(space, info), *evaluation):
            _PROGRESS.info(f"{dataset.name}: {line}")
        images = open_dataset(
            dataset,
            data_root=options.data_root,
            cache_root=options.cache_root,
            progress=options.show_progress,
        )
        if images.levels is not None:
            _PROGRESS.info(f"{dataset.name}: {levels_text(images.levels)}")
        if info.account and (message := darkness_message(images.mean, images.std)) is not None:
            _PROGRESS.warning(f"{dataset.name}: {message}")
        info = _decoded(info, images)
        if info.account and info.account.broken:
            _PROGRESS.warning(f"{dataset.name}: {info.account.lines()[-1]}")
        for line in filter(None, [*images.repeats, zero_end_message(images.zero_ends)]):
            _PROGRESS.warning(f"{dataset.name}: {line}")
        check_metric_classes(space, info, val_labels_N=images.val.labels_N)
        if space.metric.of_test_images and not info.test_images:
            rule = "there must be test images on which the networks are evaluated"
            hint = "Put some into test/CLASS beside train/, or set dataset.test_fraction."
            raise DataError(format_error(rule, got=f"none in {info.name}", where="dataset", hint=hint))
        infos[dataset.name], digests[dataset.name] = info, images.digest
    return PreparedData(infos=infos, digests=digests)


def _decoded(info: DatasetInfo, images: ImageDataset) -> DatasetInfo:
    """Return ``info`` without the images that cannot be decoded."""
    return dataclasses.replace(
        info,
        train_images=len(images.train),
        val_images=len(images.val),
        test_images=len(images.test),
        account=info.account and info.account.without(images.broken),
    )


def evaluation_messages(space: Space, info: DatasetInfo) -> list[str]:
    """Return a message naming the images on which `train` will evaluate the winners of a search.

    The user learns this before the search uses any paid resources.
    """
    if space.metric.of_test_images:
        message = (
            f"there are no test images, so the networks are evaluated on the {info.test_images} validation"
            " images and not trained on them; networks that a search chose by these images do slightly worse"
            " on others"
        )
        return [message] if info.validation_tests else []
    if info.test_images:
        return [f"`tune_rescon.train` will evaluate the winners on the {info.test_images} test images"]
    message = (
        f"there are no test images: `tune_rescon.train` will evaluate the winners on the {info.val_images}"
        " validation images that chose them, unless `--set dataset.test_fraction=0.15` holds some out now"
    )
    return [message]

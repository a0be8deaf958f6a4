"""Warm start: the sampler of a new search learns from the trials of an earlier search."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import TrialState
from tune_rescon.metric_names import MetricAt
from tune_rescon.spaces import Overlap, Space, overlap_message, place_config, to_optuna
from tune_rescon.tuning.input_digests import (
    changed_digests,
    code_digests,
    recorded_code,
    recorded_images,
    recorded_weights,
    weight_digests,
)
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.sampler import most_informative
from tune_rescon.tuning.search_storage import find_search
from tune_rescon.tuning.space_versions import open_recorded
from tune_rescon.tuning.study import METRIC_AT, StudyRecord
from tune_rescon.tuning.trial import TrialRecord

if TYPE_CHECKING:
    from tune_rescon.training.initial_weights import InitialWeights

__all__ = [
    "overlapping_trials",
    "record_warm_start",
    "warm_start_trials",
]


#: The study's attribute that stores the earlier trials. They are copied, because later changes in the other
#: search must not change the draws of this one.
_ATTRIBUTE: Final = "warm_start"

_PROGRESS = logging.getLogger("tune_rescon.progress")


def overlapping_trials(
    space: Space,
    options: RunOptions,
    *,
    digests: Mapping[str, str],
    weights: Mapping[str, InitialWeights],
    cost: Callable[[TrialRecord, int], float] | None = None,
) -> list[TrialRecord]:
    """Return the ended trials of the search ``options.warm_start`` that ``space`` can also draw.

    Only the trials that :func:`.most_informative` selects are returned. A message reports how many overlap.

    Args:
        space: The space of the new search.
        options: The options of the new search. ``warm_start`` names the earlier search.
        digests: The digest of the images and splits of each dataset of the new search, by name.
        weights: The initial weights of the new search, by path or URL.
        cost: Returns the second objective of a trial after the given number of epochs in the new search; None
            if it has one objective. The earlier search may have had another second objective, or none.

    Raises:
        StorageError: If the earlier search does not exist or its study cannot be read.
    """
    other = find_search(options, options.warm_start or "", where="--warm-start", with_study=True)
    shared = options.study_url is not None
    record, versions = open_recorded(options.study_of(other), other, shared=shared)
    ended = [trial for trial in record.trials() if trial.state.is_final]
    theirs, before = versions.newest, recorded_images(record)
    changed = changed_digests(before, digests)
    name = theirs.dataset.name
    if name == space.dataset.name and name in before and before[name] == digests.get(name):
        # The same images and splits, even if they have moved.
        theirs = theirs.model_copy(update={"dataset": space.dataset})
    replaced = changed_digests(recorded_weights(record), weight_digests(weights))
    placed = [_placed(space, theirs, trial, replaced) for trial in ended]
    usable = [
        dataclasses.replace(
            trial,
            parameters=to_optuna(overlap.sampled),
            # The earlier search may have had the other direction of the metric, or another `metric.at`.
            maximize=space.metric.mode == "max",
            at=space.metric.at,
            cost=None if cost is None else cost(trial, trial.epochs),
        )
        for trial, overlap in zip(ended, placed, strict=True)
        if overlap.sampled is not None
    ]
    _PROGRESS.info(overlap_message(other.name, placed))
    if usable and changed:
        _PROGRESS.warning(
            f"{other.name} had other images in {', '.join(sorted(changed))}: its values may be higher or"
            " lower than on the images of this search, and the sampler learns from both"
        )
    changed_code = changed_digests(recorded_code(record), code_digests(space))
    if usable and changed_code:
        _PROGRESS.warning(
            f"{other.name} had other code of {', '.join(changed_code)}: its values may not be comparable"
            " with those of this search, and the sampler learns from both"
        )
    kept = most_informative(usable)
    return [trial for trial in usable if trial.number in kept]


def _placed(space: Space, theirs: Space, trial: TrialRecord, replaced: Collection[str]) -> Overlap:
    """Place a trial in ``space``; ``replaced`` are the files of ``init_from`` whose weights have changed."""
    if trial.origin is None:
        return Overlap(sampled=None, differs=("an unknown configuration",))
    if trial.origin.config["init_from"] in replaced:
        return Overlap(sampled=None, differs=("the weights in init_from",))
    return place_config(space, trial.origin.config, theirs)


def record_warm_start(record: StudyRecord, trials: Sequence[TrialRecord]) -> None:
    """Store in the record the earlier trials that its sampler learned from at the start."""
    record.set_attribute(_ATTRIBUTE, [_to_dict(trial) for trial in trials])


def warm_start_trials(record: StudyRecord) -> list[TrialRecord]:
    """Return the earlier trials that the sampler learned from when this search began."""
    attributes = record.attributes()
    at: MetricAt = attributes.get(METRIC_AT, "best")
    # The epoch whose metric is the value is chosen as in the trials of this search.
    return [
        dataclasses.replace(_from_dict(value, maximize=record.maximize), at=at)
        for value in attributes.get(_ATTRIBUTE) or []
    ]


def _to_dict(trial: TrialRecord) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.value,
        "parameters": dict(trial.parameters),
        "metric": trial.metric,
        "values": list(trial.values),
        "cost": trial.cost,
    }


def _from_dict(value: dict[str, Any], *, maximize: bool) -> TrialRecord:
    if "values" in value:
        values = tuple(value["values"])
    else:
        # An earlier version of this package stored only the last value.
        values = (*((math.nan,) * (value["epochs"] - 1)), value["value"]) if value["epochs"] else ()
    return TrialRecord(
        number=value["number"],
        state=TrialState(value["state"]),
        parameters=value["parameters"],
        metric=value["metric"],
        maximize=maximize,
        values=values,
        cost=value["cost"],
    )

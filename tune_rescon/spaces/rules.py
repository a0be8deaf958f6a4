"""What must hold between the sections of a space file.

Judged on a :class:`Draft`: what could be read of the file. So one broken section does not hide what is wrong
in the others, and every rule looks only at what is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from tune_rescon.config import DatasetConfig
from tune_rescon.data import list_datasets
from tune_rescon.errors import explain, unknown_name
from tune_rescon.spaces.combinations import combinations, is_among, is_finite
from tune_rescon.spaces.fields import broken_conditions, broken_fields, unknown_fields
from tune_rescon.spaces.networks import missing_networks
from tune_rescon.spaces.parameters import CategoricalParameter, Parameter
from tune_rescon.spaces.problems import Path, Problem, dotted, shown
from tune_rescon.spaces.rows import broken_rows
from tune_rescon.spaces.sections import Budget, Fidelity, Metric, Resources, Sampler, Scheduler
from tune_rescon.spaces.shares import broken_shares

__all__ = ["FOLDER_ONLY", "Draft", "broken_rules"]

#: Fields of a dataset that only a person's own images have.
FOLDER_ONLY: Final = ("path", "train", "val", "test", "ignore")

#: Points of a grid: a larger one is a mistake, not a plan.
_LARGEST_GRID: Final = 10_000

#: What Optuna's samplers of these types would silently draw at random instead of modelling.
_MODELS_NO_WHEN: Final = ("gp", "cmaes")
_MODELS_NO_CATEGORICAL: Final = ("cmaes",)
_MODELS_NO_SINGLE: Final = ("cmaes",)

#: What raises when a study has two objectives.
_ONE_OBJECTIVE: Final = ("cmaes",)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The sections that could be read; None (or empty) for those that could not."""

    dataset: DatasetConfig | None = None
    metric: Metric | None = None
    fidelity: Fidelity | None = None
    sampler: Sampler | None = None
    scheduler: Scheduler | None = None
    budget: Budget | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    unread: Sequence[str] = ()
    """Names of the parameters that could not be read: what relates parameters waits until there are none."""
    initial: Sequence[Mapping[str, Any]] = ()
    resources_per_trial: Resources | None = None


def broken_rules(draft: Draft) -> Iterator[Problem]:
    """Every rule between sections that ``draft`` breaks."""
    fields = list(broken_fields(draft.fixed, draft.parameters))
    yield from fields
    yield from unknown_fields(draft.unread)
    yield from _broken_dataset(draft)
    yield from _broken_judging(draft)
    if draft.unread or not draft.parameters:
        return
    conditions = list(broken_conditions(draft.parameters))
    yield from conditions
    yield from _broken_scheduler(draft)
    if fields or conditions:
        return
    yield from _broken_warmup(draft)
    if draft.resources_per_trial:
        yield from broken_shares(draft.resources_per_trial.workers, draft.fixed, draft.parameters)
    yield from broken_rows(draft.initial, draft.parameters)
    yield from _broken_sampler(draft)
    yield from missing_networks(draft.fixed, draft.parameters)


def _broken_dataset(draft: Draft) -> Iterator[Problem]:
    """Known names, the section's among those searched; a path with ``folder``, and only there."""
    if draft.dataset is None:
        return
    wanted: dict[Path, Any] = {("dataset", "name"): draft.dataset.name}
    searched = draft.parameters.get("dataset")
    if isinstance(searched, CategoricalParameter):
        if not is_among(draft.dataset.name, searched.choices):
            rule = f"must be one of the searched datasets {', '.join(map(str, searched.choices))}"
            text = explain(rule, got=draft.dataset.name)
            yield Problem(path=("dataset", "name"), text=text)
        for index, name in enumerate(searched.choices):
            wanted["parameters", "dataset", "choices", index] = name
    for path, name in wanted.items():
        if name not in list_datasets():
            yield Problem(path=path, text=unknown_name("dataset", name, list_datasets()))
    if "folder" in wanted.values():
        if draft.dataset.path is None:
            hint = "Give it with --set dataset.path=DIR, or the URL of a .zip."
            rule = "`dataset.path`, a directory or .zip of images, is missing"
            yield Problem(path=("dataset",), text=explain(rule, hint=hint))
        return
    for key in (*FOLDER_ONLY, "resize"):
        given = getattr(draft.dataset, key)
        if given not in (None, "crop"):
            rule = f"only the dataset `folder` has {'a path' if key == 'path' else f'`{key}`'}"
            yield Problem(path=("dataset", key), text=explain(rule, got=shown(given)))


def _broken_judging(draft: Draft) -> Iterator[Problem]:
    """Images that are held out judge, or the test images do; by those nothing may be chosen."""
    if draft.metric is None or draft.dataset is None:
        return
    last = draft.metric.of_test_images
    if last == draft.dataset.hold_out:
        rule = "`dataset.hold_out: false` goes with a metric of the test images, and with no other"
        held = str(draft.dataset.hold_out).lower()
        text = explain(rule, got=f"hold_out {held} and {draft.metric.name}")
        yield Problem(path=("metric", "name"), text=text)
    elif last and draft.scheduler and draft.scheduler.stops_trials:
        rule = "must be none where the test images judge: they are looked at once, after the last epoch"
        yield Problem(path=("scheduler", "type"), text=explain(rule, got=draft.scheduler.type))
    elif last and draft.budget and draft.budget.trials > len(draft.initial):
        rule = f"must be at most the {len(draft.initial)} rows of `initial` where the test images judge"
        hint = "A search chooses by validation images; `tune_rescon.train` judges what it chose."
        text = explain(rule, got=str(draft.budget.trials), hint=hint)
        yield Problem(path=("budget", "trials"), text=text)


def _broken_scheduler(draft: Draft) -> Iterator[Problem]:
    """``group_by`` names a categorical that every trial has."""
    name = draft.scheduler.group_by if draft.scheduler else None
    if name is None:
        return
    known = [
        other
        for other, parameter in draft.parameters.items()
        if isinstance(parameter, CategoricalParameter) and parameter.when is None
    ]
    if name not in known:
        rule = "must name a categorical parameter without `when`"
        there = f"There: {', '.join(known)}." if known else "There is none."
        yield Problem(path=("scheduler", "group_by"), text=explain(rule, got=shown(name), hint=there))


def _broken_warmup(draft: Draft) -> Iterator[Problem]:
    """The warm-up ends before training does, and before the first trial may be stopped."""
    if draft.fidelity is None:
        return
    path, epochs = _longest_warmup(draft)
    if epochs > draft.fidelity.max:
        rule = f"must be at most `fidelity.max` ({draft.fidelity.max})"
        yield Problem(path=path, text=explain(rule, got=shown(epochs)))
    elif draft.scheduler and draft.scheduler.stops_trials and epochs > draft.fidelity.min:
        rule = f"must cover the warm-up (`{dotted(path)}`: {shown(epochs)}), within which a rung says nothing"
        hint = f"Write `min: {math.ceil(epochs)}`."
        text = explain(rule, got=str(draft.fidelity.min), hint=hint)
        yield Problem(path=("fidelity", "min"), text=text)


def _longest_warmup(draft: Draft) -> tuple[Path, float]:
    """The most epochs of warm-up that a trial can have, and where they stand."""
    parameter = draft.parameters.get("warmup_epochs")
    if isinstance(parameter, CategoricalParameter):
        return ("parameters", "warmup_epochs", "choices"), max(parameter.choices)
    if parameter:
        return ("parameters", "warmup_epochs", "high"), parameter.high
    return ("fixed", "warmup_epochs"), draft.fixed.get("warmup_epochs", 0)


def _broken_sampler(draft: Draft) -> Iterator[Problem]:
    """Each sampler gets only what it can take."""
    if draft.sampler is None:
        return
    kind = draft.sampler.type
    against = draft.metric and draft.metric.against
    if against and kind in _ONE_OBJECTIVE:
        rule = f"sampler {kind} takes one objective"
        hint = "Use `sampler.type: tpe`, nsga2 or gp, or leave `metric.against` out."
        text = explain(rule, got=f"`metric.against: {against}` too", hint=hint)
        yield Problem(path=("sampler", "type"), text=text)
    if kind == "grid":
        yield from _broken_grid(draft)
    if kind in _MODELS_NO_SINGLE and len(draft.parameters) == 1:
        text = explain(f"sampler {kind} needs two parameters", got="one", hint="Use `sampler.type: tpe`.")
        yield Problem(path=("sampler", "type"), text=text)
    for name, parameter in draft.parameters.items():
        path = ("parameters", name)
        if kind in _MODELS_NO_WHEN and parameter.when:
            text = explain(f"sampler {kind} takes no `when`", got="one", hint="Use `sampler.type: tpe`.")
            yield Problem(path=(*path, "when"), text=text)
        if kind in _MODELS_NO_CATEGORICAL and isinstance(parameter, CategoricalParameter):
            text = explain(
                f"sampler {kind} takes numbers only", got="a categorical", hint="Use `sampler.type: tpe`."
            )
            yield Problem(path=path, text=text)


def _broken_grid(draft: Draft) -> Iterator[Problem]:
    """A grid can be listed, and no trial is asked for by hand."""
    if draft.initial:
        text = explain(
            "a grid runs every combination; `initial` must be empty", got=f"{len(draft.initial)} rows"
        )
        yield Problem(path=("initial",), text=text)
    endless = [name for name, parameter in draft.parameters.items() if not is_finite(parameter)]
    for name in endless:
        text = explain("sampler grid needs values it can list", got="a float without `step`")
        yield Problem(path=("parameters", name), text=text)
    if endless:
        return
    points = sum(1 for _ in islice(combinations(draft.parameters), _LARGEST_GRID + 1))
    if points > _LARGEST_GRID:
        text = explain(f"a grid must have at most {_LARGEST_GRID} points", got="more")
        yield Problem(path=("parameters",), text=text)

"""The rules between the sections of a space file.

The rules check a :class:`PartialSpace`: the sections that could be read. An unreadable section therefore does
not hide what is wrong in the others, and every rule checks only the sections that it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from tune_rescon.config import DatasetConfig, TrialConfig, check_field, field_names, field_rule
from tune_rescon.data import list_datasets
from tune_rescon.errors import format_error, unknown_name_message
from tune_rescon.spaces.networks import missing_networks, only_rows
from tune_rescon.spaces.parameters import (
    CategoricalParameter,
    IntParameter,
    Parameter,
    combinations,
    is_active,
    is_among,
    is_finite,
)
from tune_rescon.spaces.sections import Budget, Fidelity, Metric, Resources, Sampler, Scheduler
from tune_rescon.spaces.yaml_document import Path, Problem, dotted, quoting, shown

__all__ = [
    "FOLDER_ONLY",
    "PartialSpace",
    "broken_conditions",
    "broken_fields",
    "broken_rows",
    "broken_shares",
    "check_rules",
    "field_problem",
    "holds_text",
    "unknown_fields",
    "why_outside",
]


#: Other tools' names for our fields.
_FOREIGN: Final[Mapping[str, str]] = {
    "lr": "write `learning_rate`",
    "wd": "write `weight_decay`",
    "l2": "write `weight_decay`",
    "bs": "write `batch_size`",
    "batch": "write `batch_size`",
    "model": "write `preset`, or `layout` and `depth`, or `network`",
    "arch": "write `preset`, or `layout` and `depth`, or `network`",
    "img_size": "write `image_size`",
    "epochs": "write `fidelity.max`",
    "max_epochs": "write `fidelity.max`",
    "seed": "write `sampler.seed`",
    "scheduler": "write `schedule`",
    "stochastic_depth": "write `drop_path`",
    "clip_grad": "write `gradient_clip`",
}


def broken_fields(fixed: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> Iterator[Problem]:
    """Yield unknown names, names both fixed and searched, and values or bounds that their field refuses."""
    for name, value in fixed.items():
        yield from _broken(("fixed", name), name, {(): value})
    if "dataset" in fixed:
        text = format_error(
            "the images of every trial are named in the section `dataset`", got="dataset here"
        )
        yield Problem(path=("fixed", "dataset"), text=text)
    for name, parameter in parameters.items():
        yield from _broken(("parameters", name), name, _limits(parameter))
        if name in fixed:
            hint = f"`--set {name}=VALUE` fixes it instead of searching it."
            text = format_error(
                "a field is fixed or searched, not both", got=f"{name} in `fixed` too", hint=hint
            )
            yield Problem(path=("parameters", name), text=text)
        if isinstance(parameter, CategoricalParameter):
            yield from _repeated(name, parameter)


def unknown_fields(names: Iterable[str]) -> Iterator[Problem]:
    """Yield the names in ``parameters`` that are no field of a trial."""
    yield from (_unknown(("parameters", name), name) for name in names if name not in field_names())


def field_problem(path: Path, name: str, value: Any) -> Problem | None:
    """Return the problem with ``value`` as a field of TrialConfig, if it has one.

    Args:
        path: the place of the problem.
        name: the field, which must exist.
        value: the value.
    """
    rule = check_field(name, value)
    if rule is None:
        return None
    hint = quoting(path[-1], value) if holds_text(name) and path[-1] == name else ""
    return Problem(path=path, text=format_error(rule, got=shown(value), hint=hint))


def holds_text(name: str, kind: type = TrialConfig) -> bool:
    """Return whether a configuration's field holds free text, instead of one of a few words."""
    rule = field_rule(name, kind)
    return not rule.choices and set(rule.kinds) <= {str, type(None)}


def _broken(path: Path, name: str, values: Mapping[Path, Any]) -> Iterator[Problem]:
    if name not in field_names():
        yield _unknown(path, name)
        return
    for below, value in values.items():
        problem = field_problem((*path, *below), name, value)
        if problem:
            yield problem


def _unknown(path: Path, name: str) -> Problem:
    answer = unknown_name_message("parameter", name, field_names())
    hint = f" That is another tool's word: {_FOREIGN[name]}." if name in _FOREIGN else ""
    return Problem(path=path, text=answer + hint)


def _limits(parameter: Parameter) -> dict[Path, Any]:
    """Return the values of a parameter that its field must accept: every choice, or both bounds."""
    if isinstance(parameter, CategoricalParameter):
        return {("choices", index): choice for index, choice in enumerate(parameter.choices)}
    return {("low",): parameter.low, ("high",): parameter.high}


def _repeated(name: str, parameter: CategoricalParameter) -> Iterator[Problem]:
    for index, choice in enumerate(parameter.choices):
        if is_among(choice, parameter.choices[:index]):
            text = format_error("choices must differ", got=f"{shown(choice)} again")
            yield Problem(path=("parameters", name, "choices", index), text=text)


def broken_conditions(parameters: Mapping[str, Parameter]) -> Iterator[Problem]:
    """Check that each ``when`` names a categorical declared above it, and some of that one's choices."""
    above: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        if parameter.when:
            path = ("parameters", name, "when")
            parent = above.get(parameter.when.parameter)
            if isinstance(parent, CategoricalParameter):
                yield from _strange_values(path, parameter.when.within, parent)
            else:
                yield Problem(path=(*path, "parameter"), text=_no_parent(parameter.when.parameter, above))
        above[name] = parameter


def _strange_values(path: Path, values: tuple[Any, ...], parent: CategoricalParameter) -> Iterator[Problem]:
    for index, value in enumerate(values):
        if not is_among(value, parent.choices):
            rule = f"must be one of the choices {', '.join(map(shown, parent.choices))}"
            yield Problem(path=(*path, "in", index), text=format_error(rule, got=shown(value)))


def _no_parent(name: str, above: Mapping[str, Parameter]) -> str:
    known = [other for other, parameter in above.items() if isinstance(parameter, CategoricalParameter)]
    rule = "must name a categorical parameter declared above this one"
    there = f"There: {', '.join(known)}." if known else "There are none."
    return format_error(rule, got=shown(name), hint=there)


#: How far a number may be from a step, in steps, and still count as on it: Optuna's own tolerance.
_STEP_TOLERANCE = 1e-8


def broken_rows(rows: Sequence[Mapping[str, Any]], parameters: Mapping[str, Parameter]) -> Iterator[Problem]:
    """Check that every row of ``initial`` gives each active parameter, and no other, a value in its range."""
    for index, row in enumerate(rows):
        path = ("initial", index)
        for name in row:
            if name not in parameters:
                yield Problem(path=(*path, name), text=unknown_name_message("parameter", name, parameters))
        for name, parameter in parameters.items():
            problem = _problem((*path, name), name, parameter, row)
            if problem:
                yield problem


def _problem(path: Path, name: str, parameter: Parameter, row: Mapping[str, Any]) -> Problem | None:
    active = is_active(parameter, row)
    if name not in row:
        return Problem(path=path, text=format_error("is missing")) if active else None
    if not active:
        assert parameter.when is not None, "a parameter without `when` is always active"
        values = ", ".join(map(shown, parameter.when.within))
        rule = f"must be left out unless {parameter.when.parameter} is {values}"
        return Problem(path=path, text=format_error(rule, got=shown(row[name])))
    broken = field_problem(path, name, row[name])
    if broken:
        return broken
    outside = why_outside(parameter, row[name])
    return Problem(path=path, text=format_error(outside, got=shown(row[name]))) if outside else None


def why_outside(parameter: Parameter, value: Any) -> str | None:
    """Return the rule that ``value`` breaks; None if the parameter can have this value.

    The parameter's field must accept ``value``.
    """
    if isinstance(parameter, CategoricalParameter):
        choices = ", ".join(map(shown, parameter.choices))
        return None if is_among(value, parameter.choices) else f"must be one of the choices {choices}"
    if not isinstance(value, int | float):
        return "must be a number"
    if isinstance(parameter, IntParameter) and value != int(value):
        return "must be a whole number"
    if not parameter.low <= value <= parameter.high:
        return f"must be in [{parameter.low}, {parameter.high}]"
    steps = (value - parameter.low) / parameter.step if parameter.step else 0
    if abs(steps - round(steps)) > _STEP_TOLERANCE:
        return f"must be a multiple of step {parameter.step} above {parameter.low}"
    return None


#: Images of a batch that each worker needs, because batch norm has no variance over one image.
_LEAST: Final = 2


def broken_shares(
    workers: int, fixed: Mapping[str, Any], parameters: Mapping[str, Parameter]
) -> Iterator[Problem]:
    """Check that the smallest batch has two images for each worker, if there are several.

    Args:
        workers: the number of workers of a trial.
        fixed: the fixed fields.
        parameters: the searched fields.
    """
    path, images = _smallest_batch(fixed, parameters)
    if workers > 1 and images < _LEAST * workers:
        rule = f"must be at least {_LEAST * workers}: {_LEAST} images for each of the {workers} `workers`"
        yield Problem(path=path, text=format_error(rule, got=str(images)))


def _smallest_batch(fixed: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> tuple[Path, int]:
    parameter = parameters.get("batch_size")
    if isinstance(parameter, CategoricalParameter):
        return ("parameters", "batch_size", "choices"), min(parameter.choices)
    if parameter:
        return ("parameters", "batch_size", "low"), int(parameter.low)
    return ("fixed", "batch_size"), fixed.get("batch_size", TrialConfig().batch_size)


#: Fields of a dataset that only a user's own images have.
FOLDER_ONLY: Final = ("path", "train", "val", "test", "ignore")

#: The most points of a grid: a larger grid is a mistake.
_LARGEST_GRID: Final = 10_000

#: Sampler types whose Optuna sampler silently draws such parameters at random instead of modelling them.
_MODELS_NO_WHEN: Final = ("gp", "cmaes")
_MODELS_NO_CATEGORICAL: Final = ("cmaes",)
_MODELS_NO_SINGLE: Final = ("cmaes",)

#: Samplers that raise if a study has two objectives.
_ONE_OBJECTIVE: Final = ("cmaes",)


@dataclass(frozen=True, kw_only=True)
class PartialSpace:
    """The sections that could be read; None (or empty) for the others."""

    dataset: DatasetConfig | None = None
    metric: Metric | None = None
    fidelity: Fidelity | None = None
    sampler: Sampler | None = None
    scheduler: Scheduler | None = None
    budget: Budget | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    unread: Sequence[str] = ()
    """Names of the parameters that could not be read. Rules between parameters wait until this is empty."""
    initial: Sequence[Mapping[str, Any]] = ()
    resources_per_trial: Resources | None = None


def check_rules(draft: PartialSpace) -> Iterator[Problem]:
    """Yield a problem for every rule between sections that ``draft`` breaks."""
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
    rows = list(broken_rows(draft.initial, draft.parameters))
    yield from rows
    yield from _broken_sampler(draft)
    known = only_rows(draft.initial, trials=draft.budget.trials) if draft.budget and not rows else ()
    yield from missing_networks(draft.fixed, draft.parameters, known)


def _broken_dataset(draft: PartialSpace) -> Iterator[Problem]:
    """Check the dataset names, and that ``folder`` has a path and no other dataset has one.

    If the dataset is searched, the section's name must be among the choices.
    """
    if draft.dataset is None:
        return
    wanted: dict[Path, Any] = {("dataset", "name"): draft.dataset.name}
    searched = draft.parameters.get("dataset")
    if isinstance(searched, CategoricalParameter):
        if not is_among(draft.dataset.name, searched.choices):
            rule = f"must be one of the searched datasets {', '.join(map(str, searched.choices))}"
            text = format_error(rule, got=draft.dataset.name)
            yield Problem(path=("dataset", "name"), text=text)
        for index, name in enumerate(searched.choices):
            wanted["parameters", "dataset", "choices", index] = name
    for path, name in wanted.items():
        if name not in list_datasets():
            yield Problem(path=path, text=unknown_name_message("dataset", name, list_datasets()))
    if "folder" in wanted.values():
        if draft.dataset.path is None:
            hint = "Give it with --set dataset.path=DIR, or the URL of a .zip."
            rule = "`dataset.path`, a directory or .zip of images, is missing"
            yield Problem(path=("dataset",), text=format_error(rule, hint=hint))
        return
    for key in (*FOLDER_ONLY, "resize"):
        given = getattr(draft.dataset, key)
        if given not in (None, "crop"):
            rule = f"only the dataset `folder` has {'a path' if key == 'path' else f'`{key}`'}"
            yield Problem(path=("dataset", key), text=format_error(rule, got=shown(given)))


def _broken_judging(draft: PartialSpace) -> Iterator[Problem]:
    """Check which images evaluate the trials: the held-out images or the test images.

    No choice may be made by the test images.
    """
    if draft.metric is None or draft.dataset is None:
        return
    last = draft.metric.of_test_images
    if last == draft.dataset.hold_out:
        rule = "`dataset.hold_out: false` goes with a metric of the test images, and with no other"
        held = str(draft.dataset.hold_out).lower()
        text = format_error(rule, got=f"hold_out {held} and {draft.metric.name}")
        yield Problem(path=("metric", "name"), text=text)
    elif last and draft.scheduler and draft.scheduler.stops_trials:
        rule = "must be none where the test images judge: they are looked at once, after the last epoch"
        yield Problem(path=("scheduler", "type"), text=format_error(rule, got=draft.scheduler.type))
    elif last and draft.budget and draft.budget.trials > len(draft.initial):
        rule = f"must be at most the {len(draft.initial)} rows of `initial` where the test images judge"
        hint = "A search chooses by validation images; `tune_rescon.train` judges what it chose."
        text = format_error(rule, got=str(draft.budget.trials), hint=hint)
        yield Problem(path=("budget", "trials"), text=text)


def _broken_scheduler(draft: PartialSpace) -> Iterator[Problem]:
    """Check that ``group_by`` names a categorical that every trial has, and the budget of epochs."""
    yield from _broken_epochs(draft)
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
        there = f"There: {', '.join(known)}." if known else "There are none."
        yield Problem(path=("scheduler", "group_by"), text=format_error(rule, got=shown(name), hint=there))


def _broken_epochs(draft: PartialSpace) -> Iterator[Problem]:
    """Check that only the scheduler ``auto``, which plans its budget, is given a budget of epochs."""
    if draft.scheduler is None or draft.budget is None or draft.scheduler.type == "auto":
        return
    if draft.budget.epochs is not None:
        rule = "must be left out unless `scheduler.type` is auto"
        yield Problem(path=("budget", "epochs"), text=format_error(rule, got=str(draft.budget.epochs)))


def _broken_warmup(draft: PartialSpace) -> Iterator[Problem]:
    """Check that the warm-up ends before training ends, and before the first trial may be stopped."""
    if draft.fidelity is None:
        return
    path, epochs = _longest_warmup(draft)
    if epochs > draft.fidelity.max:
        rule = f"must be at most `fidelity.max` ({draft.fidelity.max})"
        yield Problem(path=path, text=format_error(rule, got=shown(epochs)))
    elif draft.scheduler and draft.scheduler.stops_trials and epochs > draft.fidelity.min:
        rule = f"must cover the warm-up (`{dotted(path)}`: {shown(epochs)}), within which a rung says nothing"
        hint = f"Write `min: {math.ceil(epochs)}`."
        text = format_error(rule, got=str(draft.fidelity.min), hint=hint)
        yield Problem(path=("fidelity", "min"), text=text)


def _longest_warmup(draft: PartialSpace) -> tuple[Path, float]:
    """Return the longest warm-up of a trial in epochs, and the place of its value."""
    parameter = draft.parameters.get("warmup_epochs")
    if isinstance(parameter, CategoricalParameter):
        return ("parameters", "warmup_epochs", "choices"), max(parameter.choices)
    if parameter:
        return ("parameters", "warmup_epochs", "high"), parameter.high
    return ("fixed", "warmup_epochs"), draft.fixed.get("warmup_epochs", 0)


def _broken_sampler(draft: PartialSpace) -> Iterator[Problem]:
    """Check that the sampler supports the objectives and the parameters."""
    if draft.sampler is None:
        return
    kind = draft.sampler.type
    against = draft.metric and draft.metric.against
    if against and kind in _ONE_OBJECTIVE:
        rule = f"sampler {kind} takes one objective"
        hint = "Use `sampler.type: tpe`, nsga2 or gp, or leave `metric.against` out."
        text = format_error(rule, got=f"`metric.against: {against}` too", hint=hint)
        yield Problem(path=("sampler", "type"), text=text)
    if kind == "grid":
        yield from _broken_grid(draft)
    if kind in _MODELS_NO_SINGLE and len(draft.parameters) == 1:
        text = format_error(
            f"sampler {kind} needs two parameters", got="one", hint="Use `sampler.type: tpe`."
        )
        yield Problem(path=("sampler", "type"), text=text)
    for name, parameter in draft.parameters.items():
        path = ("parameters", name)
        if kind in _MODELS_NO_WHEN and parameter.when:
            text = format_error(f"sampler {kind} takes no `when`", got="one", hint="Use `sampler.type: tpe`.")
            yield Problem(path=(*path, "when"), text=text)
        if kind in _MODELS_NO_CATEGORICAL and isinstance(parameter, CategoricalParameter):
            text = format_error(
                f"sampler {kind} takes numbers only", got="a categorical", hint="Use `sampler.type: tpe`."
            )
            yield Problem(path=path, text=text)


def _broken_grid(draft: PartialSpace) -> Iterator[Problem]:
    """Check that the grid's points can be listed, and that ``initial`` is empty."""
    if draft.initial:
        text = format_error(
            "a grid runs every combination; `initial` must be empty", got=f"{len(draft.initial)} rows"
        )
        yield Problem(path=("initial",), text=text)
    endless = [name for name, parameter in draft.parameters.items() if not is_finite(parameter)]
    for name in endless:
        text = format_error("sampler grid needs values it can list", got="a float without `step`")
        yield Problem(path=("parameters", name), text=text)
    if endless:
        return
    points = sum(1 for _ in islice(combinations(draft.parameters), _LARGEST_GRID + 1))
    if points > _LARGEST_GRID:
        text = format_error(f"a grid must have at most {_LARGEST_GRID} points", got="more")
        yield Problem(path=("parameters",), text=text)

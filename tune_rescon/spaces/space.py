"""The complete space file as one frozen model, and the rules between its sections; every instance is valid.

The rules check a :class:`PartialSpace`: the sections that could be read. An unreadable section therefore does
not hide what is wrong in the others, and every rule checks only the sections that it has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, PlainSerializer, PlainValidator, ValidatorFunctionWrapHandler, WrapValidator

from tune_rescon.config import DatasetConfig, check_field, field_names
from tune_rescon.data import list_datasets
from tune_rescon.errors import KeyPath, counted, dotted, format_error, unknown_name_message
from tune_rescon.spaces.field_rules import (
    check_conditions,
    check_fields,
    check_rows,
    check_shares,
    choice_of,
    holds_text,
    missing_networks,
    only_rows,
    unknown_fields,
)
from tune_rescon.spaces.parameters import (
    CategoricalParameter,
    Parameter,
    combinations,
    is_among,
    is_finite,
)
from tune_rescon.spaces.sections import (
    FROM_LIST,
    AutoResources,
    Budget,
    Constraints,
    Fidelity,
    Metric,
    Resources,
    Sampler,
    Scheduler,
    Section,
    Value,
)
from tune_rescon.spaces.yaml_document import A_SECTION, Problem, quoting, raise_problems, shown

__all__ = ["FOLDER_ONLY", "PartialSpace", "Space", "check_rules", "longest_warmup", "read_dataset"]


def read_dataset(value: Any) -> DatasetConfig:
    """Return the DatasetConfig of a section of the file.

    Raises:
        pydantic.ValidationError: ``value`` is no section, or has invalid fields, each at its own path.
    """
    if isinstance(value, DatasetConfig):
        return value
    if not isinstance(value, dict):
        raise_problems("dataset", [Problem(path=(), text=format_error(A_SECTION, got=shown(value)))])
    raise_problems("dataset", _dataset_problems(value))
    return DatasetConfig(**value)


def _dataset_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    known = field_names(DatasetConfig)
    if "name" not in values:
        yield Problem(path=("name",), text=format_error("is missing"))
    for key, value in values.items():
        if key not in known:
            yield Problem(path=(key,), text=unknown_name_message("key", key, known))
        elif rule := check_field(key, value, DatasetConfig):
            hint = quoting(key, value) if holds_text(key, DatasetConfig) else ""
            yield Problem(path=(key,), text=format_error(rule, got=shown(value), hint=hint))


def _read_resources(value: Any, handler: ValidatorFunctionWrapHandler) -> Resources:
    if value == "auto":
        return AutoResources()
    if isinstance(value, str):
        rule = f"{A_SECTION}, or auto"
        raise_problems("resources_per_trial", [Problem(path=(), text=format_error(rule, got=shown(value)))])
    resources: Resources = handler(value)
    return resources


def _written_resources(resources: Resources) -> Any:
    return "auto" if isinstance(resources, AutoResources) else resources.model_dump(by_alias=True)


class Space(Section):
    """A search space: what is searched, how, on which images and for how long.

    Raises:
        pydantic.ValidationError: rules are broken; it lists all. :func:`load_space` adds their lines.
    """

    aliases: ClassVar[Mapping[str, str]] = {
        "program": "a space names no program",
        "method": "write `sampler.type`",
        "search_alg": "write `sampler`",
        "early_terminate": "write `scheduler`",
        "param_space": "write `parameters`",
        "search_space": "write `parameters`",
        "config": "write `parameters` and `fixed`",
        "num_samples": "write `budget.trials`",
        "n_trials": "write `budget.trials`",
        "run_cap": "write `budget.trials`",
        "max_concurrent_trials": "write `budget.concurrent`",
        "time_budget_s": "write `budget.hours`",
        "timeout": "write `budget.hours`",
        "mode": "write `metric.mode`",
        "direction": "write `metric.mode`",
        "directions": "write `metric.mode`, and `metric.against` for the second objective",
        "second_objective": "write `metric.against`",
        "pruner": "write `scheduler`",
        "max_t": "write `fidelity.max`",
        "grace_period": "write `fidelity.min`",
        "epochs": "write `fidelity.max`",
        "max_epochs": "write `fidelity.max`",
        "points_to_evaluate": "write `initial`",
        "resources": "write `resources_per_trial`",
        "seed": "write `sampler.seed`",
    }

    version: Literal[1]
    """Version of the file format."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Name of the search if ``--name`` gives none: letters, digits, ``.``, ``_``, ``-``."""
    description: str = ""
    """The purpose of the search, in a sentence."""
    dataset: Annotated[
        DatasetConfig,
        PlainValidator(read_dataset),
        PlainSerializer(lambda config: dataclasses.asdict(config)),
    ]
    metric: Metric
    fidelity: Fidelity
    sampler: Sampler
    scheduler: Scheduler = Scheduler()
    budget: Budget
    resources_per_trial: Annotated[
        Resources,
        WrapValidator(_read_resources, json_schema_input_type=Resources | Literal["auto"]),
        PlainSerializer(_written_resources),
    ] = Resources()
    """``auto``: chosen for the machine and printed before the search starts; ``space.yaml`` then has the
    numbers."""
    constraints: Constraints = Constraints()
    fixed: dict[str, Value] = Field(default_factory=dict)
    """Hyperparameters that every trial shares."""
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    """Hyperparameters that are searched."""
    initial: Annotated[tuple[dict[str, Value], ...], FROM_LIST] = ()
    """Trials to run first, each a value for every active parameter."""

    def check_rules(self) -> Iterator[Problem]:
        """Yield the broken rules between sections."""
        names = {field.name for field in dataclasses.fields(PartialSpace)} & type(self).model_fields.keys()
        yield from check_rules(PartialSpace(**{name: getattr(self, name) for name in names}))

    def dataset_config(self, name: str | None = None) -> DatasetConfig:
        """Return a trial's dataset: ``dataset``, or the named one if ``parameters.dataset`` is searched."""
        if name is None or name == self.dataset.name:
            return self.dataset
        if name == "folder":
            return dataclasses.replace(self.dataset, name=name)
        # A dataset that is known by its name has no folders to choose from.
        unset: dict[str, Any] = dict.fromkeys(FOLDER_ONLY)
        return dataclasses.replace(self.dataset, name=name, **unset)


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
    fields = list(check_fields(draft.fixed, draft.parameters))
    yield from fields
    yield from unknown_fields(draft.unread)
    yield from _check_dataset(draft)
    yield from _check_evaluation_images(draft)
    if draft.unread or not draft.parameters:
        return
    conditions = list(check_conditions(draft.parameters))
    yield from conditions
    yield from _check_scheduler(draft)
    if fields or conditions:
        return
    yield from _check_warmup(draft)
    if draft.resources_per_trial:
        yield from check_shares(draft.resources_per_trial.workers, draft.fixed, draft.parameters)
    rows = list(check_rows(draft.initial, draft.parameters))
    yield from rows
    yield from _check_sampler(draft)
    known = only_rows(draft.initial, trials=draft.budget.trials) if draft.budget and not rows else ()
    yield from missing_networks(draft.fixed, draft.parameters, known)


def _check_dataset(draft: PartialSpace) -> Iterator[Problem]:
    """Check the dataset names, and that ``folder`` has a path and no other dataset has one.

    If the dataset is searched, the section's name must be among the choices.
    """
    if draft.dataset is None:
        return
    wanted: dict[KeyPath, Any] = {("dataset", "name"): draft.dataset.name}
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


def _check_evaluation_images(draft: PartialSpace) -> Iterator[Problem]:
    """Check which images evaluate the trials: the held-out images or the test images.

    No choice may be made by the test images.
    """
    if draft.metric is None or draft.dataset is None:
        return
    on_test_images = draft.metric.of_test_images
    if on_test_images == draft.dataset.hold_out:
        rule = "`dataset.hold_out: false` must be set with a metric of the test images, and with no other"
        held = str(draft.dataset.hold_out).lower()
        text = format_error(rule, got=f"hold_out {held} and {draft.metric.name}")
        yield Problem(path=("metric", "name"), text=text)
    elif on_test_images and draft.scheduler and draft.scheduler.stops_trials:
        rule = "must be none if the test images evaluate the trials, once, after the last epoch"
        yield Problem(path=("scheduler", "type"), text=format_error(rule, got=draft.scheduler.type))
    elif on_test_images and draft.budget and draft.budget.trials > len(draft.initial):
        rows = counted(len(draft.initial), "row")
        rule = f"must be at most the {rows} of `initial` if the test images evaluate them"
        hint = "A search chooses by validation images; `tune_rescon.train` evaluates the chosen trials."
        text = format_error(rule, got=str(draft.budget.trials), hint=hint)
        yield Problem(path=("budget", "trials"), text=text)


def _check_scheduler(draft: PartialSpace) -> Iterator[Problem]:
    """Check that ``group_by`` names a categorical that every trial has, and the budget of epochs."""
    yield from _check_epochs(draft)
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
        text = format_error(rule, got=shown(name), hint=choice_of(known))
        yield Problem(path=("scheduler", "group_by"), text=text)


def _check_epochs(draft: PartialSpace) -> Iterator[Problem]:
    """Check that only the scheduler ``auto``, which plans its budget, is given a budget of epochs."""
    if draft.scheduler is None or draft.budget is None or draft.scheduler.type == "auto":
        return
    if draft.budget.epochs is not None:
        rule = "must be left out unless `scheduler.type` is auto"
        yield Problem(path=("budget", "epochs"), text=format_error(rule, got=str(draft.budget.epochs)))


def _check_warmup(draft: PartialSpace) -> Iterator[Problem]:
    """Check that the warm-up ends before training ends, and before the first trial may be stopped."""
    if draft.fidelity is None:
        return
    path, epochs = longest_warmup(draft.fixed, draft.parameters)
    if epochs > draft.fidelity.max:
        rule = f"must be at most `fidelity.max` ({draft.fidelity.max})"
        yield Problem(path=path, text=format_error(rule, got=shown(epochs)))
    elif draft.scheduler and draft.scheduler.stops_trials and epochs > draft.fidelity.min:
        rule = f"must cover the warm-up (`{dotted(path)}`: {shown(epochs)}), when values rank no trials"
        hint = f"Write `min: {math.ceil(epochs)}`."
        text = format_error(rule, got=str(draft.fidelity.min), hint=hint)
        yield Problem(path=("fidelity", "min"), text=text)


def longest_warmup(fixed: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> tuple[KeyPath, float]:
    """Return the place of the longest warm-up that a trial can have, and its epochs."""
    parameter = parameters.get("warmup_epochs")
    if isinstance(parameter, CategoricalParameter):
        return ("parameters", "warmup_epochs", "choices"), max(parameter.choices)
    if parameter:
        return ("parameters", "warmup_epochs", "high"), parameter.high
    return ("fixed", "warmup_epochs"), fixed.get("warmup_epochs", 0)


def _check_sampler(draft: PartialSpace) -> Iterator[Problem]:
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
        yield from _check_grid(draft)
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


def _check_grid(draft: PartialSpace) -> Iterator[Problem]:
    """Check that the grid's points can be listed, and that ``initial`` is empty."""
    if draft.initial:
        text = format_error(
            "a grid runs every combination; `initial` must be empty", got=counted(len(draft.initial), "row")
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

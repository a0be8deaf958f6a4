"""A whole space file as one frozen model, and the rules between its sections. Every instance is valid.

The rules check a :class:`PartialSpace`: the sections that could be read. A section that cannot be read
therefore does not hide the problems of the others. A rule whose sections are missing is skipped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, PlainSerializer, PlainValidator, ValidatorFunctionWrapHandler, WrapValidator

from tune_rescon.config import DatasetConfig, check_field, field_names
from tune_rescon.data import list_datasets
from tune_rescon.errors import KeyPath, counted, dotted, unknown_name_message
from tune_rescon.spaces.field_rules import (
    check_batches,
    check_conditions,
    check_fields,
    check_rows,
    choices_hint,
    extreme_value,
    holds_text,
    missing_networks,
    only_rows,
    unknown_fields,
)
from tune_rescon.spaces.parameters import (
    CategoricalParameter,
    Parameter,
    count_points,
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
from tune_rescon.spaces.yaml_document import (
    A_SECTION,
    Problem,
    broken_rule,
    quoting_hint,
    raise_problems,
    shown,
)

__all__ = ["FOLDER_ONLY", "PartialSpace", "Space", "check_rules", "read_dataset"]


def read_dataset(value: Any) -> DatasetConfig:
    """Return the DatasetConfig of a section of the file.

    Raises:
        pydantic.ValidationError: ``value`` is no section, or has invalid fields, each at its own path.
    """
    if isinstance(value, DatasetConfig):
        return value
    if not isinstance(value, dict):
        raise_problems("dataset", [broken_rule((), A_SECTION, got=shown(value))])
    raise_problems("dataset", _dataset_problems(value))
    return DatasetConfig(**value)


def _dataset_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the broken rules of the section ``dataset``."""
    known = field_names(DatasetConfig)
    if "name" not in values:
        yield broken_rule(("name",), "is missing")
    for key, value in values.items():
        if key not in known:
            yield Problem(path=(key,), text=unknown_name_message("key", key, known))
        elif rule := check_field(key, value, DatasetConfig):
            hint = quoting_hint(key, value) if holds_text(key, DatasetConfig) else ""
            yield broken_rule((key,), rule, got=shown(value), hint=hint)


def _read_resources(value: Any, handler: ValidatorFunctionWrapHandler) -> Resources:
    if value == "auto":
        return AutoResources()
    if isinstance(value, str):
        rule = f"{A_SECTION}, or auto"
        raise_problems("resources_per_trial", [broken_rule((), rule, got=shown(value))])
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

    def dataset_config(self, name: str | None) -> DatasetConfig:
        """Return the dataset of a trial.

        Args:
            name: the dataset's name, if ``parameters.dataset`` is searched; None: the section ``dataset``.
        """
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

#: Samplers of Optuna's that draw a conditional parameter at random, without a message, instead of modelling
#: it. That of ``cmaes`` does the same with categorical parameters, and with the only parameter of a space.
_MODELS_NO_WHEN: Final = ("gp", "cmaes")


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


def check_rules(partial: PartialSpace) -> Iterator[Problem]:
    """Yield a problem for every rule between sections that ``partial`` breaks."""
    fields = list(check_fields(partial.fixed, partial.parameters))
    yield from fields
    yield from unknown_fields(partial.unread)
    yield from _check_dataset(partial)
    yield from _check_evaluation_images(partial)
    if partial.unread or not partial.parameters:
        return
    conditions = list(check_conditions(partial.parameters))
    yield from conditions
    yield from _check_epochs(partial)
    yield from _check_groups(partial)
    if fields or conditions:
        return
    yield from _check_warmup(partial)
    if partial.resources_per_trial:
        yield from check_batches(partial.resources_per_trial.workers, partial.fixed, partial.parameters)
    rows = list(check_rows(partial.initial, partial.parameters))
    yield from rows
    yield from _check_sampler(partial)
    known = only_rows(partial.initial, trials=partial.budget.trials) if partial.budget and not rows else ()
    yield from missing_networks(partial.fixed, partial.parameters, known)


def _check_dataset(partial: PartialSpace) -> Iterator[Problem]:
    """Check the dataset names, and that ``folder`` has a path and no other dataset has one.

    If the dataset is searched, the section's name must be among the choices.
    """
    if partial.dataset is None:
        return
    wanted: dict[KeyPath, Any] = {("dataset", "name"): partial.dataset.name}
    searched = partial.parameters.get("dataset")
    if isinstance(searched, CategoricalParameter):
        if not is_among(partial.dataset.name, searched.choices):
            rule = f"must be one of the searched datasets {', '.join(map(str, searched.choices))}"
            yield broken_rule(("dataset", "name"), rule, got=partial.dataset.name)
        for index, name in enumerate(searched.choices):
            wanted["parameters", "dataset", "choices", index] = name
    for path, name in wanted.items():
        if name not in list_datasets():
            yield Problem(path=path, text=unknown_name_message("dataset", name, list_datasets()))
    if "folder" in wanted.values():
        if partial.dataset.path is None:
            hint = "Give it with --set dataset.path=DIR, or the URL of a .zip."
            rule = "`dataset.path`, a directory or .zip of images, is missing"
            yield broken_rule(("dataset",), rule, hint=hint)
        return
    for key in (*FOLDER_ONLY, "resize"):
        given = getattr(partial.dataset, key)
        if given not in (None, "crop"):
            rule = f"only the dataset `folder` has {'a path' if key == 'path' else f'`{key}`'}"
            yield broken_rule(("dataset", key), rule, got=shown(given))


def _check_evaluation_images(partial: PartialSpace) -> Iterator[Problem]:
    """Check which images evaluate the trials: the held-out images or the test images.

    No choice may be made by the test images.
    """
    if partial.metric is None or partial.dataset is None:
        return
    on_test_images = partial.metric.of_test_images
    if on_test_images == partial.dataset.hold_out:
        rule = "`dataset.hold_out: false` must be set with a metric of the test images, and with no other"
        held = str(partial.dataset.hold_out).lower()
        yield broken_rule(("metric", "name"), rule, got=f"hold_out {held} and {partial.metric.name}")
    elif on_test_images and partial.scheduler and partial.scheduler.stops_trials:
        rule = "must be none if the test images evaluate the trials, once, after the last epoch"
        yield broken_rule(("scheduler", "type"), rule, got=partial.scheduler.type)
    elif on_test_images and partial.budget and partial.budget.trials > len(partial.initial):
        rows = counted(len(partial.initial), "row")
        rule = f"must be at most the {rows} of `initial` if the test images evaluate them"
        hint = "A search chooses by validation images; `tune_rescon.train` evaluates the chosen trials."
        yield broken_rule(("budget", "trials"), rule, got=str(partial.budget.trials), hint=hint)


def _check_epochs(partial: PartialSpace) -> Iterator[Problem]:
    """Check that only the scheduler ``auto``, which plans its budget, is given a budget of epochs."""
    if partial.scheduler is None or partial.budget is None or partial.scheduler.type == "auto":
        return
    if partial.budget.epochs is not None:
        rule = "must be left out unless `scheduler.type` is auto"
        yield broken_rule(("budget", "epochs"), rule, got=str(partial.budget.epochs))


def _check_groups(partial: PartialSpace) -> Iterator[Problem]:
    """Check that ``group_by`` names a categorical that every trial has."""
    name = partial.scheduler.group_by if partial.scheduler else None
    if name is None:
        return
    known = [
        other
        for other, parameter in partial.parameters.items()
        if isinstance(parameter, CategoricalParameter) and parameter.when is None
    ]
    if name not in known:
        rule = "must name a categorical parameter without `when`"
        yield broken_rule(("scheduler", "group_by"), rule, got=shown(name), hint=choices_hint(known))


def _check_warmup(partial: PartialSpace) -> Iterator[Problem]:
    """Check that the warm-up ends before training ends, and before the first trial may be stopped."""
    if partial.fidelity is None:
        return
    path, epochs = extreme_value("warmup_epochs", partial.fixed, partial.parameters, largest=True)
    if epochs > partial.fidelity.max:
        rule = f"must be at most `fidelity.max` ({partial.fidelity.max})"
        yield broken_rule(path, rule, got=shown(epochs))
    elif partial.scheduler and partial.scheduler.stops_trials and epochs > partial.fidelity.min:
        rule = f"must cover the warm-up (`{dotted(path)}`: {shown(epochs)}), when values rank no trials"
        hint = f"Write `min: {math.ceil(epochs)}`."
        yield broken_rule(("fidelity", "min"), rule, got=str(partial.fidelity.min), hint=hint)


def _check_sampler(partial: PartialSpace) -> Iterator[Problem]:
    """Check that the sampler supports the objectives and the parameters."""
    if partial.sampler is None:
        return
    kind = partial.sampler.type
    against = partial.metric and partial.metric.against
    if against and kind == "cmaes":
        # Its sampler raises if a study has two objectives.
        hint = "Use `sampler.type: tpe`, nsga2 or gp, or leave `metric.against` out."
        got = f"`metric.against: {against}` too"
        yield broken_rule(("sampler", "type"), f"sampler {kind} takes one objective", got=got, hint=hint)
    if kind == "grid":
        yield from _check_grid(partial)
    hint = "Use `sampler.type: tpe`."
    if kind == "cmaes" and len(partial.parameters) == 1:
        yield broken_rule(("sampler", "type"), f"sampler {kind} needs two parameters", got="one", hint=hint)
    for name, parameter in partial.parameters.items():
        path = ("parameters", name)
        if kind in _MODELS_NO_WHEN and parameter.when:
            yield broken_rule((*path, "when"), f"sampler {kind} takes no `when`", got="one", hint=hint)
        if kind == "cmaes" and isinstance(parameter, CategoricalParameter):
            yield broken_rule(path, f"sampler {kind} takes numbers only", got="a categorical", hint=hint)


def _check_grid(partial: PartialSpace) -> Iterator[Problem]:
    """Check that the grid's points can be listed, and that ``initial`` is empty."""
    if partial.initial:
        rule = "a grid runs every combination; `initial` must be empty"
        yield broken_rule(("initial",), rule, got=counted(len(partial.initial), "row"))
    endless = [name for name, parameter in partial.parameters.items() if not is_finite(parameter)]
    for name in endless:
        rule = "sampler grid needs values it can list"
        yield broken_rule(("parameters", name), rule, got="a float without `step`")
    if not endless and count_points(partial.parameters, most=_LARGEST_GRID) is None:
        yield broken_rule(("parameters",), f"a grid must have at most {_LARGEST_GRID} points", got="more")

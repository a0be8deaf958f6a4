"""The complete space file as one frozen model; every instance is valid."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainSerializer, PlainValidator, ValidatorFunctionWrapHandler, WrapValidator

from tune_rescon.config import DatasetConfig, check_field, field_names
from tune_rescon.errors import format_error, unknown_name_message
from tune_rescon.spaces.field_rules import holds_text
from tune_rescon.spaces.parameters import Parameter
from tune_rescon.spaces.rules import FOLDER_ONLY, PartialSpace, check_rules
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

__all__ = ["Space", "read_dataset"]


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

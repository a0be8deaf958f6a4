"""The sections of a search-space file as frozen models: what each holds, and other tools' words for it.

A section judges its own values; what holds between sections is told by :mod:`tune_rescon.spaces.rules`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from tune_rescon.config import METRICS, metric_mode
from tune_rescon.errors import explain, unknown_name
from tune_rescon.spaces.problems import Problem, raise_problems, shown

__all__ = [
    "FROM_LIST",
    "Budget",
    "CategoricalParameter",
    "Fidelity",
    "FloatParameter",
    "IntParameter",
    "Metric",
    "Parameter",
    "Resources",
    "Sampler",
    "Scheduler",
    "Section",
    "Value",
    "When",
]

#: A list in the file (``step_fractions``) is a tuple here; everything else is judged by its field's rule.
Value = Annotated[Any, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]

#: A YAML list is no tuple to strict pydantic; its items stay strict.
FROM_LIST: Final = Field(strict=False)

PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of the file: frozen, strict, and an unknown key is answered with the known ones."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    #: Another tool's word -> what to write in this section's place.
    foreign: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys this section may hold, in order."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())

    @model_validator(mode="wrap")
    @classmethod
    def _judge(cls, data: Any, handler: ModelWrapValidatorHandler[Section]) -> Section:
        known = cls.keys()
        strangers = [key for key in data if key not in known] if isinstance(data, dict) else []
        problems = [Problem(path=(key,), text=cls._answer(key)) for key in strangers]
        try:
            section = handler({key: data[key] for key in data if key in known} if strangers else data)
        except ValidationError as error:
            raise_problems(cls.__name__, problems, error)
            raise
        raise_problems(cls.__name__, [*problems, *section.broken_rules()])
        return section

    @classmethod
    def _answer(cls, key: str) -> str:
        answer = unknown_name("key", key, cls.keys())
        return f"{answer} That is another tool's word: {cls.foreign[key]}." if key in cls.foreign else answer

    def broken_rules(self) -> Iterator[Problem]:
        """The rules between this section's values that they break."""
        yield from ()


class Metric(Section):
    """What the search makes best."""

    foreign = {"goal": "write `mode`", "direction": "write `mode`", "objective": "write `name`"}

    name: str
    mode: Literal["max", "min"]

    def broken_rules(self) -> Iterator[Problem]:
        """An objective that is reported, in the direction that is better."""
        objectives = [name for name in METRICS if metric_mode(name)]
        if self.name not in objectives:
            yield Problem(path=("name",), text=unknown_name("metric", self.name, objectives))
        elif self.mode != metric_mode(self.name):
            rule = f"{self.name} goes with mode {metric_mode(self.name)}"
            yield Problem(path=("mode",), text=explain(rule, got=self.mode))


class Fidelity(Section):
    """How long a trial trains: the one home of ASHA's first rung, epochs and the schedule's length."""

    foreign = {
        "grace_period": "write `min`",
        "min_iter": "write `min`",
        "max_t": "write `max`",
        "max_iter": "write `max`",
        "time_attr": "write `name: epoch`",
        "low": "write `min`",
        "high": "write `max`",
    }

    name: Literal["epoch"] = "epoch"
    min: PositiveInt = 1
    """Epochs before a trial may be stopped."""
    max: PositiveInt
    """Epochs of a trial that is never stopped."""

    def broken_rules(self) -> Iterator[Problem]:
        """``min <= max``."""
        if self.min > self.max:
            rule = explain("`min <= max` must hold", got=f"min={self.min}, max={self.max}")
            yield Problem(path=("min",), text=rule)


class Sampler(Section):
    """Who chooses the next trial's values."""

    foreign = {
        "method": "write `type`",
        "name": "write `type`",
        "random_state": "write `seed`",
        "n_initial_points": "write `n_startup_trials`",
        "random_search_steps": "write `n_startup_trials`",
    }

    type: Literal["tpe", "random", "gp", "cmaes", "grid", "nsga2"]
    seed: Annotated[int, Field(ge=0)] = 0
    n_startup_trials: PositiveInt = 10
    """Trials drawn at random before the model is asked; read by tpe, gp and cmaes."""


class Scheduler(Section):
    """Who ends trials early."""

    foreign = {
        "grace_period": "write `fidelity.min`",
        "min_iter": "write `fidelity.min`",
        "max_t": "write `fidelity.max`",
        "max_iter": "write `fidelity.max`",
        "time_attr": "write `fidelity.name`",
        "eta": "write `reduction_factor`",
        "metric": "write `metric.name`",
        "mode": "write `metric.mode`",
        "brackets": "there is one bracket",
    }

    type: Literal["asha", "none"] = "asha"
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """ASHA: one trial in this many goes on past a rung."""
    variant: Literal["stop"] = "stop"
    """ASHA: ``stop`` ends a trial at the rung that it fails."""
    group_by: str | None = None
    """ASHA: a categorical parameter; trials are compared only with those that share its value."""


class Budget(Section):
    """When the search ends, and how much of it runs at once."""

    foreign = {
        "num_samples": "write `trials`",
        "n_trials": "write `trials`",
        "run_cap": "write `trials`",
        "max_concurrent_trials": "write `concurrent`",
        "max_concurrent": "write `concurrent`",
        "n_jobs": "write `concurrent`",
        "time_budget_s": "write `hours`",
        "timeout": "write `hours`",
    }

    trials: PositiveInt
    """Trials in all."""
    concurrent: PositiveInt | None = None
    """Trials at once at most; null: as many as the resources hold."""
    hours: Annotated[float, Field(gt=0)] | None = None
    """Wall time after which no trial goes on; null: no limit."""


class Resources(Section):
    """What one trial occupies."""

    foreign = {
        "CPU": "write `cpu`",
        "GPU": "write `gpu`",
        "cpus": "write `cpu`",
        "gpus": "write `gpu`",
        "num_cpus": "write `cpu`",
        "num_gpus": "write `gpu`",
    }

    cpu: PositiveInt = 1
    """CPU cores; also the threads of the trial's process."""
    gpu: Annotated[float, Field(ge=0)] = 0.0
    """GPUs; a fraction below 1 lets trials share one."""

    def broken_rules(self) -> Iterator[Problem]:
        """A share of one GPU, or whole ones."""
        if self.gpu > 1 and self.gpu != int(self.gpu):
            rule = "must be a fraction below 1 or a whole number"
            yield Problem(path=("gpu",), text=explain(rule, got=shown(self.gpu)))


class When(Section):
    """The parameter exists only in trials where another, declared above it, has one of these values."""

    foreign = {
        "name": "write `parameter`",
        "value": "write `in`",
        "values": "write `in`",
        "equals": "write `in`",
    }

    parameter: str
    within: Annotated[tuple[Value, ...], FROM_LIST] = Field(alias="in", min_length=1)


_RANGE_WORDS: Final[Mapping[str, str]] = {
    "min": "write `low`",
    "max": "write `high`",
    "lower": "write `low`",
    "upper": "write `high`",
    "values": "write `type: categorical` with `choices`",
    "value": "a constant belongs in `fixed`",
    "distribution": "write `type`",
    "q": "write `step`",
    "base": "write `log: true`",
    "condition": "write `when`",
    "conditions": "write `when`",
    "choices": "only a categorical has choices",
}


class _NumberParameter(Section):
    foreign = _RANGE_WORDS

    def broken_rules(self) -> Iterator[Problem]:
        """``low < high``; a logarithm of positive bounds and without step; a step that divides the range."""
        low, high, step, log = (getattr(self, name) for name in ("low", "high", "step", "log"))
        got = f"low={low}, high={high}"
        if low >= high:
            hint = "A single value belongs in `fixed`." if low == high else ""
            yield Problem(path=("low",), text=explain("`low < high` must hold", got=got, hint=hint))
        elif step is not None and (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)):
            text = explain("must divide the range `high - low`", got=f"{got}, step={step}")
            yield Problem(path=("step",), text=text)
        if log and low <= 0:
            yield Problem(
                path=("low",), text=explain("`low > 0` must hold with `log: true`", got=f"low={low}")
            )
        if log and step is not None:
            yield Problem(path=("step",), text=explain("`log: true` excludes a step", got=f"step={step}"))


class IntParameter(_NumberParameter):
    """A whole number, both bounds included."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: PositiveInt | None = None
    """The values are low, low + step, ... high; null: every whole number."""
    when: When | None = None


class FloatParameter(_NumberParameter):
    """A number, both bounds included."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False
    step: Annotated[float, Field(gt=0)] | None = None
    """The values are low, low + step, ... high; null: any number between."""
    when: When | None = None


class CategoricalParameter(Section):
    """One of some values."""

    foreign = {
        "values": "write `choices`",
        "categories": "write `choices`",
        "options": "write `choices`",
        "value": "a constant belongs in `fixed`",
        "distribution": "write `type`",
        "condition": "write `when`",
        "conditions": "write `when`",
        "low": "only `type: int` and `type: float` have bounds",
        "high": "only `type: int` and `type: float` have bounds",
    }

    type: Literal["categorical"]
    choices: Annotated[tuple[Value, ...], FROM_LIST] = Field(min_length=1)
    when: When | None = None


Parameter = Annotated[IntParameter | FloatParameter | CategoricalParameter, Field(discriminator="type")]

"""The sections of a space file, except for its parameters: keys, limits, and other tools' words for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from tune_rescon.errors import unknown_name_message
from tune_rescon.metric_names import (
    BY_CLASS,
    EXTRA_METRICS,
    METRICS,
    MetricAt,
    class_metric,
    custom_metric_name,
    is_extra_metric,
    is_test_metric,
    metric_mode,
    objective_names,
)
from tune_rescon.spaces.yaml_document import Problem, broken_rule, problems_in, raise_problems, shown

__all__ = [
    "FROM_LIST",
    "AutoResources",
    "Budget",
    "Constraints",
    "Fidelity",
    "Goal",
    "Latency",
    "Limit",
    "Metric",
    "PositiveInt",
    "Resources",
    "Sampler",
    "Scheduler",
    "Section",
    "Value",
]

#: Converts a list of the file (``step_fractions``) to a tuple; the field's own rule checks the value.
Value = Annotated[Any, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]

#: Strict pydantic does not accept a YAML list as a tuple; the items are still checked strictly.
FROM_LIST: Final = Field(strict=False)

PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen, strict section of the file; the error for an unknown key lists the known keys."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    #: Another tool's word -> the key to write instead.
    aliases: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Return the keys that this section may have, in order."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, data: Any, handler: ModelWrapValidatorHandler[Section]) -> Section:
        known = cls.keys()
        unknown = [key for key in data if key not in known] if isinstance(data, dict) else []
        problems = [Problem(path=(key,), text=cls._answer(key)) for key in unknown]
        try:
            section = handler({key: data[key] for key in data if key in known} if unknown else data)
        except ValidationError as error:
            raise_problems(cls.__name__, problems, error)
            raise
        raise_problems(cls.__name__, [*problems, *section.check_rules()])
        return section

    @classmethod
    def _answer(cls, key: str) -> str:
        answer = unknown_name_message("key", key, cls.keys())
        return f"{answer} That is another tool's word: {cls.aliases[key]}." if key in cls.aliases else answer

    def check_rules(self) -> Iterator[Problem]:
        """Yield the rules between this section's values that the values break."""
        yield from ()


#: The largest seed that numpy's generators accept.
_LARGEST_SEED: Final = 2**32 - 1
#: The largest number of epochs: more are a typing error, and auto stores a value of each epoch of each trial.
_MAX_EPOCHS: Final = 100_000
_REDUCTION_FACTOR: Final = 3

_ASHA_ONLY: Final = "must be left out unless `scheduler.type` is asha"


class Metric(Section):
    """The objective of the search."""

    aliases: ClassVar[Mapping[str, str]] = {
        "goal": "write `mode`",
        "direction": "write `mode`",
        "objective": "write `name`",
        "objectives": "write `name`, and `against` for the second one",
        "metrics": "write `name`, and `against` for the second one",
        "second": "write `against`",
        "second_objective": "write `against`",
        "secondary": "write `against`",
        "cost": "write `against`",
        "cost_attr": "write `against`",
        "scope": "write `at`",
    }

    name: str
    """The metric of every epoch by which trials are compared: one of these, ``val_accuracy/CLASS``,
    ``val_f1/CLASS``, ``val_auroc/CLASS`` or ``val_average_precision/CLASS`` of a single class, or the name of
    a function in ``log``."""
    mode: Literal["max", "min"]
    """Whether a larger (``max``) or a smaller (``min``) value is better."""
    at: MetricAt = "best"
    """The epoch whose metric is a trial's value and whose network the trial keeps: its ``best`` epoch or its
    ``last`` one. A rung always compares trials at the rung's own epoch."""
    against: Literal["gmacs", "compute_hours"] | None = None
    """A second objective, which is minimised: the search looks for a Pareto front. ``gmacs``: multiply-adds
    of one image's forward pass, in billions; ``compute_hours``: the trial's cost so far, in device-hours;
    null: one objective. At a rung of asha or auto, a trial ranks behind every trial that is at least as good
    and as cheap, and better in one of the two. median compares by ``name`` alone."""

    log: Annotated[tuple[str, ...], FROM_LIST] = ()
    """Further metrics that every epoch reports: the name of a metric; ``val_f1/CLASS`` for one class or
    ``val_f1_by_class`` for each class (also of ``val_accuracy``, ``val_auroc`` and
    ``val_average_precision``); or ``module:function`` of your own. The function gets the class scores (N, K)
    and labels (N) of all validation images as tensors, and returns a number, which is logged as
    ``val_function``."""

    @property
    def of_test_images(self) -> bool:
        """True if the metric is measured once, after a trial's last epoch: no choice may depend on it."""
        return is_test_metric(self.name)

    @property
    def function(self) -> str | None:
        """The user's function in ``log`` that computes the metric; None if none does."""
        return next((entry for entry in self.log if custom_metric_name(entry) == self.name), None)

    def check_rules(self) -> Iterator[Problem]:
        """Check that the objective is reported and that ``mode`` is its better direction."""
        yield from self._check_log()
        if self.function is not None:
            return
        objectives = [*objective_names(), *filter(None, map(custom_metric_name, self.log))]
        if self.name not in objectives and class_metric(self.name) is None:
            yield Problem(path=("name",), text=unknown_name_message("metric", self.name, objectives))
        elif self.mode != metric_mode(self.name):
            rule = f"{self.name} goes with mode {metric_mode(self.name)}"
            yield broken_rule(("mode",), rule, got=self.mode)

    def _check_log(self) -> Iterator[Problem]:
        names: set[str] = set()
        for index, entry in enumerate(self.log):
            name = entry if is_extra_metric(entry) else custom_metric_name(entry)
            if name is None:
                known = [*EXTRA_METRICS, *BY_CLASS, "METRIC/CLASS", "module:function"]
                text = unknown_name_message("metric", entry, known)
                yield Problem(path=("log", index), text=text)
            elif name in names or (name in {*METRICS, *EXTRA_METRICS} and name != entry):
                rule = "each metric must have a name that no other metric has"
                yield broken_rule(("log", index), rule, got=name)
            else:
                names.add(name)
        if self.log and self.of_test_images:
            rule = (
                "must be left out, because trials that are evaluated on test images have no validation images"
            )
            yield broken_rule(("log",), rule, got=", ".join(self.log))


class Fidelity(Section):
    """How long a trial trains: ASHA's first rung, the number of epochs and the schedule's length."""

    aliases: ClassVar[Mapping[str, str]] = {
        "grace_period": "write `min`",
        "min_iter": "write `min`",
        "max_t": "write `max`",
        "max_iter": "write `max`",
        "time_attr": "write `name: epoch`",
        "low": "write `min`",
        "high": "write `max`",
    }

    name: Literal["epoch"] = "epoch"
    """The unit of ``min`` and ``max``."""
    min: PositiveInt = 1
    """Epochs before a trial may be stopped or paused: the first rung of asha, the lowest first rung of auto,
    the first epoch at which median compares. It must cover the warm-up, because values within the warm-up are
    not informative."""
    max: Annotated[int, Field(ge=1, le=_MAX_EPOCHS)]
    """Epochs of a trial that is never stopped."""

    def check_rules(self) -> Iterator[Problem]:
        """Check that ``min <= max``."""
        if self.min > self.max:
            yield broken_rule(("min",), "`min <= max` must hold", got=f"min={self.min}, max={self.max}")


class Sampler(Section):
    """How the next trial's values are chosen."""

    aliases: ClassVar[Mapping[str, str]] = {
        "method": "write `type`",
        "name": "write `type`",
        "random_state": "write `seed`",
        "n_initial_points": "write `n_startup_trials`",
        "random_search_steps": "write `n_startup_trials`",
    }

    type: Literal["tpe", "random", "gp", "cmaes", "grid", "nsga2"]
    """Optuna's sampler. ``tpe`` also learns from trials that were stopped early, and has conditional
    parameters; ``grid`` runs every point."""
    seed: Annotated[int, Field(ge=0, le=_LARGEST_SEED)] = 0
    """Seed of the draws and of each trial's training."""
    n_startup_trials: PositiveInt = 10
    """Number of trials that tpe, gp and cmaes draw at random before they use a model. nsga2: number of trials
    of a generation."""
    repeats: bool = False
    """Whether a point of the space may run again, with another training seed. False: each point runs once,
    and the search ends when all points have run."""


class Scheduler(Section):
    """Which trials are stopped early."""

    aliases: ClassVar[Mapping[str, str]] = {
        "grace_period": "write `fidelity.min`",
        "min_iter": "write `fidelity.min`",
        "n_warmup_steps": "write `fidelity.min`",
        "max_t": "write `fidelity.max`",
        "max_iter": "write `fidelity.max`",
        "time_attr": "write `fidelity.name`",
        "eta": "write `reduction_factor`",
        "metric": "write `metric.name`",
        "mode": "write `metric.mode`",
        "brackets": "there is one bracket",
        "promote": "write `variant: promote`",
    }

    type: Literal["auto", "asha", "median", "none"] = "asha"
    """``auto``: the budget is divided between starting trials and finishing the best paused ones, and the
    first rung is chosen by how well early ranks agree with later ranks in this search. ``asha``: a trial
    continues past a rung if it is among the best there. ``median``: a trial continues past each epoch from
    ``fidelity.min`` on if its best value is in the better half, compared with the averages of the others so
    far. ``none``: every trial continues."""
    reduction_factor: Annotated[int, Field(ge=2)] = _REDUCTION_FACTOR
    """ASHA: one trial in this many continues past a rung."""
    variant: Literal["stop", "promote"] = "stop"
    """ASHA: ``stop`` stops a trial at the rung that it fails. ``promote`` pauses every trial at every rung,
    and resumes a trial as soon as it is among the best there."""
    group_by: str | None = None
    """A categorical parameter; trials are compared only with those that share its value."""

    @property
    def stops_trials(self) -> bool:
        """True if a trial may end before ``fidelity.max``."""
        return self.type != "none"

    def check_rules(self) -> Iterator[Problem]:
        """Check that the keys that only asha reads have their defaults with any other type.

        The values are checked, not the presence of the keys, because a resolved file has every key.
        """
        if self.type == "asha":
            return
        if self.variant != "stop":
            yield broken_rule(("variant",), _ASHA_ONLY, got=self.variant)
        if self.reduction_factor != _REDUCTION_FACTOR:
            yield broken_rule(("reduction_factor",), _ASHA_ONLY, got=str(self.reduction_factor))


class Budget(Section):
    """When the search ends, and how many trials run at once."""

    aliases: ClassVar[Mapping[str, str]] = {
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
    """Number of trials in all."""
    concurrent: PositiveInt | None = None
    """Largest number of trials at once; null: as many as the resources hold."""
    hours: Annotated[float, Field(gt=0)] | None = None
    """Hours that all runs of the search may take together, after which no trial continues; null: no limit."""
    epochs: PositiveInt | None = None
    """Epochs of all trials together; only with the scheduler ``auto``; null: no limit. Trials that run when
    they are spent continue to their next rung, which takes less than ``fidelity.max`` epochs more."""


class Limit(Section):
    """The values that a constraint allows."""

    aliases: ClassVar[Mapping[str, str]] = {
        "high": "write `max`",
        "upper": "write `max`",
        "le": "write `max`",
    }

    max: Annotated[float, Field(gt=0)]
    """The largest value."""


class Latency(Limit):
    """The time that a network may take for one image, and where it is measured."""

    device: Literal["cpu", "cuda"] = "cpu"
    """``cpu``: one CPU thread, or ``cuda``: a GPU, of the machine on which the search is started."""


class Constraints(Section):
    """Limits of a network's cost. A network that breaks a constraint is never trained."""

    aliases: ClassVar[Mapping[str, str]] = {
        "params": "write `params_m`, in millions",
        "parameters": "write `params_m`, in millions",
        "macs": "write `gmacs`, in billions",
        "flops": "write `gmacs`, in billions; a multiply-add is two operations",
        "latency": "write `latency_ms`, in milliseconds",
    }

    params_m: Limit | None = None
    """Parameters of the network, in millions, for example ``{max: 5}``; null: no limit."""
    gmacs: Limit | None = None
    """Multiply-adds of one image's forward pass, in billions, for example ``{max: 0.5}``; null: no limit."""
    latency_ms: Latency | None = None
    """Milliseconds of one image's forward pass in fp32, for example ``{max: 10, device: cpu}``; null: no
    limit. Each network is measured once, before its first trial."""


class Goal(Section):
    """The metric and the budget of a search: all that a list of searches shows of its space."""

    metric: Metric
    budget: Budget


def _number_or_auto(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Report one problem, where pydantic reports one for each type that the value could have."""
    try:
        return handler(value)
    except ValidationError as error:
        if isinstance(value, str):
            problem = broken_rule((), "must be a number or auto", got=shown(value))
        else:
            problem = Problem(path=(), text=next(problems_in(error)).text)
        raise_problems("gpu", [problem])
        raise


class Resources(Section):
    """The resources of one trial."""

    aliases: ClassVar[Mapping[str, str]] = {
        "CPU": "write `cpu`",
        "GPU": "write `gpu`",
        "cpus": "write `cpu`",
        "gpus": "write `gpu`",
        "num_cpus": "write `cpu`",
        "num_gpus": "write `gpu`",
        "accelerator_type": "write `accelerator`",
        "accelerators": "write `accelerator`",
        "num_workers": "write `workers`",
        "num_nodes": "write `workers`",
        "world_size": "write `workers`",
        "devices": "write `workers`",
    }

    workers: PositiveInt = 1
    """Processes that train one trial together, each with its own ``cpu`` cores and ``gpu`` GPUs, on one
    machine or several. ``batch_size`` is that of the whole trial: each process trains a share of every
    batch."""
    cpu: PositiveInt = 1
    """CPU cores of a worker; also the threads of its process."""
    gpu: Annotated[Annotated[float, Field(ge=0)] | Literal["auto"], WrapValidator(_number_or_auto)] = 0.0
    """GPUs of a worker; a fraction below 1 lets trials share a GPU. ``auto``: the fraction that the largest
    network of the space needs; it is measured on a GPU before the first trial, and written to
    ``space.yaml``."""
    accelerator: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    """The kind of GPU that every trial gets, by Ray's name (A10G, L4, A100, H100); null: any."""

    def by_name(self) -> dict[str, float]:
        """Return the resources to request from Ray for each of the ``workers``, by Ray's names."""
        need = {"CPU": float(self.cpu), "GPU": self.gpus}
        # A node with such a GPU has 1 of this resource, so a tiny request makes Ray choose it.
        return need if self.accelerator is None else {**need, f"accelerator_type:{self.accelerator}": 0.001}

    @property
    def devices(self) -> float:
        """The devices that a trial occupies: GPUs, or CPU cores if it has no GPU."""
        return self.workers * (self.gpus or float(self.cpu))

    @property
    def device(self) -> str:
        """The device whose hours a trial costs: the kind of GPU if given, else ``GPU`` or ``CPU``."""
        return self.accelerator or ("GPU" if self.gpu else "CPU")

    @property
    def gpus(self) -> float:
        """``gpu`` as a number; until ``auto`` is measured, its largest possible value."""
        return 1.0 if self.gpu == "auto" else self.gpu

    def check_rules(self) -> Iterator[Problem]:
        """Check the number of GPUs, of which a process uses one, and that ``accelerator`` has a GPU."""
        if self.gpus > 1:
            rule = "must be at most 1: a process trains on one GPU, or on a share of it"
            hint = f"Write `workers: {math.ceil(self.gpus)}, gpu: 1` for a trial of several GPUs."
            yield broken_rule(("gpu",), rule, got=shown(self.gpu), hint=hint)
        elif self.workers > 1 and self.gpu not in (0, 1):
            rule = (
                "must be 1, or 0, where a trial has several `workers`: they wait for the slowest at each step"
            )
            yield broken_rule(("gpu",), rule, got=shown(self.gpu))
        if self.accelerator is not None and not self.gpu:
            rule = "must be left out unless a trial has a `gpu`"
            yield broken_rule(("accelerator",), rule, got=shown(self.accelerator))


class AutoResources(Resources):
    """``resources_per_trial: auto``: the resources are chosen for the machine before the search starts.

    Until then, the values are those of one CPU core.
    """

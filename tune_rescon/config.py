"""What one trial is: frozen dataclasses every room may read.

``TrialConfig`` is the one list of hyperparameters. A space file's ``fixed`` and ``parameters`` name its
fields; the sampled dict that travels to a worker is turned into one there. Each field carries its rule, so
that a bound in a space file and a value in Python are judged by the same words (:func:`check_field`).
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, Literal, TypeAlias

from tune_rescon.errors import ConfigError, format_error, unknown_name_message

__all__ = [
    "METRICS",
    "PEAK_MEMORY",
    "TEST_METRICS",
    "DatasetConfig",
    "MetricAt",
    "Rule",
    "TrialConfig",
    "TrialState",
    "check_field",
    "field_names",
    "field_rule",
    "is_test_metric",
    "metric_mode",
    "plain_number",
    "watched_metric",
]

#: What a trial reports each epoch, and which way is better ("" = neither: a fact, not an objective).
METRICS: Final[Mapping[str, str]] = {
    "train_loss": "min",
    "train_accuracy": "max",
    "val_loss": "min",
    "val_accuracy": "max",
    "val_top5": "max",
    "learning_rate": "",
    "images_per_second": "",
    "epoch_seconds": "",
}

#: What is measured once, after the last epoch, of the test images: by a trial that trains on the validation
#: images too, and so has nothing else to be judged by. Its accuracy on each class comes with them, as
#: ``test_accuracy/CLASS``.
TEST_METRICS: Final[Mapping[str, str]] = {
    "test_loss": "min",
    "test_accuracy": "max",
    "test_top5": "max",
    "test_calibration_error": "",
    "test_images_per_second": "",
}

#: What an epoch on a GPU reports besides: the most memory that the trial's tensors have held there at once,
#: since it began, million bytes. On a CPU there is no such figure: a worker's process also holds what it is
#: made of, and what the trials before have left.
PEAK_MEMORY: Final = "peak_memory_mb"


#: Which epoch's metric is a trial's value, and whose network it keeps: its best one's, or its last one's.
MetricAt: TypeAlias = Literal["best", "last"]


class TrialState(StrEnum):
    """What became of a trial: the words of the study's ``state`` and MLflow's ``tune_rescon.state``."""

    RUNNING = "running"
    FINISHED = "finished"
    """It reached the last epoch."""
    STOPPED = "stopped"
    """A rung, or the end of the budget, ended it early."""
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """The search was interrupted; ``--resume`` goes on with it."""
    PAUSED = "paused"
    """It waits at its rung to be promoted."""

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to the trial, also on resume."""
        return self not in (TrialState.RUNNING, TrialState.INTERRUPTED, TrialState.PAUSED)


def metric_mode(name: str) -> str:
    """``"max"`` or ``"min"`` for an objective; ``""`` for a metric that is none."""
    return {**METRICS, **TEST_METRICS}[name]


def is_test_metric(name: str) -> bool:
    """Whether a metric is of the test images, and so measured only once.

    >>> is_test_metric("test_accuracy"), is_test_metric("test_accuracy/cat"), is_test_metric("val_accuracy")
    (True, True, False)
    """
    return name.partition("/")[0] in TEST_METRICS


def watched_metric(name: str) -> str:
    """What a trial can be followed by after each epoch: the metric itself, where every epoch has it.

    >>> watched_metric("val_accuracy"), watched_metric("test_accuracy")
    ('val_accuracy', 'train_loss')
    """
    return "train_loss" if is_test_metric(name) else name


def plain_number(value: Any) -> Any:
    """A number of any real type, such as NumPy's, as Python's own; any other value unchanged.

    Samplers return NumPy's numbers now and then. JSON, YAML and SQL take Python's.

    >>> from fractions import Fraction
    >>> plain_number(Fraction(1, 4)), plain_number(True), plain_number("0.25")
    (0.25, True, '0.25')
    """
    if isinstance(value, tuple):
        return tuple(map(plain_number, value))
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a field admits. ``None`` among ``kinds`` means the field may be left unset."""

    kinds: tuple[type, ...]
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    increasing: bool = False

    def broken_by(self, value: Any) -> str | None:
        """The rule in words if ``value`` breaks it, else None. A bool is never a number here."""
        value = plain_number(value)
        if value is None and type(None) in self.kinds:
            return None
        if type(value) is int and float in self.kinds:
            value = float(value)
        if type(value) not in self.kinds:
            return f"must be {self._kind_words()}"
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        if isinstance(value, tuple):
            return self._tuple_broken(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and not self._inside(value):
            return f"must be in {self._range_words()}"
        return None

    def _tuple_broken(self, value: tuple[Any, ...]) -> str | None:
        if any(type(item) is not int or not self._inside(item) for item in value):
            return f"must hold whole numbers in {self._range_words()}"
        if self.increasing and any(a >= b for a, b in pairwise(value)):
            return "must increase"
        return None

    def _inside(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def _kind_words(self) -> str:
        words = {
            int: "a whole number",
            float: "a number",
            str: "a word",
            bool: "true or false",
            tuple: "a list of whole numbers",
        }
        named = " or ".join(words[kind] for kind in self.kinds if kind is not type(None))
        return f"{named} (or null)" if type(None) in self.kinds else named

    def _range_words(self) -> str:
        left = "(" if self.open_low or math.isinf(self.low) else "["
        right = ")" if self.open_high or math.isinf(self.high) else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


def _field(default: Any, *kinds: type, **limits: Any) -> Any:
    return dataclasses.field(default=default, metadata={"rule": Rule(kinds=kinds, **limits)})


def _word(default: str, *choices: str) -> Any:
    return _field(default, str, choices=choices)


_NONE = type(None)


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Which images, and how they are split. Sizes are in pixels.

    Raises:
        ConfigError: a value breaks its field's rule; every broken one is named.
    """

    name: str = _field("digits", str)
    path: str | None = _field(None, str, _NONE)
    """``folder`` only: a directory or a .zip."""
    val_fraction: float = _field(0.1, float, low=0, high=1, open_low=True, open_high=True)
    """Share of the training images held out for validation (unused where the folder brings its own val/)."""
    test_fraction: float | None = _field(None, float, _NONE, low=0, high=1, open_low=True, open_high=True)
    """Share of the training images held out as test images, before all else (unused where the source brings
    its own); None: none are."""
    without_test: str = _word("error", "error", "val")
    """Where nothing is held out and there are no test images: ``error``: refused; ``val``: the validation
    images stand in for them, and do not train. ``tune_rescon.train`` sets ``val``."""
    hold_out: bool = _field(True, bool)
    """False: nothing is, and a folder's own val/ trains too, as ``tune_rescon.train`` does; a trial is then
    judged once, on the test images."""
    label_noise: float = _field(0.0, float, low=0, high=1, open_high=True)
    """Share of the training images whose label is replaced by another class at random (paper, table 5)."""
    split_seed: int = _field(0, int, low=0)
    limit: int | None = _field(None, int, _NONE, low=2)
    """Use at most this many training images (stratified), and as many test images at most."""
    on_bad_image: str = _word("error", "error", "skip")
    store_size: int | None = _field(None, int, _NONE, low=16, high=2048)
    """Side of the decoded square the cache keeps of a ``folder``, at most; pictures all of one smaller size
    stay as they are. None: the largest ``image_size`` of the search, or 256 outside a search."""
    resize: str = _word("crop", "crop", "pad", "squash")
    """How a picture of a ``folder`` becomes a square. ``crop``: its centre; ``pad``: all of it, black beside
    it; ``squash``: all of it, with its sides scaled apart."""
    train: str | None = _field(None, str, _NONE)
    """``folder`` only: the folder inside it that holds the training part's class folders, or a glob of such
    folders; ``.``: the folder itself. None: the usual names decide. docs/images.md has the rules."""
    val: str | None = _field(None, str, _NONE)
    """``folder`` only: likewise, of the validation part."""
    test: str | None = _field(None, str, _NONE)
    """``folder`` only: likewise, of the test part."""
    ignore: str | None = _field(None, str, _NONE)
    """``folder`` only: globs of files and folders that are left out, separated by commas."""

    def __post_init__(self) -> None:
        """Judge every field."""
        _check_all(self, "dataset")


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Every hyperparameter of one trial. How long it trains is the search's fidelity, not a field here.

    Raises:
        ConfigError: a value breaks its field's rule; every broken one is named.
    """

    # What is searched over when a space compares datasets; None: the space's own dataset.
    dataset: str | None = _field(None, str, _NONE)

    # The network: a preset by name, or layout + depth (+ variations of it). See models.presets.
    preset: str | None = _field(None, str, _NONE)
    layout: str = _word("auto", "auto", "cifar", "rescon", "imagenet", "port448")
    depth: int = _field(56, int, low=1)
    width: float = _field(1.0, float, low=0, high=8, open_low=True)
    """Multiplier of every stage's channels."""
    image_size: int | None = _field(None, int, _NONE, low=16, high=1024)
    """Side of the square the network sees, pixels; None: the layout's or preset's nominal size."""
    attention: str = _word("mixed", "mixed", "channel", "spatial")
    attention_learning: str = _word("arl", "arl", "nal")
    """``arl``: (1 + M) * T; ``nal``: M * T (paper, section 3.2)."""
    mask: str = _word("encoder_decoder", "encoder_decoder", "local")
    added_reference: bool = _field(False, bool)
    """ResCon's addition of the down-path features at each interpolation."""
    drop_path: float = _field(0.0, float, low=0, high=1, open_high=True)
    """Probability that a residual branch of the last trunk unit is dropped; grows linearly with depth."""
    init_from: str | None = _field(None, str, _NONE)
    """A file of the weights to begin with, or its URL: a best.ckpt, an exported .safetensors, or a ResCon or
    port checkpoint; None: they are drawn. See :mod:`tune_rescon.training.weights`."""

    # Optimisation.
    batch_size: int = _field(128, int, low=2)
    optimizer: str = _word("sgd", "sgd", "adamw")
    learning_rate: float = _field(0.1, float, low=0, open_low=True)
    momentum: float = _field(0.9, float, low=0, high=1, open_high=True)
    """SGD's momentum; AdamW's beta1."""
    nesterov: bool = _field(True, bool)
    weight_decay: float = _field(1e-4, float, low=0)
    schedule: str = _word("cosine", "multistep", "cosine", "warmup_stable_decay", "constant")
    warmup_epochs: float = _field(0.0, float, low=0)
    decay_fraction: float = _field(0.2, float, low=0, high=1, open_low=True)
    """``warmup_stable_decay``: the last share of training over which the rate falls to 0."""
    step_fractions: tuple[int, ...] = _field((40, 60), tuple, low=1, high=99, increasing=True)
    """``multistep``: per cent of training at which the rate is divided by 10 (paper: 64k and 96k of 160k)."""
    label_smoothing: float = _field(0.0, float, low=0, high=1, open_high=True)
    gradient_clip: float = _field(0.0, float, low=0)
    """Largest norm of the gradient; 0: no clipping."""
    ema_decay: float = _field(0.0, float, low=0, high=1, open_high=True)
    """Decay per step of the averaged weights that are validated; 0: no averaging."""
    precise_bn_batches: int = _field(0, int, low=0)
    """Training batches over which batch norm's statistics are re-estimated before each validation; 0: off."""
    precision: str = _word("auto", "auto", "fp32", "tf32", "bf16")
    cuda_graphs: str = _word("auto", "auto", "off")
    """``auto``: on a CUDA GPU training steps are recorded and played back, where a batch fits whole."""
    compile: str = _word("off", "off", "on")
    """``on``: torch.compile, for long trials; the first of a shape on a node waits for it (a minute)."""
    checkpoint_activations: str = _word("auto", "auto", "off", "on")
    """Keep less of a step and compute it again: the same results, about a third slower. ``auto``: where a
    whole batch does not fit otherwise."""

    # Augmentation.
    normalize: bool = _field(True, bool)
    crop_padding: int = _field(4, int, low=0, high=64)
    """Zero padding before the random crop, in pixels of the stored image."""
    flip: bool = _field(True, bool)
    augment: str = _word("none", "none", "randaugment", "trivialaugment")
    mixup: float = _field(0.0, float, low=0)
    """Beta distribution's alpha; 0: off."""
    cutmix: float = _field(0.0, float, low=0)
    """Beta distribution's alpha; 0: off. With mixup too, each batch takes one of them at even odds."""

    def __post_init__(self) -> None:
        """Judge every field."""
        _check_all(self, "")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialConfig:
        """Build from plain values (lists become tuples).

        Raises:
            ConfigError: an unknown name, or a value that breaks its rule.
        """
        known = field_names()
        unknown = [unknown_name_message("parameter", name, known) for name in values if name not in known]
        if unknown:
            raise ConfigError(" ".join(unknown))
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files, messages and :meth:`from_dict`."""
        return dataclasses.asdict(self)


def field_names(kind: type = TrialConfig) -> tuple[str, ...]:
    """Names of a configuration's fields, in order; ``fixed`` and ``parameters`` may name TrialConfig's."""
    return tuple(field.name for field in dataclasses.fields(kind))


def field_rule(name: str, kind: type = TrialConfig) -> Rule:
    """The rule of one field of a configuration; KeyError if there is no such field."""
    return _rules(kind)[name]


def check_field(name: str, value: Any, kind: type = TrialConfig) -> str | None:
    """The rule ``value`` breaks as a configuration's field ``name``, in words; None if it breaks none.

    >>> check_field("drop_path", 1.5)
    'must be in [0, 1)'
    >>> check_field("depth", 92) is None
    True
    """
    value = tuple(value) if isinstance(value, list) else value
    return field_rule(name, kind).broken_by(value)


def _rules(kind: type) -> dict[str, Rule]:
    return {field.name: field.metadata["rule"] for field in dataclasses.fields(kind)}


def _check_all(config: Any, section: str) -> None:
    broken = list(_broken(config, section))
    if broken:
        raise ConfigError(" ".join(broken))
    # A whole number given for a number (`warmup_epochs: 1`) becomes one, so equal configs compare equal.
    for name, rule in _rules(type(config)).items():
        value = getattr(config, name)
        plain = plain_number(value)
        plain = float(plain) if type(plain) is int and float in rule.kinds else plain
        if plain is not value:
            object.__setattr__(config, name, plain)


def _broken(config: Any, section: str) -> Iterable[str]:
    for name, rule in _rules(type(config)).items():
        value = getattr(config, name)
        words = rule.broken_by(value)
        if words:
            where = f"{section}.{name}" if section else name
            yield format_error(words, got=repr(value), where=where)

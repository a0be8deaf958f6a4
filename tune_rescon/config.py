"""Configuration of one trial: frozen dataclasses that every subpackage may read.

``TrialConfig`` is the only list of hyperparameters: ``fixed`` and ``parameters`` of a space file name its
fields. A worker process gets the sampled dict and builds a ``TrialConfig`` from it. Each field has a
:class:`Rule`, so that a bound in a space file and a value in Python are checked by the same rule and with the
same message.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from tune_rescon.errors import ConfigError, format_error, hide_passwords, unknown_name_message

__all__ = [
    "DatasetConfig",
    "Rule",
    "TrialConfig",
    "TrialState",
    "check_field",
    "field_names",
    "field_rule",
    "plain_number",
    "trial_name",
]


class TrialState(StrEnum):
    """State of a trial, as written to the study's ``state`` and MLflow's ``tune_rescon.state``."""

    RUNNING = "running"
    FINISHED = "finished"
    """The trial reached its last epoch."""
    STOPPED = "stopped"
    """The scheduler, ``patience``, a request or the budget's end stopped the trial before its last epoch."""
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """The search was interrupted; ``--resume`` continues the trial."""
    PAUSED = "paused"
    """The trial waits at its rung to be promoted."""

    @property
    def is_final(self) -> bool:
        """True if the trial will not change any more, not even when the search is resumed."""
        return self not in (TrialState.RUNNING, TrialState.INTERRUPTED, TrialState.PAUSED)


def trial_name(number: int) -> str:
    """Return the name of a trial in tables, in MLflow and on disk.

    >>> trial_name(7)
    'trial_0007'
    """
    return f"trial_{number:04d}"


def plain_number(value: Any) -> Any:
    """Convert a real number of any type, such as NumPy's, to Python's; return any other value unchanged.

    Samplers sometimes return NumPy's numbers, but JSON, YAML and SQL need Python's. The items of a tuple are
    converted one by one.

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
    """The values that a field accepts. ``None`` among ``kinds`` means that the field may be left unset."""

    kinds: tuple[type, ...]
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    increasing: bool = False

    def broken_by(self, value: Any) -> str | None:
        """Return the rule in words if ``value`` breaks it, else None.

        A bool is never accepted as a number.
        """
        value = plain_number(value)
        if value is None and type(None) in self.kinds:
            return None
        if type(value) is int and float in self.kinds:
            value = float(value)
        if type(value) not in self.kinds:
            return f"must be {self._kind_text()}"
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        if isinstance(value, tuple):
            return self._tuple_broken(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and not self._inside(value):
            return f"must be in {self._range_text()}"
        return None

    def _tuple_broken(self, value: tuple[Any, ...]) -> str | None:
        if any(type(item) is not int or not self._inside(item) for item in value):
            return f"must hold whole numbers in {self._range_text()}"
        if self.increasing and any(a >= b for a, b in pairwise(value)):
            return "must increase"
        return None

    def _inside(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def _kind_text(self) -> str:
        words = {
            int: "a whole number",
            float: "a number",
            str: "a word",
            bool: "true or false",
            tuple: "a list of whole numbers",
        }
        named = " or ".join(words[kind] for kind in self.kinds if kind is not type(None))
        return f"{named} (or null)" if type(None) in self.kinds else named

    def _range_text(self) -> str:
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
    """The dataset of a trial, and how it is split. Sizes are in pixels.

    Raises:
        ConfigError: one or more values break their field's rule; the message names every one of them.
    """

    name: str = _field("digits", str)
    """digits (of scikit-learn), cifar10, cifar100, svhn, fashion_mnist or stl10, which are downloaded; or
    ``folder``: your own images."""
    path: str | None = _field(None, str, _NONE)
    """``folder`` only: a directory or a .zip."""
    val_fraction: float = _field(0.1, float, low=0, high=1, open_low=True, open_high=True)
    """Fraction of the training images held out for validation. Unused if the folder has its own val/."""
    test_fraction: float | None = _field(None, float, _NONE, low=0, high=1, open_low=True, open_high=True)
    """Fraction of the training images held out as test images, before any other split. Unused if the source
    has its own test images. None: hold out no test images."""
    without_test: str = _word("error", "error", "val")
    """How to handle a dataset without test images when nothing is held out. ``error``: raise an error;
    ``val``: use the validation images as test images and do not train on them. ``tune_rescon.train`` sets
    ``val``."""
    hold_out: bool = _field(True, bool)
    """False: hold out no validation images, and also train on a folder's own val/. The trial is then
    evaluated once, on the test images. ``tune_rescon.train`` sets False."""
    label_noise: float = _field(0.0, float, low=0, high=1, open_high=True)
    """Fraction of the training images whose label is replaced by another class at random (paper, table 5)."""
    split_seed: int = _field(0, int, low=0)
    """Seed of every split, limit and label noise."""
    limit: int | None = _field(None, int, _NONE, low=2)
    """Use at most this many training images (stratified), and at most as many of a folder's own validation
    images and of the test images."""
    on_bad_image: str = _word("error", "error", "skip")
    """How to handle an image that cannot be decoded."""
    store_size: int | None = _field(None, int, _NONE, low=16, high=2048)
    """Largest side of the decoded squares that the cache keeps of a ``folder``. Pictures that all have one
    smaller size are kept as they are. None: the largest ``image_size`` of the search, or 256 outside a
    search."""
    resize: str = _word("crop", "crop", "pad", "squash")
    """How a picture of a ``folder`` becomes a square. ``crop``: use its centre; ``pad``: use the whole
    picture, with black borders; ``squash``: use the whole picture, and scale each side separately."""
    train: str | None = _field(None, str, _NONE)
    """``folder`` only: the subfolder that contains the class folders of the training split, or a glob that
    matches such folders; ``.``: the folder itself. None: find it by the usual names
    (docs/howto/images.md)."""
    val: str | None = _field(None, str, _NONE)
    """``folder`` only: the same for the validation split."""
    test: str | None = _field(None, str, _NONE)
    """``folder`` only: the same for the test split."""
    ignore: str | None = _field(None, str, _NONE)
    """``folder`` only: globs of files and folders to leave out, separated by commas."""

    def __post_init__(self) -> None:
        """Check every field."""
        _check_all(self, "dataset")


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """The hyperparameters of one trial. Its number of epochs is the search's fidelity, not a field here.

    Raises:
        ConfigError: one or more values break their field's rule; the message names every one of them.
    """

    dataset: str | None = _field(None, str, _NONE)
    """The dataset by name, if a space compares datasets. None: the one of the section ``dataset``."""

    # The network: one from elsewhere (see models.external_spec), or a Residual Attention Network: the name of
    # a preset, or a layout and a depth with variations (see models.presets).
    network: str | None = _field(None, str, _NONE)
    """``timm/NAME``: a network of timm (``pip install 'tune_rescon[timm]'``). ``MODULE:FUNCTION``: your own,
    which ``FUNCTION(num_classes=, in_channels=, image_size=)`` returns. None: a Residual Attention Network,
    which the fields from ``preset`` to ``added_reference`` describe."""
    pretrained: bool = _field(False, bool)
    """``timm/NAME`` only: begin with timm's pretrained weights, and normalise and resize images as in their
    training."""
    preset: str | None = _field(None, str, _NONE)
    """A network by name (``tune-rescon presets`` lists them). None: ``layout`` and ``depth`` describe it."""
    layout: str = _word("auto", "auto", "cifar", "rescon", "imagenet", "port448")
    """The layers around the attention modules, made for 32 pixels (``cifar`` of the paper, ``rescon`` of
    ResCon), 224 (``imagenet``) or 448 (``port448``). ``auto``: ``cifar`` up to 64 pixels, then
    ``imagenet``."""
    depth: int = _field(56, int, low=1)
    """Layers along the trunk, without the masks. Bottleneck units have three: 56, 92, 128 and so on."""
    width: float = _field(1.0, float, low=0, high=8, open_low=True)
    """Multiplier of the channels of every stage."""
    image_size: int | None = _field(None, int, _NONE, low=16, high=1024)
    """Side of the network's square input, in pixels; None: the nominal size of the layout or preset, and 32
    with ``network``."""
    attention: str = _word("mixed", "mixed", "channel", "spatial")
    """Activation of the mask (paper, table 1): ``mixed`` is a sigmoid."""
    attention_learning: str = _word("arl", "arl", "nal")
    """``arl``: (1 + M) * T; ``nal``: M * T (paper, section 3.2)."""
    mask: str = _word("encoder_decoder", "encoder_decoder", "local")
    """``encoder_decoder`` scales features down and up again; ``local`` keeps their size (paper, table 4)."""
    added_reference: bool = _field(False, bool)
    """Add the down-path features at each interpolation, as ResCon does."""
    drop_path: float = _field(0.0, float, low=0, high=1, open_high=True)
    """Probability of dropping the residual branch of the last trunk unit; it grows linearly with depth. For
    ``timm/NAME``: its ``drop_path_rate``."""
    init_from: str | None = _field(None, str, _NONE)
    """File or URL of the initial weights: a best.ckpt, an exported .safetensors, a ResCon or port checkpoint,
    or a state dict of ``network``. Classes and image size may differ. None: draw the weights at random."""

    # Optimisation.
    batch_size: int = _field(128, int, low=2)
    """Images of a training step, over all processes of the trial."""
    optimizer: str = _word("sgd", "sgd", "adamw", "lion", "rmsprop", "muon")
    """Stochastic gradient descent, AdamW, Lion, RMSprop, or Muon with AdamW for norms, biases and the
    classifier."""
    learning_rate: float = _field(0.1, float, low=0, open_low=True)
    """The highest learning rate of the schedule."""
    momentum: float = _field(0.9, float, low=0, high=1, open_high=True)
    """Momentum of SGD, RMSprop and Muon; beta1 of AdamW and Lion."""
    nesterov: bool = _field(True, bool)
    """Use Nesterov momentum with ``sgd`` and ``muon``."""
    weight_decay: float = _field(1e-4, float, low=0)
    """Weight decay of convolutions, linear layers and the classifier: not of biases, norms and other scales,
    and not of the tables of positions and tokens that networks of timm exempt."""
    layer_decay: float = _field(1.0, float, low=0, high=1, open_low=True)
    """Factor of the learning rate from each layer to the one before it; the classifier has the whole rate. A
    layer is the stem, a final unit, an attention module, the units before a stage's modules, or a block of
    ``network``. 1: off. Useful with ``init_from`` or ``pretrained``."""
    classifier_lr_mult: float = _field(1.0, float, low=0, high=1000, open_low=True)
    """Factor of the learning rate of the classifier, the network's last layer. Above 1, the classifier learns
    faster than the rest. Useful with ``init_from`` or ``pretrained``, where the rest begins with trained
    weights."""
    freeze_epochs: int = _field(0, int, low=0)
    """Number of epochs at the start in which only the classifier is trained. The other weights and batch
    norm's statistics do not change, and no path is dropped. 0: off; ``fidelity.max`` or more: only the
    classifier is ever trained. Useful with ``init_from`` or ``pretrained``."""
    schedule: str = _word(
        "cosine", "multistep", "cosine", "cosine_restarts", "warmup_stable_decay", "constant"
    )
    """Course of the learning rate over the epochs of ``fidelity.max``."""
    warmup_epochs: float = _field(0.0, float, low=0)
    """Epochs over which the learning rate rises to its highest value."""
    cycles: int = _field(4, int, low=1)
    """``cosine_restarts``: number of equal parts of training. In each of them the learning rate falls from
    its highest value to 0."""
    decay_fraction: float = _field(0.2, float, low=0, high=1, open_low=True)
    """``warmup_stable_decay``: the last fraction of training, in which the learning rate falls to 0."""
    step_fractions: tuple[int, ...] = _field((40, 60), tuple, low=1, high=99, increasing=True)
    """``multistep``: the points of training, in per cent, at which the learning rate is divided by 10 (paper:
    64k and 96k of 160k)."""
    patience: int = _field(0, int, low=0)
    """Number of epochs without a better value of the metric after which a search stops a trial; 0: off. The
    trial counts as stopped, not as finished. ``tune_rescon.train`` does not stop."""
    label_smoothing: float = _field(0.0, float, low=0, high=1, open_high=True)
    """Share of the target that is spread over all classes."""
    class_weights: str = _word("none", "none", "balanced")
    """Weights of the classes in the training loss. ``balanced``: inverse to a class's number of training
    images, with a mean of 1 over these images. The validation loss stays unweighted, so that trials can be
    compared."""
    class_sampling: str = _word("none", "none", "balanced")
    """Which training images an epoch shows. ``none``: each one once; ``balanced``: as many images of each
    class, so that those of a rare class are shown several times. The number of images of an epoch is the
    same."""
    gradient_clip: float = _field(0.0, float, low=0)
    """Maximum norm of the gradient; 0: no clipping."""
    ema_decay: float = _field(0.0, float, low=0, high=1, open_high=True)
    """Decay per step of the averaged weights, which are the ones validated; 0: no averaging."""
    precise_bn_batches: int = _field(0, int, low=0)
    """Number of training batches over which batch norm's statistics are re-estimated before each validation;
    0: off."""
    precision: str = _word("auto", "auto", "fp32", "tf32", "bf16", "fp16")
    """Number format. ``auto``: bf16 autocast on a GPU that computes it, fp16 on an older one with tensor
    cores, else fp32. ``fp16``: autocast with a gradient scaler; on a CPU, fp32."""
    cuda_graphs: str = _word("auto", "auto", "off")
    """``auto``: on a CUDA GPU, capture the training step as a CUDA graph and replay it, if a batch fits in
    memory as a whole."""
    compile: str = _word("off", "off", "on")
    """``on``: use torch.compile, which suits long trials. The first trial of a shape on a node waits for the
    compilation (a minute)."""
    checkpoint_activations: str = _word("auto", "auto", "off", "on")
    """Keep fewer activations of a step and recompute the others, with the same results. A step takes a third
    longer on a CPU. On a GPU it may take several times as long, because it is not captured as a CUDA graph.
    ``auto``: only if a whole batch does not fit in memory otherwise."""

    # Augmentation.
    normalize: bool = _field(True, bool)
    """Subtract the mean and divide by the standard deviation of the training images."""
    crop_padding: int = _field(4, int, low=0, high=64)
    """Zero padding before the random crop, in pixels of the stored image. Unused if ``crop_scale`` is below
    1."""
    crop_scale: float = _field(1.0, float, low=0, high=1, open_low=True)
    """Smallest share of the stored image's area that a random crop shows, as in torchvision's
    ``RandomResizedCrop``; the crop is scaled to ``image_size``. 1: off."""
    crop_ratio: float = _field(4 / 3, float, low=1, high=10)
    """Largest width of such a crop divided by its height; the smallest is its inverse."""
    flip: bool = _field(True, bool)
    """Mirror training images left to right at random."""
    rotation: float = _field(0.0, float, low=0, high=180)
    """Largest angle by which training images are rotated, in either direction, in degrees; outside is black.
    0: off."""
    color_jitter: float = _field(0.0, float, low=0, high=1)
    """Largest change of brightness, contrast and saturation, as a share: 0.4 draws factors from 0.6 to 1.4.
    0: off."""
    augment: str = _word("none", "none", "randaugment", "trivialaugment", "augmix")
    """A policy that changes colours and geometry of training images at random."""
    random_erasing: float = _field(0.0, float, low=0, high=1)
    """Probability that a random box of a training image, 2 to 33 % of its area, is set to the mean colour (to
    black without ``normalize``)."""
    mixup: float = _field(0.0, float, low=0)
    """Blend two images: alpha of the beta distribution of their shares; 0: off."""
    cutmix: float = _field(0.0, float, low=0)
    """Paste a box of one image into another: alpha of the beta distribution of its area; 0: off. If mixup is
    on too, each batch uses one of the two at even odds."""

    def __post_init__(self) -> None:
        """Check every field."""
        _check_all(self, "")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialConfig:
        """Build a configuration from plain values; lists become tuples.

        Raises:
            ConfigError: a name is unknown, or a value breaks its field's rule.
        """
        known = field_names()
        unknown = [unknown_name_message("parameter", name, known) for name in values if name not in known]
        if unknown:
            raise ConfigError(" ".join(unknown))
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for files, messages and :meth:`from_dict`."""
        return dataclasses.asdict(self)

    def without_passwords(self) -> TrialConfig:
        """Return the configuration, in which the password of a URL in ``init_from`` is hidden."""
        return dataclasses.replace(self, init_from=self.init_from and hide_passwords(self.init_from))


def field_names(kind: type = TrialConfig) -> tuple[str, ...]:
    """Return the names of a configuration's fields, in order.

    A space file's ``fixed`` and ``parameters`` may name the fields of TrialConfig.
    """
    return tuple(field.name for field in dataclasses.fields(kind))


def field_rule(name: str, kind: type = TrialConfig) -> Rule:
    """Return the rule of one field of a configuration.

    Raises:
        KeyError: the configuration has no such field.
    """
    return _rules(kind)[name]


def check_field(name: str, value: Any, kind: type = TrialConfig) -> str | None:
    """Return the rule that ``value`` breaks as the field ``name``, in words; None if it breaks no rule.

    Args:
        name: the name of the field.
        value: the value to check; a list is checked as a tuple.
        kind: the configuration class.

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
    """Check every field of a configuration, and make its numbers Python's own.

    Raises:
        ConfigError: values break their field's rule.
    """
    broken = []
    for name, rule in _rules(type(config)).items():
        value = getattr(config, name)
        words = rule.broken_by(value)
        if words:
            where = f"{section}.{name}" if section else name
            broken.append(format_error(words, got=repr(value), where=where))
            continue
        plain = plain_number(value)
        # An int of a float field (`warmup_epochs: 1`) becomes a float, so that equal configs compare equal.
        plain = float(plain) if type(plain) is int and float in rule.kinds else plain
        if plain is not value:
            object.__setattr__(config, name, plain)
    if broken:
        raise ConfigError(" ".join(broken))

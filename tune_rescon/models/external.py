"""Build networks from elsewhere (timm's and a user's own), and count their parameters and multiply-adds.

Shape legend: B images, C channels, H = W the image size, K classes.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tune_rescon.errors import NetworkError, UserError, first_line, format_error
from tune_rescon.models.external_spec import TIMM, ExternalSpec, NetworkDescription
from tune_rescon.models.network import build_from_spec
from tune_rescon.models.spec import Cost, NetworkSpec
from tune_rescon.user_code import import_function

__all__ = [
    "PretrainedImages",
    "build_described",
    "check_exists",
    "check_external",
    "measured_cost",
    "pretrained_images",
    "tensor_shapes",
    "timm_arguments",
    "timm_defaults",
]

#: Batch size of the check of a network. With one image, a network that confuses the axes could pass.
_IMAGES: Final = 2


def build_described(spec: NetworkDescription, *, pretrained: bool = False) -> nn.Module:
    """Return a new network in training mode.

    Args:
        spec: the network.
        pretrained: True for timm's pretrained weights, which timm downloads or finds in its cache. Otherwise
            the weights are drawn from torch's generator.

    Raises:
        NetworkError: the network does not exist or cannot be built, or has no pretrained weights here.
        ConfigError: the user's function cannot be imported.
    """
    if isinstance(spec, NetworkSpec):
        return build_from_spec(spec)
    return _build_timm(spec, pretrained=pretrained) if spec.timm_name else _build_own(spec)


def _build_own(spec: ExternalSpec) -> nn.Module:
    function = import_function(spec.network, what="a network", where="network")
    arguments = {"num_classes": spec.classes, "in_channels": spec.in_channels, "image_size": spec.image_size}
    try:
        network = function(**arguments)
    except Exception as error:  # a user's function can raise any error
        given = ", ".join(f"{name}={value}" for name, value in arguments.items())
        rule = f"the function must return a network when it is called with {given}"
        raise NetworkError(
            format_error(rule, got=_error_text(error), where=f"network {spec.network}")
        ) from error
    if not isinstance(network, nn.Module):
        rule = "the function must return a torch.nn.Module"
        raise NetworkError(format_error(rule, got=type(network).__name__, where=f"network {spec.network}"))
    # Lightning does not change the modes of modules. One in eval mode, such as a frozen norm, stays in it.
    return network if network.training else network.train()


def _build_timm(spec: ExternalSpec, *, pretrained: bool) -> nn.Module:
    arguments = timm_arguments(spec)
    if pretrained and not _timm_config(spec.network).has_weights:
        rule = "must name a network for which timm has pretrained weights"
        hint = "Leave out `pretrained`."
        raise NetworkError(format_error(rule, got=spec.network, where="network", hint=hint))
    try:
        network: nn.Module = _import_timm().create_model(spec.timm_name, pretrained=pretrained, **arguments)
    except Exception as error:  # timm's networks and its downloads raise many kinds
        raise NetworkError(_timm_message(spec, error, pretrained=pretrained)) from error
    if not spec.drop_path:
        _disable_drop_path(network)
    return network


def timm_arguments(spec: ExternalSpec) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model`` that build a network of timm.

    Raises:
        NetworkError: timm is not installed, or has no such network.
    """
    arguments: dict[str, Any] = {"num_classes": spec.classes, "in_chans": spec.in_channels}
    if _timm_config(spec.network).fixed_input_size:
        # Networks with position embeddings are built for one size; the others do not accept the argument.
        arguments["img_size"] = spec.image_size
    if spec.drop_path:
        arguments["drop_path_rate"] = spec.drop_path
    return arguments


def _disable_drop_path(network: nn.Module) -> None:
    """Set every drop probability to 0, because some networks of timm, such as Swin, have another default.

    ``drop_path_rate=0`` cannot be passed instead, because networks without dropped paths do not accept it.
    """
    from timm.layers.drop import DropPath

    for module in network.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0


def _timm_message(spec: ExternalSpec, error: Exception, *, pretrained: bool) -> str:
    if isinstance(error, TypeError) and "drop_path_rate" in str(error):
        rule = f"timm's {spec.timm_name} has no dropped paths"
        hint = "Leave out `drop_path`, or give it a `when` that leaves out this network."
        return format_error(rule, got=f"drop_path {spec.drop_path}", where="drop_path", hint=hint)
    if pretrained:
        rule = f"timm must be able to load the pretrained weights of {spec.timm_name}"
        hint = (
            "They are downloaded once to the cache of Hugging Face (HF_HOME), on each node. Leave out"
            " `pretrained`, or name a file with `init_from`, where there is no internet."
        )
        return format_error(rule, got=_error_text(error), where="pretrained", hint=hint)
    rule = f"timm must be able to build {spec.timm_name} for images of {spec.image_size} pixels"
    return format_error(rule, got=_error_text(error), where="network")


def _import_timm() -> types.ModuleType:
    try:
        import timm
    except ImportError as error:
        rule = f"a network {TIMM}NAME needs timm"
        hint = "pip install 'tune_rescon[timm]'"
        raise NetworkError(format_error(rule, got=str(error), where="network", hint=hint)) from error
    return timm


def _timm_config(network: str) -> Any:
    """Return timm's ``PretrainedCfg`` of a network.

    Raises:
        NetworkError: timm is not installed, or has no such network.
    """
    timm = _import_timm()
    name = network.removeprefix(TIMM)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "`timm.list_models()` lists them."
        rule = f"must be a network of timm {timm.__version__}"
        raise NetworkError(format_error(rule, got=name, where="network", hint=hint))
    try:
        # None for a network that was registered without a config, as a user may do.
        return timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        rule = "must name weights that timm knows, if it has a dot"
        hint = f"They are {tags}." if tags else ""
        raise NetworkError(format_error(rule, got=name, where="network", hint=hint)) from error


def timm_defaults(spec: ExternalSpec) -> dict[str, Any]:
    """Return the part of timm's config of a network that does not depend on its weights.

    Raises:
        NetworkError: timm is not installed, or has no such network.
    """
    config = _timm_config(spec.network)
    return {
        "input_size": (spec.in_channels, spec.image_size, spec.image_size),
        "fixed_input_size": config.fixed_input_size,
        "first_conv": config.first_conv,
        "classifier": config.classifier,
    }


@dataclass(frozen=True, kw_only=True)
class PretrainedImages:
    """The preprocessing of the images with which timm's weights were trained."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    """``bilinear`` or ``bicubic``; timm's other kinds count as one of the two."""


def pretrained_images(spec: ExternalSpec) -> PretrainedImages:
    """Return the preprocessing of timm's data config for images of ``spec.in_channels`` channels.

    For one channel, timm sums the weights of the pretrained first layer over the colours. One channel
    therefore has the average of the colours' statistics.

    Raises:
        NetworkError: timm is not installed, or has no such network.
    """
    config = _timm_config(spec.network)

    def fitting(values: tuple[float, ...]) -> tuple[float, ...]:
        if len(values) == spec.in_channels:
            return tuple(values)
        return (sum(values) / len(values),) * spec.in_channels

    interpolation = "bicubic" if config.interpolation in ("bicubic", "lanczos") else "bilinear"
    return PretrainedImages(mean=fitting(config.mean), std=fitting(config.std), interpolation=interpolation)


def check_exists(spec: ExternalSpec, *, pretrained: bool) -> None:
    """Check that timm or the user's module has the network, and that its pretrained weights can be loaded.

    Raises:
        NetworkError: timm is not installed or has no such network, or cannot load its pretrained weights.
        ConfigError: the user's function cannot be imported.
    """
    if not spec.timm_name:
        import_function(spec.network, what="a network", where="network")
    elif pretrained:
        build_described(spec, pretrained=True)
    else:
        _timm_config(spec.network)


def check_external(spec: ExternalSpec) -> None:
    """Check that a network can be built, and that it maps images to logits.

    Raises:
        NetworkError: it cannot be built, or does not map images to logits.
        ConfigError: the user's function cannot be imported.
    """
    _measure(spec)


def measured_cost(spec: ExternalSpec) -> Cost:
    """Return the parameters and multiply-adds of a network, as torch counts them.

    Multiply-adds are those of convolutions, linear layers and attention.

    Raises:
        NetworkError, ConfigError: as :func:`check_external`.
    """
    return _measure(spec)[0]


def tensor_shapes(spec: ExternalSpec) -> Mapping[str, torch.Size]:
    """Return the shape of each tensor of the network's state dict, by name.

    Raises:
        NetworkError, ConfigError: as :func:`check_external`.
    """
    return _measure(spec)[1]


# Cached, because many trials share a network, and each epoch's report may need its cost.
@functools.lru_cache(maxsize=256)
def _measure(spec: ExternalSpec) -> tuple[Cost, Mapping[str, torch.Size]]:
    try:
        # On the meta device tensors have shapes and no values, so nothing is computed.
        return _measured_on(spec, torch.device("meta"))
    except NetworkError:
        # A network that reads values needs real tensors.
        with torch.random.fork_rng(devices=[]):
            return _measured_on(spec, torch.device("cpu"))


def _measured_on(spec: ExternalSpec, device: torch.device) -> tuple[Cost, Mapping[str, torch.Size]]:
    with device:
        network = build_described(spec).eval()
        shape = (_IMAGES, spec.in_channels, spec.image_size, spec.image_size)
        images_BCHW = torch.zeros(shape)
    where = f"network {spec.network}"
    wanted = f"{shape} to logits {(_IMAGES, spec.classes)}"
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), _fused_by_operations():
            logits_BK = network(images_BCHW)
    except UserError:
        raise
    except Exception as error:  # a user's or timm's network can raise any error
        rule = f"must map images {wanted}"
        raise NetworkError(format_error(rule, got=_error_text(error), where=where)) from error
    if not isinstance(logits_BK, Tensor) or tuple(logits_BK.shape) != (_IMAGES, spec.classes):
        got = tuple(logits_BK.shape) if isinstance(logits_BK, Tensor) else type(logits_BK).__name__
        raise NetworkError(format_error(f"must map images {wanted}", got=str(got), where=where))
    cost = Cost(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        # torch counts a multiplication and an addition as two operations.
        macs=counter.get_total_flops() // (2 * _IMAGES),
    )
    return cost, {name: tensor.shape for name, tensor in network.state_dict().items()}


@contextlib.contextmanager
def _fused_by_operations() -> Iterator[None]:
    """Compute torch's attention modules and LSTMs by the operations that the counter knows.

    On a CPU, in eval mode, they are single fused operations, whose multiply-adds it would count as 0.
    """
    enabled = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # torch types it as a descriptor
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled[0])
        torch.backends.mkldnn.enabled = enabled[1]


def _error_text(error: Exception) -> str:
    """Return the kind and the first line of another program's error."""
    first, kind = first_line(error), type(error).__name__
    return kind if first == kind else f"{kind}: {first}"

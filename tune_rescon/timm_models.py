"""Register the networks with timm: importing this module adds every preset as ``tune_rescon_PRESET``.

::

    import timm
    import tune_rescon.timm_models

    timm.create_model("tune_rescon_attention92", num_classes=10)
    timm.create_model("tune_rescon_cifar_attention56", num_classes=10, checkpoint_path="winner.safetensors")

The name has an underscore, because timm takes a name with a slash for a repository or a folder (1.0.31). The
weights have the same names as in the package's own networks, so a file of ``export --format safetensors``
loads unchanged. There are no pretrained weights. ``export --format timm`` writes a folder with a network of
any shape, its weights and its data config::

    network = timm.create_model("local-dir:FOLDER", pretrained=True)
    pixels = network.preprocess(PIL.Image.open("photo.jpg"))

timm's features for its own networks work here too: ``features_only``, ``forward_intermediates``, gradient
checkpointing, layer-wise decay, TorchScript and torch.fx.

Shapes in names: B images, C channels, H and W height and width in pixels, K classes.
"""

# No `from __future__ import annotations`: torch.fx copies the annotations of `forward` to code that
# TorchScript reads, and TorchScript needs types, not strings.
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from tune_rescon.config import TrialConfig
from tune_rescon.data.decode import square_of
from tune_rescon.data.preprocessing import Normalization, Preprocessing
from tune_rescon.errors import ConfigError, format_error
from tune_rescon.models import (
    NetworkDescription,
    NetworkSpec,
    ResidualAttentionNetwork,
    iter_layers,
    list_presets,
    resolve_network,
)
from tune_rescon.models.external import timm_defaults
from tune_rescon.models.network import check_sides
from tune_rescon.training.memory import activations_recomputed

__all__ = ["EXPORTED", "TimmNetwork", "data_config", "default_cfgs", "tune_rescon_network"]

_PREFIX: Final = "tune_rescon_"

#: The name of networks that are not presets.
EXPORTED: Final = f"{_PREFIX}network"

#: timm's names for the values of ``Preprocessing.resize``.
_CROP_MODES: Final = {"crop": "center", "pad": "border", "squash": "squash"}

#: The default numbers of classes: ImageNet's, and CIFAR-10's for networks of images of CIFAR-10's size.
_CLASSES, _SMALL_CLASSES, _SMALL_SIDE = 1000, 10, 32

#: Pooling of the feature maps, B x C x H x W: averaged over H and W, or left unchanged.
_POOLS: Final = ("avg", "")

#: timm's code in a group matcher for parameters of the preceding layer.
_SAME_LAYER: Final = (99999,)


class TimmNetwork(ResidualAttentionNetwork):
    """A preset with the methods that timm's tools call. It accepts images of any size from 16 pixels."""

    def __init__(
        self,
        preset: str | None = None,
        *,
        spec: Mapping[str, Any] | None = None,
        preprocessing: Mapping[str, Any] | None = None,
        num_classes: int = _CLASSES,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        img_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Build ``preset``, or the network of ``spec``.

        Args:
            preset: a name of ``list_presets``; None: use ``spec``.
            spec: plain values of a ``NetworkSpec``, as an exported folder contains them.
            preprocessing: plain values of a ``Preprocessing``, as an exported folder contains them.
            num_classes: number of classes; 0: return pooled features, without a classifier.
            in_chans: channels of the images.
            global_pool: "avg", or "" for the feature maps themselves (then without a classifier).
            drop_rate: probability of dropping a feature before the classifier.
            drop_path_rate: probability of dropping the last unit's branch; None: the spec's, and 0 of a
                preset.
            img_size: nominal size of the images in pixels, a side or (height, width); None: the preset's.
                It changes no weight, and the network also accepts other sizes.

        Raises:
            ConfigError, NetworkError: the arguments describe no network.
        """
        _check_head(num_classes, global_pool)
        side = img_size if isinstance(img_size, int | None) else min(img_size)
        classes = max(num_classes, 1)
        if spec is not None:
            known = NetworkSpec.from_dict(spec)
            super().__init__(
                dataclasses.replace(
                    known,
                    classes=classes,
                    in_channels=in_chans,
                    image_size=side or known.image_size,
                    drop_path=known.drop_path if drop_path_rate is None else drop_path_rate,
                )
            )
        else:
            config = TrialConfig(preset=preset, drop_path=drop_path_rate or 0.0, image_size=side)
            super().__init__(resolve_network(config, classes=classes, in_channels=in_chans))
        self.preprocessing = None if preprocessing is None else Preprocessing.from_dict(preprocessing)
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = self.spec.out_channels
        self.feature_info = _feature_info(self.spec)
        self.grad_checkpointing = False
        self.drop_rate = drop_rate
        self.num_classes, self.global_pool = num_classes, global_pool
        if not num_classes:
            self.add_module("classifier", nn.Identity())

    def preprocess(self, picture: Image.Image) -> Tensor:
        """Return a picture as the network saw it in validation: normalised, C x H x W.

        timm's own transform (``timm.data.create_transform``) gives a close result: it scales in one step,
        without the intermediate squares of the search's cache.

        Args:
            picture: a picture of any size and mode. Pass a file as ``PIL.Image.open`` returns it, which is
                not decoded, because training reads files this way.

        Raises:
            ConfigError: the network was not exported by this package.
        """
        how = self.preprocessing
        if how is None:
            hint = "`python -m tune_rescon.export --format timm` writes it beside the weights."
            raise ConfigError(format_error("the network must know its preprocessing", got="none", hint=hint))
        square = square_of(picture, how.stored_side, resize=how.resize, levels=how.levels)
        image_HWC = np.array(square.convert(how.channel_order)).reshape(how.stored_side, how.stored_side, -1)
        image_CHW = torch.from_numpy(image_HWC).permute(2, 0, 1)
        return Normalization(how)(image_CHW[None])[0].contiguous()

    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """Return the layer that computes logits from features, or its name if ``name_only``."""
        return "classifier" if name_only else self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Args:
            num_classes: number of classes; 0: no classifier.
            global_pool: "avg" or ""; None: unchanged.

        Raises:
            ConfigError: ``global_pool`` is unknown, or it is "" although ``num_classes`` is not 0.
        """
        pool = self.global_pool if global_pool is None else global_pool
        _check_head(num_classes, pool)
        like = next(self.parameters())
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.num_classes, self.global_pool = num_classes, pool
        self.add_module("classifier", head.to(device=like.device, dtype=like.dtype))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch activation checkpointing on or off: only each unit's input is kept for the gradient.

        Outputs, gradients, running statistics and random numbers stay the same.
        """
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that sort the parameters into layers, from the stem to the last unit.

        Args:
            coarse: True: a layer is a whole stage; False: a layer is a stage's opening units, an
                attention module, or a final unit.
        """
        fine_blocks = [(r"^stages\.(\d+)\.opening", None), (r"^stages\.(\d+)\.attention\.(\d+)", None)]
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)" if coarse else fine_blocks,
            "final": [(r"^final" if coarse else r"^final\.(\d+)", None), (r"^norm", _SAME_LAYER)],
        }

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the final feature maps of images, and the intermediate feature maps.

        Args:
            x: images, B x C x H x W.
            indices: indices into ``feature_info``; an int n: the last n; None: all.
            norm: apply the final normalisation and ReLU to the last map of ``feature_info``, if it is
                wanted.
            stop_early: stop after the last wanted map; the final feature maps are then that map.
            output_fmt: "NCHW", the only supported format.
            intermediates_only: return only the list.

        Returns:
            The feature maps, as :meth:`forward_features` returns them, and the list; or only the list.

        Raises:
            ConfigError: ``output_fmt`` is not "NCHW", or an index does not exist.
            NetworkError: an image side is below 16 pixels.
        """
        if output_fmt != "NCHW":
            raise ConfigError(format_error('output_fmt must be "NCHW"', got=repr(output_fmt)))
        wanted = _selected(len(self.feature_info), indices)
        furthest = max(wanted)
        intermediates: list[Tensor] = []
        with self._checkpointing():
            for index, x_BCHW in enumerate(self._feature_maps(x)):
                is_last = index == len(self.feature_info) - 1
                if index in wanted:
                    intermediates.append(self.relu(self.norm(x_BCHW)) if norm and is_last else x_BCHW)
                if stop_early and index == furthest:
                    break
        if intermediates_only:
            return intermediates
        return (self.relu(self.norm(x_BCHW)) if is_last else x_BCHW), intermediates

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers that no wanted feature map needs; the network then ends at the last wanted map.

        Args:
            indices: indices into ``feature_info``; an int n: the last n.
            prune_norm: also remove the final normalisation and ReLU.
            prune_head: also remove the classifier and the pooling. They are always removed if the last
                map of ``feature_info`` is not wanted.

        Returns:
            The wanted indices, as non-negative numbers.

        Raises:
            ConfigError: an index does not exist.
        """
        wanted = _selected(len(self.feature_info), indices)
        furthest = max(wanted)
        ends_early = furthest < len(self.feature_info) - 1
        self.stages = self.stages[:furthest]
        if furthest == 0 and self.spec.stem_pool:
            self.stem.add_module("pool", nn.Identity())
        if ends_early:
            self.final = nn.Sequential()
            self.num_features = self.head_hidden_size = self.feature_info[furthest]["num_chs"]
        if ends_early or prune_norm:
            self.norm, self.relu = nn.Identity(), nn.Identity()
        if ends_early or prune_head:
            self.reset_classifier(0, "")
        return wanted

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Return the feature maps of images."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            with activations_recomputed(self):
                return self.features(x_BCHW)
        return self.features(x_BCHW)

    def forward_head(self, x_BCHW: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of feature maps, or the classifier's input if ``pre_logits``."""
        if self.global_pool == "avg":
            x_BCHW = F.dropout(x_BCHW.mean(dim=(2, 3)), self.drop_rate, self.training)
        logits: Tensor = x_BCHW if pre_logits else self.classifier(x_BCHW)
        return logits

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the logits of images."""
        return self.forward_head(self.forward_features(images_BCHW))

    def _feature_maps(self, x_BCHW: Tensor) -> Iterator[Tensor]:
        """Yield the feature maps of ``feature_info``; each is computed when it is requested."""
        check_sides(x_BCHW, self.least_side)
        for name, layer in self.stem.named_children():
            if name == "pool":
                yield x_BCHW
            x_BCHW = layer(x_BCHW)
        if not self.spec.stem_pool:
            yield x_BCHW
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
            yield x_BCHW
        if len(self.final):
            yield self.final(x_BCHW)

    def _checkpointing(self) -> contextlib.AbstractContextManager[None]:
        return activations_recomputed(self) if self.grad_checkpointing else contextlib.nullcontext()


def _check_head(num_classes: int, global_pool: str) -> None:
    if global_pool not in _POOLS or (num_classes and not global_pool):
        rule = 'global_pool must be "avg", or "" with num_classes=0'
        raise ConfigError(format_error(rule, got=f"{global_pool!r} with num_classes={num_classes}"))


def _selected(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """Return the non-negative indices of the wanted ones of ``count`` feature maps: all, the last n, or any.

    >>> _selected(4, None), _selected(4, 2), _selected(4, (0, -1))
    ([0, 1, 2, 3], [2, 3], [0, 3])
    """
    chosen = range(count) if indices is None else indices
    if isinstance(chosen, int) and 0 < chosen <= count:
        chosen = range(count)[-chosen:]
    if isinstance(chosen, int) or not chosen or not all(-count <= index < count for index in chosen):
        rule = f"must be a number from 1 to {count}, or indices from {-count} to {count - 1}"
        raise ConfigError(format_error(rule, got=repr(indices), where="indices"))
    return [index % count for index in chosen]


def _feature_info(spec: NetworkSpec) -> list[dict[str, Any]]:
    """Return timm's table of the feature maps.

    The maps are the stem's, each stage's, and the final units' before the norm. ``reduction`` is the image's
    side divided by the map's.
    """
    module = "stem.relu" if spec.stem_norm else "stem.conv"
    reduction = spec.stem_stride
    table: list[dict[str, Any]] = [{"num_chs": spec.stem_channels, "reduction": reduction, "module": module}]
    reduction *= 2 if spec.stem_pool else 1
    for index, stage in enumerate(spec.stages):
        reduction *= stage.stride
        table.append({"num_chs": stage.channels, "reduction": reduction, "module": f"stages.{index}"})
    if spec.final_units:
        reduction *= spec.final_stride
        module = f"final.{spec.final_units - 1}"
        table.append({"num_chs": spec.final_channels, "reduction": reduction, "module": module})
    return table


def _spec(preset: str) -> NetworkSpec:
    return resolve_network(TrialConfig(preset=preset), classes=1, in_channels=3)


def _default(spec: NetworkSpec) -> dict[str, Any]:
    """Return timm's default config of a network."""
    side, small = spec.image_size, spec.image_size == _SMALL_SIDE
    *_, last, _classifier = iter_layers(spec)
    return {
        "num_classes": _SMALL_CLASSES if small else _CLASSES,
        "input_size": (spec.in_channels, side, side),
        "pool_size": (last.side, last.side),
        "crop_pct": 1.0 if small else 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        "classifier": "classifier",
    }


#: timm reads this name when a function of this module is registered.
default_cfgs = generate_default_cfgs(
    {
        **{f"{_PREFIX}{preset}": _default(_spec(preset)) for preset in list_presets()},
        EXPORTED: {"first_conv": "stem.conv", "classifier": "classifier"},
    }
)


def data_config(
    preprocessing: Preprocessing, spec: NetworkDescription, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return timm's ``pretrained_cfg`` of a trained network, which timm's transform and loaders read.

    Args:
        preprocessing: the preprocessing of the network's images.
        spec: the network.
        class_names: the names of the classes, in the order of the logits.
    """
    return {
        **(_default(spec) if isinstance(spec, NetworkSpec) else timm_defaults(spec)),
        "num_classes": len(class_names),
        "label_names": list(class_names),
        "crop_pct": 1.0,
        "crop_mode": _CROP_MODES[preprocessing.resize],
        "interpolation": preprocessing.interpolation,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
    }


def _entrypoint(preset: str) -> Callable[..., TimmNetwork]:
    def build(pretrained: bool = False, **options: Any) -> TimmNetwork:
        return _build(f"{_PREFIX}{preset}", _spec(preset), pretrained, preset=preset, **options)

    build.__name__ = build.__qualname__ = f"{_PREFIX}{preset}"
    build.__doc__ = f"The preset ``{preset}``."
    return build


def _build(name: str, described: NetworkSpec, pretrained: bool, **options: Any) -> TimmNetwork:
    network: TimmNetwork = build_model_with_cfg(
        TimmNetwork,
        name,
        pretrained,
        # Stem, stages and final units are sequences of layers; timm reads the feature maps from inside them.
        feature_cfg={"out_indices": tuple(range(len(_feature_info(described)))), "flatten_sequential": True},
        **options,
    )
    return network


@register_model
def tune_rescon_network(
    pretrained: bool = False, *, spec: Mapping[str, Any] | None = None, **options: Any
) -> TimmNetwork:
    """Build a network from plain values, such as a network that a search found; it need not be a preset.

    Args:
        pretrained: load weights, from the place that timm's config gives.
        spec: plain values of a ``NetworkSpec``. ``export --format timm`` writes them.
        options: arguments of :class:`TimmNetwork`.

    Raises:
        ConfigError: ``spec`` is None.
    """
    if spec is None:
        hint = "`timm.create_model('local-dir:FOLDER')` takes it from an exported folder."
        raise ConfigError(format_error(f"{EXPORTED} needs a `spec`", got="none", hint=hint))
    return _build(EXPORTED, NetworkSpec.from_dict(spec), pretrained, spec=spec, **options)


for _preset in list_presets():
    # timm adds the name to __all__, so the name must exist in this module.
    globals()[f"{_PREFIX}{_preset}"] = register_model(_entrypoint(_preset))

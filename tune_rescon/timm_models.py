"""The networks in timm's registry: import this module, and every preset is ``tune_rescon_PRESET`` there.

::

    import timm
    import tune_rescon.timm_models

    timm.create_model("tune_rescon_attention92", num_classes=10)
    timm.create_model("tune_rescon_cifar_attention56", num_classes=10, checkpoint_path="winner.safetensors")

The name has an underscore because timm refuses one with a slash, as a repository's or a folder's (1.0.31).
The weights' names are those of the package's own networks, so that what ``export --format safetensors`` has
written loads as it is. There are no pretrained weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from tune_rescon.config import TrialConfig
from tune_rescon.errors import ConfigError, explain
from tune_rescon.models import (
    NetworkSpec,
    ResidualAttentionNetwork,
    list_presets,
    resolve_network,
    walk,
)

__all__ = ["TimmNetwork", "default_cfgs"]

_PREFIX: Final = "tune_rescon_"

#: Classes unless asked otherwise: ImageNet's, and CIFAR-10's of the networks for its images.
_CLASSES, _SMALL_CLASSES, _SMALL_SIDE = 1000, 10, 32

#: Of the feature maps, B x C x H x W: averaged over H and W, or left as they are.
_POOLS: Final = ("avg", "")


class TimmNetwork(ResidualAttentionNetwork):
    """A preset with the methods that timm's tools call; of images at any size from 16 pixels on."""

    def __init__(
        self,
        preset: str,
        *,
        num_classes: int = _CLASSES,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        """Build ``preset``.

        Args:
            preset: a name of ``list_presets``.
            num_classes: 0: features, pooled, and no classifier.
            in_chans: channels of the images.
            global_pool: "avg", or "" for the feature maps themselves (then without classifier).
            drop_rate: probability of dropping a feature before the classifier.
            drop_path_rate: probability of dropping the last unit's branch.

        Raises:
            ConfigError, NetworkError: there is no such network.
        """
        _check_head(num_classes, global_pool)
        config = TrialConfig(preset=preset, drop_path=drop_path_rate)
        super().__init__(resolve_network(config, classes=max(num_classes, 1), in_channels=in_chans))
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = self.spec.out_channels
        self.drop_rate = drop_rate
        self.num_classes, self.global_pool = num_classes, global_pool
        if not num_classes:
            self.add_module("classifier", nn.Identity())

    def get_classifier(self) -> nn.Module:
        """What makes logits of features."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier of ``num_classes`` (0: none); ``global_pool``: None keeps it.

        Raises:
            ConfigError: no such pooling, or classes without any.
        """
        pool = self.global_pool if global_pool is None else global_pool
        _check_head(num_classes, pool)
        like = next(self.parameters())
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.num_classes, self.global_pool = num_classes, pool
        self.add_module("classifier", head.to(device=like.device, dtype=like.dtype))

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Feature maps of images."""
        return self.features(x_BCHW)

    def forward_head(self, x_BCHW: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of feature maps; ``pre_logits``: what the classifier would see."""
        if self.global_pool:
            x_BCHW = F.dropout(x_BCHW.mean(dim=(2, 3)), self.drop_rate, self.training)
        logits: Tensor = x_BCHW if pre_logits else self.classifier(x_BCHW)
        return logits

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits of images."""
        return self.forward_head(self.forward_features(images_BCHW))


def _check_head(num_classes: int, global_pool: str) -> None:
    if global_pool not in _POOLS or (num_classes and not global_pool):
        rule = 'global_pool must be "avg", or "" with num_classes=0'
        raise ConfigError(explain(rule, got=f"{global_pool!r} with num_classes={num_classes}"))


def _spec(preset: str) -> NetworkSpec:
    return resolve_network(TrialConfig(preset=preset), classes=1, in_channels=3)


def _default(spec: NetworkSpec) -> dict[str, Any]:
    """What timm wants to know of a network."""
    side, small = spec.image_size, spec.image_size == _SMALL_SIDE
    *_, last, _classifier = walk(spec)
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
    {f"{_PREFIX}{preset}": _default(_spec(preset)) for preset in list_presets()}
)


def _entry(preset: str) -> Callable[..., TimmNetwork]:
    def build(pretrained: bool = False, **options: Any) -> TimmNetwork:
        network: TimmNetwork = build_model_with_cfg(
            TimmNetwork, f"{_PREFIX}{preset}", pretrained, preset=preset, **options
        )
        return network

    build.__name__ = build.__qualname__ = f"{_PREFIX}{preset}"
    build.__doc__ = f"The preset ``{preset}``."
    return build


for _preset in list_presets():
    # timm adds the name to __all__, so it has to be one of this module.
    globals()[f"{_PREFIX}{_preset}"] = register_model(_entry(_preset))

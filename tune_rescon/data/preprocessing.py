"""The preprocessing of a picture for a network: one description for training and all later uses.

Training creates the description, and the checkpoint stores it. Validation, prediction, exports and timm's
configuration read it. :mod:`tune_rescon.data.decode` performs the first half of the preprocessing, and
:class:`Normalization` the second half, on the device.

Shape legend: B images of a batch, C channels, H = W side.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Normalization", "Preprocessing", "resized", "to_unit"]


class _TrainingImages(Protocol):
    """The fields of an open dataset and of a trained network that decide the preprocessing.

    :class:`Preprocessing` describes them. ``mean`` and ``std`` are those of the training images, also if
    images are not normalised. ``stored_side`` is None if an earlier version did not save it; pictures are
    then decoded to the network's image size.
    """

    @property
    def stored_side(self) -> int | None: ...
    @property
    def resize(self) -> str: ...
    @property
    def levels(self) -> tuple[float, float] | None: ...
    @property
    def interpolation(self) -> str: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The steps that turn an encoded picture into the input of a network.

    1. Decode it upright, scale and crop it to a square of ``stored_side`` pixels by the method ``resize``,
       and round to bytes. Scaling is bilinear and antialiased (Pillow's ``BILINEAR``).
    2. Scale the square to ``image_size`` pixels by ``interpolation``, antialiased, and round to bytes.
    3. Divide by 255, subtract ``mean`` and divide by ``std``, channel by channel.

    Attributes:
        stored_side: Side of the squares in the cache, pixels.
        image_size: Side of the network's input, pixels.
        resize: ``crop`` keeps the centre square of the picture. ``pad`` keeps the whole picture and adds
            black bars. ``squash`` keeps the whole picture and scales its two sides independently.
        levels: Values that become 0 and 255 in pictures of more than 8 bits; None: the whole range of their
            type. See :func:`tune_rescon.data.decode.to_bytes`.
        interpolation: ``bilinear``, or ``bicubic`` if pretrained weights were trained so.
        mean: Mean of each channel for pixels in 0..1; zeros if images are not normalised.
        std: Standard deviation of each channel for pixels in 0..1, never 0; ones if images are not
            normalised.
    """

    stored_side: int
    image_size: int
    resize: str = "crop"
    levels: tuple[float, float] | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: _TrainingImages, *, image_size: int, normalize: bool) -> Preprocessing:
        """Create the preprocessing from the description of a network's training images.

        Args:
            images: The dataset, or the trained network. A constant channel, with a standard deviation of 0,
                is only shifted.
            image_size: Side of the network's input, pixels.
            normalize: True if images are normalised.
        """
        channels = len(images.mean)
        return cls(
            stored_side=images.stored_side or image_size,
            image_size=image_size,
            resize=images.resize,
            levels=images.levels,
            interpolation=images.interpolation,
            mean=tuple(images.mean) if normalize else (0.0,) * channels,
            std=tuple(value or 1.0 for value in images.std) if normalize else (1.0,) * channels,
        )

    @property
    def channel_order(self) -> str:
        """``RGB``, or ``L`` for one channel of luminance."""
        return "L" if len(self.mean) == 1 else "RGB"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Create the preprocessing from the result of :meth:`to_dict`, also after a trip through JSON."""
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name != "channel_order"
        }
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they are stored in exported files."""
        return {**dataclasses.asdict(self), "channel_order": self.channel_order}


_BYTE: Final = 255.0

#: Processors, by Python's name, on which torch's resizing of bytes is vectorised at every CPU capability.
_ARM: Final = ("aarch64", "arm64")


class Normalization:
    """Resizes bytes to the network's input size and normalises them; caches its constants on each device."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        """Store the description."""
        self._preprocessing = preprocessing
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Return normalised float32 images in channels_last memory format from bytes of any size."""
        side, interpolation = self._preprocessing.image_size, self._preprocessing.interpolation
        images_BCHW = resized(images_BCHW, side, interpolation=interpolation)
        images_BCHW = images_BCHW.to(torch.float32, memory_format=torch.channels_last)
        mean_C11, std_C11 = self._on(images_BCHW.device)
        return images_BCHW.sub_(mean_C11).div_(std_C11)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of each channel's bytes on a device.

        They are created once per device, because copying Python numbers waits for a GPU.
        """
        if device not in self._constants:
            statistics = (self._preprocessing.mean, self._preprocessing.std)
            mean_C, std_C = (_BYTE * torch.tensor(values, dtype=torch.float32) for values in statistics)
            self._constants[device] = (mean_C[:, None, None].to(device), std_C[:, None, None].to(device))
        return self._constants[device]


def to_unit(images_BCHW: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Convert stored bytes to the input of an exported network: its image size, pixels in 0..1."""
    side, interpolation = preprocessing.image_size, preprocessing.interpolation
    return resized(images_BCHW, side, interpolation=interpolation).float() / _BYTE


def resized(images_BCHW: Tensor, side: int, *, interpolation: str = "bilinear") -> Tensor:
    """Resize bytes to ``side`` x ``side``, bilinear or bicubic with antialiasing, and round to bytes.

    The result is bitwise identical to that of ``torchvision.transforms.v2.functional.resize``. torchvision is
    not used, because its import takes seconds.
    """
    if images_BCHW.shape[-2:] == (side, side):
        return images_BCHW
    # torch's bilinear kernel for bytes is faster where it is vectorised. A GPU has no such kernel.
    in_bytes = images_BCHW.device.type == "cpu" and (
        interpolation == "bicubic"
        or torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        or platform.machine() in _ARM
    )
    source_BCHW = images_BCHW if in_bytes else images_BCHW.float()
    resized_BCHW = F.interpolate(
        source_BCHW, size=(side, side), mode=interpolation, align_corners=False, antialias=True
    )
    if in_bytes:
        return resized_BCHW
    # Bicubic interpolation overshoots at edges.
    return resized_BCHW.round_().clamp_(0, _BYTE).to(images_BCHW.dtype)

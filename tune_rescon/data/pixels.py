"""Convert stored bytes to a network's input on the device: the second half of the preprocessing.

Shape legend: B images of a batch, C channels, H = W side.
"""

from __future__ import annotations

import platform
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from tune_rescon.data.preprocessing import Preprocessing

__all__ = ["Normalization", "resized", "to_unit"]

_BYTE: Final = 255.0

#: Processors, by Python's name, on which torch's resizing of bytes is vectorised, whatever CPU capability
#: torch reports.
_ARM: Final = ("aarch64", "arm64")


class Normalization:
    """Resizes bytes to the network's input size and normalises them; caches its constants on each device."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        """Store the description."""
        self._preprocessing = preprocessing
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Return normalised float32 images in channels_last memory format from bytes of any size."""
        known = self._preprocessing
        images_BCHW = resized(images_BCHW, known.image_size, interpolation=known.interpolation)
        images_BCHW = images_BCHW.to(torch.float32, memory_format=torch.channels_last)
        mean_C11, std_C11 = self._on(images_BCHW.device)
        return images_BCHW.sub_(mean_C11).div_(std_C11)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of each channel's bytes on a device.

        They are created once per device, because copying Python numbers waits for a GPU.
        """
        if device not in self._constants:
            known = (self._preprocessing.mean, self._preprocessing.std)
            mean_C, std_C = (_BYTE * torch.tensor(values, dtype=torch.float32) for values in known)
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

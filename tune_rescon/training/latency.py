"""How long a network takes for one image, measured on a device of this machine."""

from __future__ import annotations

import functools
import time
from typing import Final

import torch

from tune_rescon.errors import ResourceError, format_error
from tune_rescon.models import NetworkDescription, build_described
from tune_rescon.training.device import own_generator, resolve_device

__all__ = ["measure_latency"]

#: Passes before the measurement, in which libraries choose algorithms and allocate memory.
_WARMUP: Final = 3

#: Passes that are timed at least, and seconds of passes after which no further one begins.
_LEAST: Final = 5
_SECONDS: Final = 0.2


@functools.lru_cache(maxsize=1024)
def measure_latency(spec: NetworkDescription, device: str) -> float:
    """Return the milliseconds of a network's forward pass for one image of its size.

    The network has random weights, is in eval mode and computes in fp32, on a CPU with one thread. The
    shortest of several passes counts, because other work on the machine delays it least. A network is
    measured once in a process.

    Args:
        spec: the network and its image size.
        device: "cpu" or "cuda".

    Raises:
        NetworkError: the network cannot be built.
        ResourceError: this machine does not have the device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        rule = "must be a device of the machine on which the search is started"
        got = "cuda, and torch finds no GPU here"
        raise ResourceError(format_error(rule, got=got, where="constraints.latency_ms.device"))
    placement = resolve_device(device, precision="fp32")
    with own_generator(placement.device), placement.active(threads=1), torch.inference_mode():
        network = placement.network(build_described(spec)).eval()
        images_BCHW = placement.images(torch.rand(1, spec.in_channels, spec.image_size, spec.image_size))
        for _ in range(_WARMUP):
            network(images_BCHW)
        passes: list[float] = []
        while len(passes) < _LEAST or sum(passes) < _SECONDS:
            _wait(placement.device)
            began = time.perf_counter()
            network(images_BCHW)
            _wait(placement.device)
            passes.append(time.perf_counter() - began)
    return 1e3 * min(passes)


def _wait(device: torch.device) -> None:
    """Wait for a GPU's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

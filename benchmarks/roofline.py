"""What a device can do, measured, and what a training step asks of it, counted.

A step's operations are exact: three times the network's multiply-adds (forward, and the gradients of inputs
and of weights), two operations each. Its bytes are an estimate (:func:`training_bytes`).
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from tune_rescon.models import NetworkSpec, count_params_and_macs, iter_layers

#: How often each figure is measured; the median counts.
REPEATS = 20


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Of a device: operations per second by format, and bytes per second read and written."""

    flops: dict[str, float]
    bandwidth: float


def measure_peaks(device: str, *, side: int, copy_bytes: int) -> Peaks:
    """Products of square matrices of ``side``, and copies of ``copy_bytes`` within the device."""
    formats = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if device == "cuda":
        formats |= {"tf32": torch.float32, "fp16": torch.float16}  # formats of CUDA's matrix units
    flops = {name: 2 * side**3 / _matmul_seconds(device, side, name, kind) for name, kind in formats.items()}
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Peaks(flops=flops, bandwidth=2 * copy_bytes / seconds(lambda: target.copy_(source), device))


def _matmul_seconds(device: str, side: int, name: str, kind: torch.dtype) -> float:
    # Random: on zeros a GPU draws less power and runs faster than any network could.
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    with _matmul_precision("high" if name == "tf32" else "highest"):
        return seconds(lambda: a @ b, device)


@contextlib.contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def seconds(call: Callable[[], object], device: str) -> float:
    """Median time of ``call``, on the device."""
    times = []
    for _ in range(3 + REPEATS):
        wait(device)
        started = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:])


def wait(device: str) -> None:
    """Until the device has done what was queued."""
    if device == "cuda":
        torch.cuda.synchronize()


def training_flops(spec: NetworkSpec) -> int:
    """Operations of one image's share of a training step."""
    return 3 * 2 * count_params_and_macs(spec).macs


def training_bytes(spec: NetworkSpec, *, element: int) -> int:
    """Bytes that one image's share of a training step moves, if each layer reads and writes whole maps.

    A convolution: input and output forward; as much for the input's gradient, and again for the weights'. A
    batch norm, with the ReLU after it: forward the input twice (statistics first) and the output, backward
    input and gradient twice and the input's gradient once: eight maps. Masks, sums, pooling, interpolation
    and weights are left out, and what a cache or a fusion saves is not taken off.

    ``element``: bytes of a number.
    """
    maps = 0
    for layer in iter_layers(spec):
        if layer.kind == "conv":
            entering = layer.in_channels * (layer.side * layer.stride) ** 2
            maps += 3 * (entering + layer.out_channels * layer.side**2)
        elif layer.kind == "norm":
            maps += 8 * layer.out_channels * layer.side**2
    return element * maps

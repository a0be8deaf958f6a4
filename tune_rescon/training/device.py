"""Where and how precisely a network runs: device, floating-point format, memory layout.

``choose_precision`` decides, ``DeviceConfig`` carries the decision, and ``DeviceConfig.active`` is the only
place that sets the process's switches (TF32, cuDNN's autotuner, threads, the heap) and restores them.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tune_rescon.errors import ResourceError, format_error, unknown_name_message

__all__ = [
    "DeviceConfig",
    "Precision",
    "choose_precision",
    "device_name",
    "epoch_seed",
    "freed_memory_kept",
    "generator_states",
    "own_generator",
    "place",
    "restore_generators",
    "seed_epoch",
]


def device_name(device: str) -> str:
    """The kind of ``device`` ("cpu", "cuda") of this process; GPUs of one kind have one name.

    >>> device_name("cpu")
    'CPU'
    """
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


#: mallopt's numbers, from glibc's malloc.h.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3

#: Blocks up to here (bytes, an int's largest) come from the heap.
_LARGEST: Final = 2**31 - 1

#: glibc adjusts both as blocks are freed, and cannot be asked; these are the ends it adjusts them to.
_ADJUSTED: Final = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it, what the process frees stays its own. For all threads; blocks in use are not touched."""
    # glibc's alone.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, -1)  # mallopt(3): -1 never trims
    try:
        yield
    finally:
        for option, size in _ADJUSTED.items():
            mallopt(option, size)


Precision = Literal["fp32", "tf32", "bf16"]
_Module = TypeVar("_Module", bound=nn.Module)


def choose_precision(requested: str, *, device_type: str, bf16: bool) -> Precision:
    """The format of ``requested`` ("auto", "fp32", "tf32", "bf16") on a device.

    "auto" is bf16 autocast where a CUDA device computes it in hardware, TF32 on older CUDA devices (which
    fall back to fp32 themselves before Ampere), and fp32 on a CPU: many have no bf16 and emulate it, many
    times slower. One that has it (AVX512-BF16, AMX) is faster for being asked: 1.8 times here
    (benchmarks/NOTES.md). TF32 is a format of CUDA's matrix units: elsewhere it is fp32.

    >>> choose_precision("auto", device_type="cuda", bf16=True)
    'bf16'
    >>> choose_precision("auto", device_type="cuda", bf16=False)
    'tf32'
    >>> [choose_precision(requested, device_type="cpu", bf16=True) for requested in ("auto", "tf32", "bf16")]
    ['fp32', 'fp32', 'bf16']
    """
    on_cuda = device_type == "cuda"
    if requested == "bf16" or (requested == "auto" and on_cuda and bf16):
        return "bf16"
    return "tf32" if on_cuda and requested in ("auto", "tf32") else "fp32"


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """A device and the precision to compute in. Weights are fp32 and channels-last on every device."""

    device: torch.device
    precision: Precision

    def autocast(self) -> torch.autocast:
        """The context a forward pass runs in: bf16 autocast, or none. bf16 needs no gradient scaler.

        It keeps no cast weights: each is used once in a pass, and a recorded pass must cast them itself.
        """
        bf16 = self.precision == "bf16"
        # Where it is off, its cache's switch stays as torch has it: compiled code depends on both.
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=not bf16)

    def network(self, network: _Module) -> _Module:
        """``network`` on the device, channels-last, in which CPUs and tensor cores convolve faster."""
        return network.to(self.device).to(memory_format=torch.channels_last)

    def images(self, images_BCHW: Tensor) -> Tensor:
        """``images_BCHW`` on the device, channels-last."""
        return images_BCHW.to(self.device, memory_format=torch.channels_last, non_blocking=True)

    @contextlib.contextmanager
    def active(self, threads: int | None = None) -> Iterator[None]:
        """Hold the process's switches at this placement; ``threads`` bounds torch's CPU threads.

        One trial's settings must not leak into the next one of a reused worker process, nor into a notebook.
        """
        matmul, count = torch.get_float32_matmul_precision(), torch.get_num_threads()
        # TF32's older switch: reading it, as Lightning does, raises once the newer one was set.
        torch.set_float32_matmul_precision("highest" if self.precision == "fp32" else "high")
        torch.set_num_threads(threads or count)
        on_cuda = self.device.type == "cuda"
        heap = contextlib.nullcontext() if on_cuda else freed_memory_kept()
        cudnn = torch.backends.cudnn.flags(
            enabled=True, benchmark=on_cuda, deterministic=False, allow_tf32=self.precision != "fp32"
        )
        with heap, cudnn:
            try:
                yield
            finally:
                torch.set_num_threads(count)
                torch.set_float32_matmul_precision(matmul)


def place(device: str, *, precision: str) -> DeviceConfig:
    """Resolve ``device`` ("auto", "cpu", "cuda") and ``precision`` (see :func:`choose_precision`).

    Raises:
        ResourceError: no such device, or "cuda" on a machine without one.
    """
    available = torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda"):
        raise ResourceError(unknown_name_message("device", device, ("auto", "cpu", "cuda")))
    if device == "cuda" and not available:
        rule = 'device "cuda" needs a CUDA GPU that torch can use'
        raise ResourceError(format_error(rule, got="none", hint='Use "cpu" or "auto".'))
    kind = "cuda" if available and device != "cpu" else "cpu"
    # Emulated bf16 (before Ampere) is correct but slower than fp32: it does not count.
    bf16 = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    chosen = choose_precision(precision, device_type=kind, bf16=bf16)
    return DeviceConfig(device=torch.device(kind), precision=chosen)


# The data module's streams are 2 and 3: one seed, but no two uses of it alike.
_NETWORK_STREAM = 4


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """64 bits from ``seed`` and ``epoch``: far apart for neighbours, where ``seed + epoch`` would collide.

    >>> len({epoch_seed(seed, epoch) for seed in range(10) for epoch in range(10)})
    100
    >>> epoch_seed(0, 1) == epoch_seed(0, 1, 0), epoch_seed(0, 1) == epoch_seed(0, 1, 1)
    (True, False)
    """
    # numpy seeds (s, e) and (s, e, 0) alike: the first of several processes draws what the only one would.
    return int(np.random.SeedSequence((_NETWORK_STREAM, seed, epoch, rank)).generate_state(1, np.uint64)[0])


def seed_epoch(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed torch, on every device, for ``epoch`` (from 1; 0 is the network's initialisation).

    ``rank``: of a process that trains the trial with others.
    """
    torch.manual_seed(epoch_seed(seed, epoch, rank))


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Where the generators are that a network on ``device`` draws from, by kind of device."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Back from :func:`generator_states`. Who goes on on another kind of device draws other numbers there."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


@contextlib.contextmanager
def own_generator(device: torch.device) -> Iterator[None]:
    """Leave the caller's generators, a notebook's say, as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield

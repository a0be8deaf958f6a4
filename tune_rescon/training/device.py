"""The device on which a network runs, its floating-point format and its memory layout.

``choose_precision`` decides the format and ``DeviceConfig`` holds the decision. ``DeviceConfig.active`` is
the only function that sets the process's switches (TF32, cuDNN's autotuner, threads, the heap); it restores
them afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tune_rescon.errors import ResourceError, format_error, unknown_name_message

__all__ = [
    "DeviceConfig",
    "Precision",
    "check_cuda",
    "choose_precision",
    "device_name",
    "epoch_seed",
    "freed_memory_kept",
    "generator_states",
    "isolate_rng",
    "oldest_driver",
    "resolve_device",
    "restore_generators",
    "seed_epoch",
]


def device_name(device: str) -> str:
    """Return the model of this process's ``device`` ("cpu", "cuda"); GPUs of one model have the same name.

    Raises:
        ResourceError: the device is "cuda" and torch cannot use a GPU.

    >>> device_name("cpu")
    'CPU'
    """
    if device != "cuda":
        return "CPU"
    check_cuda()
    return torch.cuda.get_device_name()


#: CUDA's major version -> the major version of the oldest driver on which programs built for it run (NVIDIA's
#: table of CUDA's minor version compatibility).
_OLDEST_DRIVERS: Final = {"11": 450, "12": 525, "13": 580}

#: The file with the version of NVIDIA's kernel module; a container sees it too.
_DRIVER: Final = Path("/proc/driver/nvidia/version")


def oldest_driver(cuda: str | None = torch.version.cuda) -> int | None:
    """Return the major version of the oldest NVIDIA driver that a torch built for ``cuda`` runs on.

    Returns None if torch is built without CUDA, or for a CUDA that is newer than the table.

    >>> oldest_driver("13.2"), oldest_driver("12.8"), oldest_driver(None)
    (580, 525, None)
    """
    return _OLDEST_DRIVERS.get((cuda or "").partition(".")[0])


def check_cuda(driver: Path = _DRIVER) -> None:
    """Check that torch can use a GPU of this machine.

    Ray counts GPUs without torch. A machine whose driver is too old for torch's CUDA therefore has a GPU for
    Ray and no GPU for torch. Training on its CPU instead would cost the GPU's price at a small part of its
    speed.

    Args:
        driver: the file that has the version of the machine's driver.

    Raises:
        ResourceError: torch cannot use a GPU. The message has torch's reason, the driver's version and the
            oldest version that torch's CUDA needs.
    """
    if torch.cuda.is_available():
        return
    rule = 'device "cuda" needs a CUDA GPU that torch can use'
    raise ResourceError(format_error(rule, got=_why_no_cuda(), hint=_cuda_advice(_driver_version(driver))))


def _why_no_cuda() -> str:
    reason = "it reports no GPU"
    try:
        torch.cuda.current_device()
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    return f"none on {platform.node()} ({reason})"


def _cuda_advice(driver: str | None) -> str:
    cpu = "Without a GPU, ask for none: resources_per_trial.gpu=0."
    oldest = oldest_driver()
    if torch.version.cuda is None:
        return f"This torch is built without CUDA: install one that has it. {cpu}"
    if oldest is None:
        return f"This torch is built for CUDA {torch.version.cuda}: update NVIDIA's driver. {cpu}"
    needs = (
        f"This torch is built for CUDA {torch.version.cuda}, which needs NVIDIA's driver {oldest} or newer"
    )
    if driver is None:
        return f"{needs}; no driver was found. Install it, or give the container the GPU. {cpu}"
    if int(driver.partition(".")[0]) < oldest:
        return f"{needs}; the driver here is {driver}. Update it, or boot an image that has it. {cpu}"
    return f"{needs}, and {driver} is here: look at CUDA_VISIBLE_DEVICES and at the container's GPUs. {cpu}"


def _driver_version(path: Path) -> str | None:
    try:
        found = re.search(r"\b(\d{3,}(?:\.\d+)+)\b", path.read_text(errors="replace"))
    except OSError:
        return None
    return found[1] if found else None


#: mallopt's option numbers, from glibc's malloc.h.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3

#: Blocks up to this size come from the heap (bytes; the largest int).
_LARGEST_BLOCK: Final = 2**31 - 1

#: The values to restore. glibc adjusts both thresholds when blocks are freed, and cannot report them; these
#: are the limits of the adjustment.
_RESTORED_THRESHOLDS: Final = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory in the process within the context, instead of returning it to the system.

    This applies to all threads. Allocated blocks are not moved.
    """
    # Only glibc has mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
    mallopt(_TRIM_THRESHOLD, -1)  # mallopt(3): -1 never trims
    try:
        yield
    finally:
        for option, size in _RESTORED_THRESHOLDS.items():
            mallopt(option, size)


Precision = Literal["fp32", "tf32", "bf16", "fp16"]

#: The formats of 16 bits, which are used by autocast only.
_HALVES: Final[Mapping[str, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: Range of compute capabilities (from, below) of the GPUs whose matrix units compute fp16 but not bf16: Volta
#: and Turing.
_FP16_ONLY: Final = ((7, 0), (8, 0))

_Module = TypeVar("_Module", bound=nn.Module)


def choose_precision(
    requested: str, *, device_type: str, bf16: bool = False, fp16: bool = False
) -> Precision:
    """Return the floating-point format to compute in.

    "auto" is bf16 autocast on a CUDA device that computes bf16 in hardware, fp16 autocast on one that has
    matrix units for fp16 only, TF32 on other CUDA devices (those before Ampere compute fp32 instead), and
    fp32 on a CPU. Many CPUs only emulate bf16, many times slower. A CPU with bf16 hardware (AVX512-BF16, AMX)
    is faster if bf16 is requested: 1.8 times in benchmarks/notes/training_step.md. On a CPU, TF32 and fp16
    become fp32: TF32 is a format of CUDA's matrix units, and CPUs compute fp16 more slowly than fp32.

    Args:
        requested: "auto", "fp32", "tf32", "bf16" or "fp16".
        device_type: "cpu" or "cuda".
        bf16: True if the CUDA device computes bf16 in hardware.
        fp16: True if the CUDA device has matrix units for fp16.

    >>> choose_precision("auto", device_type="cuda", bf16=True, fp16=True)
    'bf16'
    >>> choose_precision("auto", device_type="cuda", fp16=True), choose_precision("auto", device_type="cuda")
    ('fp16', 'tf32')
    >>> [choose_precision(requested, device_type="cpu") for requested in ("auto", "tf32", "bf16", "fp16")]
    ['fp32', 'fp32', 'bf16', 'fp32']
    """
    on_cuda = device_type == "cuda"
    if requested == "bf16" or (requested == "auto" and on_cuda and bf16):
        return "bf16"
    if on_cuda and (requested == "fp16" or (requested == "auto" and fp16)):
        return "fp16"
    return "tf32" if on_cuda and requested in ("auto", "tf32") else "fp32"


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """A device and the precision to compute in. Weights are fp32 and channels-last on every device."""

    device: torch.device
    precision: Precision

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The format of 16 bits that autocast uses; None if it is off."""
        return _HALVES.get(self.precision)

    @property
    def scales_gradients(self) -> bool:
        """True if the loss must be scaled, because small gradients would become zero.

        bf16 has fp32's range and needs no scale.
        """
        return self.precision == "fp16"

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass: bf16 or fp16 autocast, or a disabled one.

        Autocast does not cache the cast weights: each weight is used once in a pass, and a captured pass must
        contain its casts.
        """
        dtype = self.autocast_dtype
        # If autocast is off, its cache keeps torch's default, because compiled code depends on that setting.
        return torch.autocast(
            self.device.type,
            dtype=dtype or torch.bfloat16,
            enabled=dtype is not None,
            cache_enabled=not dtype,
        )

    def within_range(self, compute: Callable[[], Tensor]) -> Tensor:
        """Return the result of a forward pass, in fp32, computed in this precision if its range suffices.

        fp16 ends at 65,504. A single image with a larger activation would make the metrics of a whole epoch
        nan, so the batch is computed again in fp32. Only fp16 is checked, because the check makes a GPU wait.

        Args:
            compute: runs the forward pass; called a second time if the first result is not finite.
        """
        with self.autocast():
            values = compute().float()
        if self.precision == "fp16" and not values.isfinite().all():
            with dataclasses.replace(self, precision="fp32").autocast():
                return compute().float()
        return values

    def move_network(self, network: _Module) -> _Module:
        """Move ``network`` to the device, channels-last: CPUs and tensor cores then convolve faster."""
        return network.to(self.device).to(memory_format=torch.channels_last)

    def move_images(self, images_BCHW: Tensor) -> Tensor:
        """Return ``images_BCHW`` on the device, channels-last."""
        return images_BCHW.to(self.device, memory_format=torch.channels_last, non_blocking=True)

    @contextlib.contextmanager
    def active(self, threads: int | None = None) -> Iterator[None]:
        """Set the process's switches for this device and precision, and restore them afterwards.

        The settings of one trial must not leak into the next one of a reused worker process, nor into a
        notebook.

        Args:
            threads: CPU threads that torch may use; None leaves the number unchanged.
        """
        matmul, count = torch.get_float32_matmul_precision(), torch.get_num_threads()
        on_cuda = self.device.type == "cuda"
        heap = contextlib.nullcontext() if on_cuda else freed_memory_kept()
        cudnn = torch.backends.cudnn.flags(
            enabled=True, benchmark=on_cuda, deterministic=False, allow_tf32=self.precision != "fp32"
        )
        with heap, cudnn:
            try:
                # TF32's older switch: Lightning reads it, which raises if the newer one has been set.
                torch.set_float32_matmul_precision("highest" if self.precision == "fp32" else "high")
                torch.set_num_threads(threads or count)
                yield
            finally:
                torch.set_num_threads(count)
                torch.set_float32_matmul_precision(matmul)


def resolve_device(device: str, *, precision: str) -> DeviceConfig:
    """Return the device and precision that ``device`` and ``precision`` select.

    "auto" is CUDA if available. For ``precision`` see :func:`choose_precision`.

    Raises:
        ResourceError: the device is unknown, or it is "cuda" and torch cannot use a GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ResourceError(unknown_name_message("device", device, ("auto", "cpu", "cuda")))
    if device == "cuda":
        check_cuda()
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    # Emulated bf16 (before Ampere) does not count: it is correct, but slower than fp32.
    bf16 = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    fp16 = kind == "cuda" and _FP16_ONLY[0] <= torch.cuda.get_device_capability() < _FP16_ONLY[1]
    chosen = choose_precision(precision, device_type=kind, bf16=bf16, fp16=fp16)
    return DeviceConfig(device=torch.device(kind), precision=chosen)


# The data module's streams are 2 and 3, so that different uses of one seed draw different numbers.
_NETWORK_STREAM = 4


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Return 64 bits from ``seed``, ``epoch`` and ``rank``.

    Neighbouring seeds and epochs give unrelated results; ``seed + epoch`` would collide.

    Args:
        seed: the trial's seed.
        epoch: from 1; 0 is the network's initialisation.
        rank: of this process among those that train the trial.

    >>> len({epoch_seed(seed, epoch) for seed in range(10) for epoch in range(10)})
    100
    >>> epoch_seed(0, 1) == epoch_seed(0, 1, 0), epoch_seed(0, 1) == epoch_seed(0, 1, 1)
    (True, False)
    """
    # numpy gives (s, e) and (s, e, 0) the same seed, so rank 0 of several processes draws the numbers of a
    # single one.
    return int(np.random.SeedSequence((_NETWORK_STREAM, seed, epoch, rank)).generate_state(1, np.uint64)[0])


def seed_epoch(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed torch, on every device, for an epoch.

    Args:
        seed: the trial's seed.
        epoch: from 1; 0 is the network's initialisation.
        rank: of this process among those that train the trial.
    """
    torch.manual_seed(epoch_seed(seed, epoch, rank))


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the generators that a network on ``device`` draws from, by kind of device."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore the states of :func:`generator_states`.

    The state of a kind of device that ``states`` does not have is left unchanged.
    """
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


@contextlib.contextmanager
def isolate_rng(device: torch.device) -> Iterator[None]:
    """Restore the states of torch's generators after the block, because the caller draws from them too."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield

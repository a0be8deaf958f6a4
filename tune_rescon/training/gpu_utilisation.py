"""How busy a trial's GPU is: read once a second by a thread beside the training."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterator
from typing import Final

import torch

__all__ = ["PERIOD", "UtilisationSampler", "nvml_reading", "sampled"]

_log = logging.getLogger(__name__)

#: Seconds between two readings. NVML's own sample period is a second or less.
PERIOD: Final = 1.0

#: Returns the share of the last second in which the GPU ran a kernel, 0..1.
Reading = Callable[[], float]


def nvml_reading(device: torch.device) -> Reading | None:
    """Return a function that asks NVML how busy a CUDA device is; None if NVML cannot be asked.

    It needs the package nvidia-ml-py. A part of a GPU (MIG) has no utilisation.
    """

    def read() -> float:
        return torch.cuda.utilization(device) / 100

    try:
        read()
    except Exception as error:
        # ModuleNotFoundError without the package, RuntimeError without the driver, and else NVML's own error,
        # whose class exists only with the package.
        _log.info("the GPU's utilisation is not recorded: %s", error)
        return None
    return read


class UtilisationSampler:
    """The readings since the last epoch, and their mean."""

    def __init__(self, read: Reading) -> None:
        """Create the sampler; ``read`` returns the present reading."""
        self._read = read
        self._readings: list[float] = []
        self._lock = threading.Lock()

    def sample(self) -> None:
        """Take a reading."""
        reading = self._read()
        with self._lock:
            self._readings.append(reading)

    def mean(self) -> float:
        """Return the mean of the readings since the last call; nan without a reading."""
        with self._lock:
            readings, self._readings = self._readings, []
        return math.fsum(readings) / len(readings) if readings else math.nan

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Take a reading every :data:`PERIOD` seconds within the block, on a thread.

        If a reading fails, the thread ends and the block is not disturbed.
        """
        ended = threading.Event()

        def serve() -> None:
            try:
                while not ended.wait(PERIOD):
                    self.sample()
            except Exception as error:
                # As in nvml_reading: NVML's errors have no common class without the package.
                _log.warning("the GPU's utilisation is no longer recorded: %s", error)

        thread = threading.Thread(target=serve, name="gpu utilisation", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def sampled(device: torch.device, read: Reading | None) -> Iterator[Callable[[], float] | None]:
    """Sample the utilisation of ``device`` within the block, and yield :meth:`UtilisationSampler.mean`.

    Without a GPU yield None and start no thread. On a GPU whose utilisation cannot be read the function that
    is yielded returns nan.

    ``read`` returns the present reading; None asks NVML.
    """
    if read is None and device.type != "cuda":
        yield None
        return
    read = read or nvml_reading(device)
    if read is None:
        yield lambda: math.nan
        return
    sampler = UtilisationSampler(read)
    with sampler.running():
        yield sampler.mean

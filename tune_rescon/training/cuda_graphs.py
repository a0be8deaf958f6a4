"""CUDA graphs: the forward and backward pass of a step in one launch by the host instead of thousands.

These networks have many small layers. On a fast GPU the host needs several times as long to launch a step's
kernels as the device needs to run them (benchmarks/notes/gpu.md). A captured step is replayed by a single
call. A graph has fixed shapes and fixed addresses: batches are copied into its inputs, and each replay
overwrites the outputs of the one before.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from tune_rescon.config import TrialConfig
from tune_rescon.errors import first_line
from tune_rescon.training.device import DeviceConfig, isolate_rng
from tune_rescon.training.memory import ran_out_of_memory

__all__ = [
    "CaptureError",
    "CapturedStep",
    "CudaGraphs",
    "FusedWeightCast",
    "GraphCapture",
    "HangWatchdog",
    "Outputs",
    "choose_graph_capture",
]


class FusedWeightCast:
    """Casts all weights that autocast would cast, those of convolutions and linear layers, in one kernel."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        """Collect the weights of ``network``, which is not changed; ``dtype`` is that of the copies."""
        self._dtype = dtype
        self._weights = {
            f"{name}.weight": module.weight
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        }

    def copies(self) -> dict[str, Tensor]:
        """Return a cast copy of each weight, by its name in the network.

        A copy requires gradients if its weight does.
        """
        copies = [torch.empty_like(weight, dtype=self._dtype) for weight in self._weights.values()]
        with torch.no_grad():
            torch._foreach_copy_(copies, list(self._weights.values()))
        pairs = zip(self._weights.items(), copies, strict=True)
        return {name: copy.requires_grad_(weight.requires_grad) for (name, weight), copy in pairs}

    def backward_to_fp32(self, copies: Mapping[str, Tensor]) -> None:
        """Set the weights' gradients to those of their ``copies``."""
        pairs = [(self._weights[name], copy.grad) for name, copy in copies.items() if copy.grad is not None]
        gradients = [torch.empty_like(weight) for weight, _ in pairs]
        torch._foreach_copy_(gradients, [gradient for _, gradient in pairs])
        for (weight, _), gradient in zip(pairs, gradients, strict=True):
            weight.grad = gradient


_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HangWatchdog:
    """Ends this process if a block hangs.

    Each watched process has a file in a folder that the processes of a node share. If the watchdog ends the
    process, the file holds its stack traces. The file of a process that died otherwise is empty, and is
    ignored.
    """

    folder: Path
    key: str
    """Identifies the watched computation; equal for computations that would hang alike."""

    def earlier_hang(self) -> Path | None:
        """Return the file of an earlier process that the watchdog ended; None if it ended no process."""
        for file in self.folder.glob(f"{self._stem}.*"):
            # Another process may have finished in between and removed its file.
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_size:
                    return file
        return None

    @contextlib.contextmanager
    def watching(self, seconds: float) -> Iterator[None]:
        """End this process if the block is not left within ``seconds``.

        A process can watch one block at a time.
        """
        evidence = self.folder / f"{self._stem}.{os.getpid()}.txt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = evidence.open("w")
        except OSError as error:
            _log.warning("a CUDA graph that hangs is not ended: %s", error)
            yield
            return
        with file:
            faulthandler.dump_traceback_later(seconds, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                evidence.unlink(missing_ok=True)

    @property
    def _stem(self) -> str:
        return blake2b(self.key.encode(), digest_size=12).hexdigest()


Outputs = tuple[Tensor, ...]

#: Runs before a capture, in which libraries try algorithms, load kernels and allocate memory for each stream
#: they are used on.
_WARMUP_RUNS: Final = 3

#: Replays that are watched and waited for one by one; a graph that hangs does so in one of its first replays.
_WATCHED_REPLAYS: Final = 5

#: Timeouts in seconds: one for the runs before a capture, one for the capture or a replay. On the slowest
#: machine measured, the libraries' first runs took 13 and those of compiled units 70; the capture or a replay
#: took one or less (benchmarks/notes/gpu.md).
_WARMUP_TIMEOUT: Final = 600.0
_REPLAY_TIMEOUT: Final = 120.0

#: A context that ends the process if the context is not left within the given seconds.
Watching = Callable[[float], contextlib.AbstractContextManager[object]]


class CaptureError(RuntimeError):
    """A step cannot be captured on this device; it may still run eagerly."""


#: Captures a function that runs on a device. It returns a function that replays the captured work on the same
#: memory, and the outputs that each replay overwrites.
GraphCapture = Callable[[Callable[[], Outputs]], tuple[Callable[[], object], Outputs]]


class CudaGraphs:
    """A :data:`GraphCapture` that uses CUDA graphs."""

    def __init__(
        self,
        device: torch.device,
        *,
        compiles: bool = False,
        watching: Watching = contextlib.nullcontext,
    ) -> None:
        """Create the capture for a CUDA device.

        Args:
            device: the device.
            compiles: True if the first run of a function compiles it.
            watching: the context that ends the process if a capture hangs.
        """
        self._device, self._compiles, self._watching = device, compiles, watching

    def __call__(self, run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        """Capture ``run`` (:data:`GraphCapture`); it must not make the host wait for the device.

        Raises:
            CaptureError: ``run`` cannot be captured, or fails even when it runs eagerly.
            torch.OutOfMemoryError: the memory is too small.
        """
        try:
            with self._watching(_WARMUP_TIMEOUT):
                stream = self._warm_up(run)
            with self._watching(_REPLAY_TIMEOUT):
                replay, outputs = self._capture(run, stream)
            replay = self._watch_first_replays(replay)
            replay()
            return replay, outputs
        except RuntimeError as error:
            _release_generator(self._device)
            if ran_out_of_memory(error):
                raise
            raise CaptureError(first_line(error)) from error

    def _warm_up(self, run: Callable[[], Outputs]) -> torch.cuda.Stream:
        """Run ``run`` on the capture stream, wait for its end, and return the stream."""
        if self._compiles:
            # Run on the stream of eager steps first, for which compiled code is tuned and loaded.
            run()
            gc.collect()  # leftover references to that stream would draw it into the capture
        stream = _capture_stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP_RUNS):
                run()
        torch.cuda.synchronize(self._device)  # here, because the watchdog's context covers it
        return stream

    def _capture(
        self, run: Callable[[], Outputs], stream: torch.cuda.Stream
    ) -> tuple[Callable[[], object], Outputs]:
        graph = torch.cuda.CUDAGraph()
        # Capture this thread only, because another thread copies the next batches meanwhile.
        capture = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
        # torch leaves its own stream context open if a capture fails.
        with torch.cuda.stream(stream), capture:
            outputs = run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return graph.replay, outputs

    def _watch_first_replays(self, replay: Callable[[], object]) -> Callable[[], None]:
        """Return ``replay`` with its first calls watched and waited for."""
        left = _WATCHED_REPLAYS

        def watched_replay() -> None:
            nonlocal left
            if not left:
                replay()
                return
            left -= 1
            with self._watching(_REPLAY_TIMEOUT):
                replay()
                torch.cuda.synchronize(self._device)

        return watched_replay


@functools.lru_cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return one stream for all captures.

    cuBLAS keeps 32 MB of a large device for each stream that has run a matrix product.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _release_generator(device: torch.device) -> None:
    """Give the device's random generator a state that no capture holds.

    A capture that fails leaves the generator's state marked as being captured, and the next draw raises
    (torch 2.11).
    """
    generator = torch.cuda.default_generators[device.index or 0]
    generator.graphsafe_set_state(generator.clone_state())


class CapturedStep:
    """A network's training function, captured for its first inputs and replayed for others of their shapes.

    Inputs of other shapes run eagerly. If the network was moved, or other weights of it are trained, the
    function is captured again.
    """

    def __init__(
        self, function: Callable[..., Outputs], network: nn.Module, graph_capture: GraphCapture
    ) -> None:
        """Wrap ``function``; the first call captures it.

        Args:
            function: accepts tensors on ``network``'s device, and must not make the host wait for the device.
            network: the network that ``function`` trains.
            graph_capture: captures the function.
        """
        self._function, self._network, self._graph_capture = function, network, graph_capture
        self._weights = list(network.parameters())  # kept, because traversing a network takes milliseconds
        self._inputs: tuple[Tensor, ...] = ()
        self._captured_weights: list[tuple[int, bool]] = []
        self._replay: Callable[[], object] | None = None
        self._outputs: Outputs = ()

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Return the function's outputs for ``inputs``; the next call may overwrite them.

        Raises:
            CaptureError: the function cannot be captured, or fails even when it runs eagerly.
            torch.OutOfMemoryError: the memory is too small.
        """
        # Lightning moves a network to the CPU at the end of training, but a replay would still use the old
        # addresses. It would also leave out the gradients of weights that were frozen.
        if self._captured_weights != _addresses(self._weights):
            self._replay, self._outputs = None, ()
        if self._replay is None:
            self._replay = self._capture(inputs)
        if _shapes(inputs) != _shapes(self._inputs):
            return self._function(*inputs)
        for captured, given in zip(self._inputs, inputs, strict=True):
            captured.copy_(given)
        self._replay()
        return self._outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
        function, copies = self._function, tuple(tensor.clone() for tensor in inputs)
        with _state_restored(self._network, copies[0].device):
            replay, self._outputs = self._graph_capture(lambda: function(*copies))
        self._inputs, self._captured_weights = copies, _addresses(self._weights)
        return replay


def _addresses(weights: Iterable[Tensor]) -> list[tuple[int, bool]]:
    """Return the weights' addresses, and whether they are trained."""
    return [(weight.data_ptr(), weight.requires_grad) for weight in weights]


def _shapes(tensors: tuple[Tensor, ...]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def choose_graph_capture(
    config: TrialConfig,
    placement: DeviceConfig,
    *,
    micro_batches: int,
    recomputes: bool,
    watchdog: HangWatchdog | None = None,
) -> GraphCapture | None:
    """Return the capture of a trial's steps, or None if they run eagerly.

    A batch in several micro-batches is not captured: it is large for its device, and its kernels hide their
    launches. Nor are steps with activation checkpointing, which reads the state of the random numbers; a
    graph cannot stop to read it.

    Args:
        config: the trial's configuration.
        placement: the device.
        micro_batches: micro-batches of a training batch.
        recomputes: True if activations are recomputed.
        watchdog: the watchdog that ends this process if a capture hangs; None watches nothing.
    """
    possible = placement.device.type == "cuda" and micro_batches == 1 and not recomputes
    if not possible or config.cuda_graphs == "off":
        return None
    watching: Watching = contextlib.nullcontext if watchdog is None else watchdog.watching
    return CudaGraphs(placement.device, compiles=config.compile == "on", watching=watching)


@contextlib.contextmanager
def _state_restored(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore ``network``'s statistics and the random numbers after the block, which captures a function."""
    kept = [buffer.clone() for buffer in network.buffers()]
    with isolate_rng(device):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in zip(network.buffers(), kept, strict=True):
                    buffer.copy_(before)

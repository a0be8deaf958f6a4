"""A step's forward and backward pass as one CUDA graph: one launch by the host instead of thousands.

These networks are many small layers. On a fast GPU the host needs several times as long to launch a step's
kernels as the device to run them (benchmarks/NOTES.md); recorded once, they are played back by a single call.
What is recorded has fixed shapes and fixed places in memory: batches are copied in, results lie where the
last ones did.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from tune_rescon.config import TrialConfig
from tune_rescon.training.memory import ran_out_of_memory
from tune_rescon.training.placement import Placement
from tune_rescon.training.stalls import StallWatch

__all__ = [
    "CudaGraphs",
    "Outputs",
    "Recorded",
    "Recorder",
    "RecordingError",
    "choose_recorder",
]

Outputs = tuple[Tensor, ...]

#: Runs before a recording: libraries try algorithms, load kernels and take memory for each stream they see.
_WARM: Final = 3

#: Replays that are waited for under watch, each for itself: what stands still does so in the first ones.
_WATCHED: Final = 5

#: Seconds for the runs before a recording, of which the libraries' first took 13 and compiled units 70 on the
#: slowest machine measured, and for the recording or a replay, which took one and less (benchmarks/NOTES.md).
_WARMING: Final = 600.0
_PLAYING: Final = 120.0

#: A context that ends the process if it is not left within so many seconds.
Watching = Callable[[float], contextlib.AbstractContextManager[object]]


class RecordingError(RuntimeError):
    """Something cannot be recorded on this device; as it is, it may well run."""


class Recorder(Protocol):
    """Records what runs on a device."""

    def __call__(self, run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        """What does all of ``run`` again on the same memory, and the outputs that are then written again."""


class CudaGraphs:
    """Records on a CUDA device."""

    def __init__(
        self,
        device: torch.device,
        *,
        compiles: bool = False,
        watching: Watching = contextlib.nullcontext,
    ) -> None:
        """On ``device``, a CUDA one, under ``watching``; ``compiles``: a first run compiles what runs."""
        self._device, self._compiles, self._watching = device, compiles, watching

    def __call__(self, run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        """As the protocol has it; ``run`` must not make the host wait for the device.

        Raises:
            RecordingError: ``run`` cannot be recorded, or not even run.
            torch.OutOfMemoryError: there is no room for it.
        """
        try:
            with self._watching(_WARMING):
                stream = self._warmed(run)
            with self._watching(_PLAYING):
                replay, outputs = self._recorded(run, stream)
            replay = self._watched(replay)
            replay()
            return replay, outputs
        except RuntimeError as error:
            _release_generator(self._device)
            if ran_out_of_memory(error):
                raise
            raise RecordingError(str(error).strip().partition("\n")[0]) from error

    def _warmed(self, run: Callable[[], Outputs]) -> torch.cuda.Stream:
        """A stream on which ``run`` was run, and has ended."""
        if self._compiles:
            # On the stream of steps that are launched, as compiled code is measured and loaded for them.
            run()
            gc.collect()  # what refers to that stream would bring it into the recording
        stream = _recording_stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM):
                run()
        torch.cuda.synchronize(self._device)  # while somebody watches
        return stream

    def _recorded(
        self, run: Callable[[], Outputs], stream: torch.cuda.Stream
    ) -> tuple[Callable[[], object], Outputs]:
        graph = torch.cuda.CUDAGraph()
        # Only what this thread does is recorded: another one copies the next batches meanwhile.
        recording = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
        # torch leaves its own context of the stream open where a recording breaks off.
        with torch.cuda.stream(stream), recording:
            outputs = run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return graph.replay, outputs

    def _watched(self, replay: Callable[[], object]) -> Callable[[], None]:
        """``replay``, whose first times somebody watches."""
        left = _WATCHED

        def play() -> None:
            nonlocal left
            if not left:
                replay()
                return
            left -= 1
            with self._watching(_PLAYING):
                replay()
                torch.cuda.synchronize(self._device)

        return play


@functools.lru_cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: cuBLAS keeps 32 MB of a large device for each stream that has multiplied."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _release_generator(device: torch.device) -> None:
    """Give the device's random numbers a state that no recording holds.

    One that breaks off leaves theirs marked as being recorded, and the next draw raises (torch 2.11).
    """
    generator = torch.cuda.default_generators[device.index or 0]
    generator.graphsafe_set_state(generator.clone_state())


class Recorded:
    """A function that trains a network, recorded for its first inputs and played back for others like them.

    Inputs of other shapes run as they come. A network that has been moved is recorded anew.
    """

    def __init__(self, function: Callable[..., Outputs], network: nn.Module, recorder: Recorder) -> None:
        """``function`` takes tensors on ``network``'s device, and must not wait for it."""
        self._function, self._network, self._recorder = function, network, recorder
        self._weights = list(network.parameters())  # walking through a network takes milliseconds
        self._inputs: tuple[Tensor, ...] = ()
        self._places: list[int] = []
        self._replay: Callable[[], object] | None = None
        self._outputs: Outputs = ()

    def __call__(self, *inputs: Tensor) -> Outputs:
        """What the function makes of ``inputs``; the next call may overwrite it.

        Raises:
            RecordingError: it cannot be recorded, or not even run.
            torch.OutOfMemoryError: there is no room for it.
        """
        # Lightning takes a network to the CPU at a training's end; a recording goes on where it lay before.
        if self._places != _places(self._weights):
            self._replay, self._outputs = None, ()
        if self._replay is None:
            self._replay = self._record(inputs)
        if _shapes(inputs) != _shapes(self._inputs):
            return self._function(*inputs)
        for recorded, given in zip(self._inputs, inputs, strict=True):
            recorded.copy_(given)
        self._replay()
        return self._outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
        function, mine = self._function, tuple(tensor.clone() for tensor in inputs)
        with _untouched(self._network, mine[0].device):
            replay, self._outputs = self._recorder(lambda: function(*mine))
        self._inputs, self._places = mine, _places(self._weights)
        return replay


def _places(tensors: Iterable[Tensor]) -> list[int]:
    """Where they lie."""
    return [tensor.data_ptr() for tensor in tensors]


def _shapes(tensors: tuple[Tensor, ...]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def choose_recorder(
    config: TrialConfig,
    placement: Placement,
    *,
    micro_batches: int,
    recomputes: bool,
    watch: StallWatch | None = None,
) -> Recorder | None:
    """What records the steps of a trial, under ``watch`` if any; None: they run as they are.

    A batch in pieces is large for its device, whose kernels then hide their launches. Activation
    checkpointing reads the state of the random numbers, for which a recording cannot stop.
    """
    possible = placement.device.type == "cuda" and micro_batches == 1 and not recomputes
    if not possible or config.cuda_graphs == "off":
        return None
    watching: Watching = contextlib.nullcontext if watch is None else watch.watching
    return CudaGraphs(placement.device, compiles=config.compile == "on", watching=watching)


@contextlib.contextmanager
def _untouched(network: nn.Module, device: torch.device) -> Iterator[None]:
    """What runs within it, to be recorded, changes neither ``network``'s statistics nor random numbers."""
    kept = [buffer.clone() for buffer in network.buffers()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in zip(network.buffers(), kept, strict=True):
                    buffer.copy_(before)

"""A step's forward and backward pass as one CUDA graph: one launch by the host instead of thousands.

These networks are many small layers. On a fast GPU the host needs several times as long to launch a step's
kernels as the device to run them (benchmarks/NOTES.md); recorded once, they are played back by a single call.
What is recorded has fixed shapes and fixed places in memory: batches are copied in, results lie where the
last ones did.
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
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from tune_rescon.config import TrialConfig
from tune_rescon.training.device import DeviceConfig
from tune_rescon.training.memory import ran_out_of_memory

__all__ = [
    "CudaGraphs",
    "FusedWeightCast",
    "GraphCapture",
    "HangWatchdog",
    "Outputs",
    "Recorded",
    "RecordingError",
    "choose_recorder",
]


class FusedWeightCast:
    """The weights of a network that autocast would cast: its convolutions' and linear layers'."""

    def __init__(self, network: nn.Module) -> None:
        """``network`` stays as it is."""
        self._weights = {
            f"{name}.weight": module.weight
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        }

    def copies(self) -> dict[str, Tensor]:
        """Of each weight as it is now, by its name in the network; their gradients are wanted."""
        copies = [torch.empty_like(weight, dtype=torch.bfloat16) for weight in self._weights.values()]
        with torch.no_grad():
            torch._foreach_copy_(copies, list(self._weights.values()))
        return {name: copy.requires_grad_() for name, copy in zip(self._weights, copies, strict=True)}

    def hand_over(self, copies: Mapping[str, Tensor]) -> None:
        """Give the weights the gradients of their ``copies``."""
        pairs = [(self._weights[name], copy.grad) for name, copy in copies.items() if copy.grad is not None]
        gradients = [torch.empty_like(weight) for weight, _ in pairs]
        torch._foreach_copy_(gradients, [gradient for _, gradient in pairs])
        for (weight, _), gradient in zip(pairs, gradients, strict=True):
            weight.grad = gradient


_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HangWatchdog:
    """Watches over one kind of thing, in a folder that the processes of a node share.

    The file of a process that was ended here holds where it stood; that of one that died otherwise is empty,
    and says nothing.
    """

    folder: Path
    key: str
    """Of what is watched; equal where it would stand still again."""

    def found(self) -> Path | None:
        """Where it is written that an earlier process stood still, if one did."""
        for file in self.folder.glob(f"{self._stem}.*"):
            # Another process may just have come back, and taken its file away.
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_size:
                    return file
        return None

    @contextlib.contextmanager
    def watching(self, seconds: float) -> Iterator[None]:
        """End this process if the block is not left within ``seconds``. One block of a process at a time."""
        evidence = self.folder / f"{self._stem}.{os.getpid()}.txt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = evidence.open("w")
        except OSError as error:
            _log.warning("nobody watches whether a recording comes back: %s", error)
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


class GraphCapture(Protocol):
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

    def __init__(self, function: Callable[..., Outputs], network: nn.Module, recorder: GraphCapture) -> None:
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
    placement: DeviceConfig,
    *,
    micro_batches: int,
    recomputes: bool,
    watch: HangWatchdog | None = None,
) -> GraphCapture | None:
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

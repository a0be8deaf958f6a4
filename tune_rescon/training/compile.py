"""torch.compile for a network in training, unit by unit.

The residual unit is the region: units of one shape share their code, also with the next trial of this
process, and inductor's cache on the node's disk (:func:`keep_compiled_code`) keeps it for the next process. A
whole network took more than twice the time to compile, and ran no faster on a CPU (benchmarks/NOTES.md).
Modules keep their names, and copies of a network, as averages are, run uncompiled.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from tune_rescon.models.network import PreActivationUnit, ResNeXtUnit
from tune_rescon.training import messages

__all__ = [
    "choose_compiling",
    "compile_units",
    "compiler_trouble",
    "keep_compiled_code",
    "many_shapes",
    "uncompiled",
]


#: Where inductor, and Triton below it, keep compiled code; read at each compilation.
_CACHE: Final = "TORCHINDUCTOR_CACHE_DIR"


def choose_compiling(requested: str, device: torch.device, *, recomputes: bool) -> tuple[bool, str | None]:
    """Whether what is ``requested`` ("off", "on") is done here, and a note if it is not.

    What is computed twice (``recomputes``) is left to the checkpoints, which a compiled unit would not be
    equal to.

    >>> choose_compiling("off", torch.device("cpu"), recomputes=False)
    (False, None)
    """
    if requested == "off":
        return False, None
    trouble = "it recomputes its activations" if recomputes else compiler_trouble(device)
    return trouble is None, None if trouble is None else messages.uncompiled(trouble)


def compile_units(network: nn.Module) -> None:
    """Have each residual unit compiled at its first call, for that call's shape."""
    for module in _units(network):
        module.compile(dynamic=False)


@contextlib.contextmanager
def many_shapes(network: nn.Module) -> Iterator[None]:
    """Room for as many compiled versions of a unit's code as ``network`` can need; torch stops at 8.

    That is two for each unit: micro-batches are of two sizes.
    """
    versions = 2 * len(_units(network))
    # Inside torch.compile everything says `torch._dynamo`: the public module has no such switch.
    config = torch._dynamo.config
    with config.patch(
        recompile_limit=max(versions, config.recompile_limit),
        accumulated_recompile_limit=max(2 * versions, config.accumulated_recompile_limit),
    ):
        yield


def _units(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, PreActivationUnit | ResNeXtUnit)]


def uncompiled() -> contextlib.AbstractContextManager[object]:
    """Within it compiled units run as written: what is done once an epoch is not worth a compilation."""
    eager: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return eager


def keep_compiled_code(folder: Path) -> None:
    """Have this process keep what it compiles in ``folder``, made when needed, and look for it there.

    Torch's own place is among the system's temporary files. A user who has named one keeps it.
    """
    # Its import takes a second and a half, which only a trial that is compiled should wait for.
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # Whoever asks inductor for its place has it written into the environment, as if a user had named it.
    if os.environ.get(_CACHE) in (None, os.path.abspath(default_cache_dir())):  # noqa: PTH100 - as torch does
        os.environ[_CACHE] = str(folder)


@functools.cache
def compiler_trouble(device: torch.device) -> str | None:
    """Why nothing can be compiled for ``device`` here, in the first line of the compiler's words; or None.

    A CPU needs a C++ compiler, a GPU Triton and one for C. Asked once a process: the answer takes seconds.
    """
    x_N = torch.ones(8, device=device, requires_grad=True)
    compiled: Callable[[Tensor], Tensor] = torch.compile(doubled)
    try:
        torch.autograd.grad(compiled(x_N).sum(), x_N)
    except Exception as error:  # what a compiler, its driver or its cache raises is of no one kind
        return str(error).strip().partition("\n")[0]
    return None


def doubled(x_N: Tensor) -> Tensor:
    """What is compiled to see whether anything can be."""
    return torch.relu(x_N) * 2

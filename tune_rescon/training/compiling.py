"""torch.compile for a network in training, unit by unit.

The residual unit is the region: units of one shape share their code, also with the next trial of this
process, and inductor's cache on the node's disk keeps it for the next process. A whole network took more
than twice the time to compile, and ran no faster (benchmarks/NOTES.md). Modules keep their names, and copies
of a network, as averages are, run uncompiled.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tune_rescon.models.units import PreActivationUnit, ResNeXtUnit

__all__ = ["compile_units", "compiler_trouble", "many_shapes", "uncompiled"]


def compile_units(network: nn.Module) -> None:
    """Have each residual unit compiled at its first call, for that call's shape."""
    for module in network.modules():
        if isinstance(module, PreActivationUnit | ResNeXtUnit):
            module.compile(dynamic=False)


@contextlib.contextmanager
def many_shapes(network: nn.Module) -> Iterator[None]:
    """Room for as many compiled versions of a unit's code as ``network`` has units; torch stops at 8."""
    units = sum(isinstance(module, PreActivationUnit | ResNeXtUnit) for module in network.modules())
    # Inside torch.compile everything says `torch._dynamo`: the public module has no such switch.
    config = torch._dynamo.config
    with config.patch(
        recompile_limit=max(units, config.recompile_limit),
        accumulated_recompile_limit=max(4 * units, config.accumulated_recompile_limit),
    ):
        yield


def uncompiled() -> contextlib.AbstractContextManager[object]:
    """Within it compiled units run as written: what is done once an epoch is not worth a compilation."""
    eager: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return eager


@functools.cache
def compiler_trouble(device: torch.device) -> str | None:
    """Why nothing can be compiled for ``device`` here, in the first line of the compiler's words; or None.

    A CPU needs a C++ compiler, a GPU Triton and one for C. Asked once a process: the answer takes seconds.
    """

    def doubled(x_N: Tensor) -> Tensor:
        return torch.relu(x_N) * 2

    x_N = torch.ones(8, device=device, requires_grad=True)
    try:
        torch.autograd.grad(torch.compile(doubled)(x_N).sum(), x_N)
    except Exception as error:  # what a compiler, its driver or its cache raises is of no one kind
        return str(error).strip().partition("\n")[0]
    return None

"""torch.compile for a network in training, one residual unit at a time.

The compiled region is the residual unit. Units of one shape share their code, also with the next trial of
this process, and inductor's cache on the node's disk (:func:`keep_compiled_code`) keeps it for the next
process. A whole network took more than twice the time to compile, and ran no faster on a CPU
(benchmarks/notes/training_step.md). A network from elsewhere has no such units and is compiled whole. Modules
keep their names. Copies of a network, such as averages, run uncompiled.
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

from tune_rescon.errors import first_line
from tune_rescon.models.network import PreActivationUnit, ResNeXtUnit

__all__ = [
    "choose_compiling",
    "compile_units",
    "compiler_problem",
    "keep_compiled_code",
    "many_shapes",
    "uncompiled",
]


#: The folder in which inductor, and Triton below it, keep compiled code; they read the variable at each
#: compilation.
_CACHE: Final = "TORCHINDUCTOR_CACHE_DIR"


def choose_compiling(requested: str, device: torch.device, *, recomputes: bool) -> tuple[bool, str | None]:
    """Return whether to compile, and a message if the ``requested`` compilation is not possible.

    With ``recomputes`` nothing is compiled, because a compiled unit cannot handle activation checkpointing.

    Args:
        requested: "off" or "on".
        device: the device to compile for.
        recomputes: True if activations are recomputed.

    >>> choose_compiling("off", torch.device("cpu"), recomputes=False)
    (False, None)
    >>> choose_compiling("on", torch.device("cpu"), recomputes=True)[1]
    'torch.compile cannot be used here (it recomputes its activations); training continues without it'
    """
    if requested == "off":
        return False, None
    problem = "it recomputes its activations" if recomputes else compiler_problem(device)
    if problem is None:
        return True, None
    return False, f"torch.compile cannot be used here ({problem}); training continues without it"


def compile_units(network: nn.Module) -> None:
    """Compile each residual unit at its first call, for that call's shape; a network without units whole."""
    for module in _units(network):
        module.compile(dynamic=False)


@contextlib.contextmanager
def many_shapes(network: nn.Module) -> Iterator[None]:
    """Allow as many compiled versions of a unit's code as ``network`` can need; torch's default limit is 8.

    A network can need four for each unit: micro-batches have two sizes, and a unit may be frozen first.
    """
    versions = 4 * len(_units(network))
    # The code inside torch.compile uses `torch._dynamo`; the public module has no such switch.
    config = torch._dynamo.config
    with config.patch(
        recompile_limit=max(versions, config.recompile_limit),
        accumulated_recompile_limit=max(2 * versions, config.accumulated_recompile_limit),
    ):
        yield


def _units(network: nn.Module) -> list[nn.Module]:
    units: list[nn.Module] = [
        module for module in network.modules() if isinstance(module, PreActivationUnit | ResNeXtUnit)
    ]
    return units or [network]


def uncompiled() -> contextlib.AbstractContextManager[object]:
    """Run compiled units eagerly within the context.

    Work that is done once an epoch is not worth a compilation.
    """
    eager: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return eager


def keep_compiled_code(folder: Path) -> None:
    """Make this process keep its compiled code in ``folder``, created when needed, and look for it there.

    torch's default is a folder among the system's temporary files. If the user has set another one, it is
    kept.
    """
    # The import takes 1.5 seconds, so only a trial that is compiled waits for it.
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # Reading inductor's folder writes it into the environment, as if the user had set it.
    if os.environ.get(_CACHE) in (None, os.path.abspath(default_cache_dir())):  # noqa: PTH100 - as torch does
        os.environ[_CACHE] = str(folder)


@functools.cache
def compiler_problem(device: torch.device) -> str | None:
    """Return why nothing can be compiled for ``device`` here, as the compiler's first line; None if it can.

    A CPU needs a C++ compiler; a GPU needs Triton and a C compiler. The result is cached for the process,
    because the check takes seconds.
    """
    x_N = torch.ones(8, device=device, requires_grad=True)
    compiled: Callable[[Tensor], Tensor] = torch.compile(doubled)
    try:
        torch.autograd.grad(compiled(x_N).sum(), x_N)
    except Exception as error:  # a compiler, its driver or its cache can raise any error
        return first_line(error)
    return None


def doubled(x_N: Tensor) -> Tensor:
    """Return ``2 * relu(x_N)``, the function that tests whether the compiler works."""
    return torch.relu(x_N) * 2

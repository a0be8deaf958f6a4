"""torch.compile for a network in training, one residual unit at a time.

Units of one shape share their code, also with the next trial of this process. Inductor's cache on the node's
disk (:func:`use_compile_cache`) keeps the code for the next process. A whole network took more than twice the
time to compile, and ran no faster on a CPU (benchmarks/notes/training_step.md). A network from elsewhere has
no such units and is compiled as a whole. Modules keep their names. Copies of a network, such as averages, run
uncompiled.
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
    "raised_recompile_limit",
    "uncompiled",
    "use_compile_cache",
]


#: The environment variable with the folder of compiled code. Inductor and Triton read it at each compilation.
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
    """Compile each residual unit, or else the whole network, at its first call and for that call's shape."""
    for module in _units(network):
        module.compile(dynamic=False)


@contextlib.contextmanager
def raised_recompile_limit(network: nn.Module) -> Iterator[None]:
    """Allow as many compiled versions of a unit's code as ``network`` can need; torch's default limit is 8.

    A network can need four versions per unit: micro-batches have two sizes, and a unit may be frozen first.
    """
    versions = 4 * len(_units(network))
    # torch.compiler, the public module, has no such setting.
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
    """Run compiled units eagerly within the context, for work that is done only once an epoch."""
    eager: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return eager


def use_compile_cache(folder: Path) -> None:
    """Make this process store its compiled code in ``folder``, created when needed, and reuse code from it.

    torch's default is a temporary folder. A folder that the user has set stays in use.
    """
    # The import takes 1.5 seconds, so only a trial that is compiled waits for it.
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # Inductor writes its default into the environment when it reads the variable.
    if os.environ.get(_CACHE) in (None, os.path.abspath(default_cache_dir())):  # noqa: PTH100 - as torch does
        os.environ[_CACHE] = str(folder)


@functools.cache
def compiler_problem(device: torch.device) -> str | None:
    """Return the first line of the compiler's error if it cannot compile for ``device``; None otherwise.

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

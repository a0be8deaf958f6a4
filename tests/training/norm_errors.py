"""How far the fused batch norm with ReLU is from torch's in fp64; as a program, on a CPU in Triton's interpreter.

Triton reads ``TRITON_INTERPRET`` when it is imported, so that a process of its own must run it.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor

from tune_rescon.models.normalisation import BatchNormReLU
from tune_rescon.training.norm_kernels import batch_norm_relu

Shape = tuple[int, int, int, int]


def errors(shape: Shape, dtype: torch.dtype, device: str, *, centre: float = 20.0) -> dict[str, float]:
    """Of what a step computes and moves, each relative to its own size; channels lie about +-``centre``."""
    generator = torch.Generator().manual_seed(0)
    norm, exact = BatchNormReLU(shape[1]), BatchNormReLU(shape[1])
    with torch.no_grad():
        norm.weight.uniform_(-1, 2, generator=generator)
        norm.bias.normal_(generator=generator)
    exact.load_state_dict(norm.state_dict())
    x_BCHW = 3 * torch.randn(shape, generator=generator)
    x_BCHW += centre * torch.randn((1, shape[1], 1, 1), generator=generator)
    x_BCHW = x_BCHW.to(device, dtype, memory_format=torch.channels_last)
    dy_BCHW = torch.randn(shape, generator=generator).to(device, dtype)
    norm.fused = batch_norm_relu
    ours = _step(norm.to(device), x_BCHW, dy_BCHW)
    theirs = _step(exact.to(device, torch.float64), x_BCHW.double(), dy_BCHW.double())
    assert int(norm.num_batches_tracked) == 1
    return {name: _error(ours[name], theirs[name]) for name in theirs}


def _step(norm: BatchNormReLU, x_BCHW: Tensor, dy_BCHW: Tensor) -> dict[str, Tensor | None]:
    x_BCHW = x_BCHW.clone().requires_grad_()
    y_BCHW = norm(x_BCHW)
    torch.autograd.backward(y_BCHW, dy_BCHW)
    gradients = {"dx": x_BCHW.grad, "dweight": norm.weight.grad, "dbias": norm.bias.grad}
    return {"y": y_BCHW, **gradients, "mean": norm.running_mean, "var": norm.running_var}


def _error(ours: Tensor | None, theirs: Tensor | None) -> float:
    assert ours is not None
    assert theirs is not None
    return float((ours.detach().double() - theirs.detach()).norm() / theirs.detach().norm())


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps([errors(tuple(shape), getattr(torch, dtype), "cpu") for shape, dtype in asked]))

"""Batch norm and ReLU at once, where a GPU's steps are recorded.

Launched by the host one by one, these kernels would cost it more time than they save the device.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor, nn

from tune_rescon.models.normalisation import BatchNormReLU
from tune_rescon.training.placement import Placement

__all__ = ["fuse_norms", "fusing_trouble"]

_log = logging.getLogger(__name__)

#: Of the map on which the kernels are tried: what the networks' maps make of them is the same code.
_SHAPE = (4, 64, 16, 16)


def fuse_norms(network: nn.Module, placement: Placement) -> None:
    """Have training compute every batch norm of ``network`` that a ReLU follows together with it.

    Where Triton cannot be used, all stays as it is; the log says why, once a process.
    """
    dtype = torch.bfloat16 if placement.precision == "bf16" else torch.float32
    if placement.device.type != "cuda" or fusing_trouble(placement.device, dtype) is not None:
        return
    from tune_rescon.training.norm_kernels import batch_norm_relu

    for module in network.modules():
        if isinstance(module, BatchNormReLU):
            module.fused = batch_norm_relu


@functools.cache
def fusing_trouble(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why maps of ``dtype`` have batch norm and ReLU apart on ``device``, in a line; or None.

    Tried for real, and held against torch: a compiler for C may be missing, or the GPU too old for Triton.
    """
    generator = torch.Generator().manual_seed(0)
    x_BCHW, dy_BCHW = torch.randn((2, *_SHAPE), generator=generator).to(device, dtype)
    try:
        from tune_rescon.training.norm_kernels import batch_norm_relu

        results = [_results(fused, x_BCHW, dy_BCHW) for fused in (batch_norm_relu, None)]
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    except Exception as error:  # what a compiler, a driver or a missing package raises is of no one kind
        trouble = str(error).strip().partition("\n")[0] or type(error).__name__
        _log.warning("batch norm and ReLU run one after the other: %s", trouble)
        return trouble
    return None


def _results(fused: object, x_BCHW: Tensor, dy_BCHW: Tensor) -> list[Tensor]:
    """The map, its gradient, and the running statistics, of one step."""
    norm = BatchNormReLU(x_BCHW.shape[1]).to(x_BCHW.device)
    norm.fused = fused  # type: ignore[assignment]  # mypy takes a function in a class for a method
    x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last).requires_grad_()
    y_BCHW = norm(x_BCHW)
    y_BCHW.backward(dy_BCHW)
    known = (y_BCHW.detach(), x_BCHW.grad, norm.running_mean, norm.running_var)
    return [tensor.float() for tensor in known if tensor is not None]

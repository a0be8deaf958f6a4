"""Batch norm and ReLU in training as four Triton kernels, two forward and two backward.

An attempt for the visit to a GPU (benchmarks/gpu_parts.py), from commit fda9eb3: how fast they are was never
seen. Nothing of it is in the package. TRITON_INTERPRET=1 runs them on a CPU, to try them.

torch runs eight for them, which read and write a map 13 times where these do 8 times: the ReLU costs nothing,
because the backward pass computes its sign again from the batch norm's own input.

A map is seen as N x K numbers, one column for each channel: channels-last memory, as it lies. Columns are
cut into blocks and rows into spans. Each program of a first kernel sums up one span of one block; each of a
second one adds up the sums of all spans, in one order, and goes over a span itself. So results do not depend
on which program came first.

Shapes in names: B images, C channels (K in the kernels), H and W the map's height and width, N = B x H x W.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["batch_norm_relu"]

#: What the kernels compute with; sums are fp32.
_FORMATS: Final = (torch.bfloat16, torch.float16, torch.float32)

#: Channels of a block (128 bytes of a row in bf16, what memory gives at once), and numbers of a tile of it.
_COLUMNS: Final = 64
_TILE: Final = 4096
_WARPS: Final = 8

#: Programs that fill a large GPU (132 multiprocessors) four times, spans of a column at most, and how many of
#: their sums a program reads at once.
_PROGRAMS: Final = 528
_SPANS: Final = 128
_AT_ONCE: Final = 64


@triton.jit
def _sum_map(x, pivots, sums, squares, n, k, span, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of each span and channel: its first number, and the sums of the distances to it, and squared."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, n)
    inside = columns < k
    # Sums of distances to a number of the map: of the numbers themselves, a large mean would leave no digits.
    pivot = tl.load(x + begin.to(tl.int64) * k + columns, mask=inside, other=0.0).to(tl.float32)
    first = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    second = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for row in range(begin, end, ROWS):
        rows = row + tl.arange(0, ROWS)
        known = (rows < end)[:, None] & inside[None, :]
        places = rows.to(tl.int64)[:, None] * k + columns[None, :]
        distance = tl.where(known, tl.load(x + places, mask=known, other=0.0).to(tl.float32) - pivot, 0.0)
        first += distance
        second += distance * distance
    place = tl.program_id(1) * k + columns
    tl.store(pivots + place, pivot, mask=inside)
    tl.store(sums + place, tl.sum(first, axis=0), mask=inside)
    tl.store(squares + place, tl.sum(second, axis=0), mask=inside)


@triton.jit(do_not_specialize=["spans"])
def _normalise(
    x,
    y,
    pivots,
    sums,
    squares,
    weight,
    bias,
    means,
    scales,
    running_mean,
    running_var,
    batches,
    n,
    k,
    span,
    spans,
    eps,
    momentum,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """The map's mean and deviation from its spans' sums; the map normalised, and 0 where it is negative."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < k
    # The mean over all spans, then the squares about it (Chan et al. 1979).
    origin = tl.load(pivots + columns, mask=inside, other=0.0)
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    for at in range(0, spans, AT_ONCE):
        some = at + tl.arange(0, AT_ONCE)
        there = (some < spans)[:, None] & inside[None, :]
        of_spans = some[:, None] * k + columns[None, :]
        count = tl.minimum(span, n - some * span).to(tl.float32)[:, None]
        shift = tl.load(pivots + of_spans, mask=there, other=0.0) - origin[None, :]
        first = tl.load(sums + of_spans, mask=there, other=0.0)
        total += tl.sum(tl.where(there, first + count * shift, 0.0), axis=0)
    mean = origin + total / n
    about = tl.zeros((COLUMNS,), dtype=tl.float32)
    for at in range(0, spans, AT_ONCE):
        some = at + tl.arange(0, AT_ONCE)
        there = (some < spans)[:, None] & inside[None, :]
        of_spans = some[:, None] * k + columns[None, :]
        count = tl.minimum(span, n - some * span).to(tl.float32)[:, None]
        shift = tl.load(pivots + of_spans, mask=there, other=0.0) - mean[None, :]
        first = tl.load(sums + of_spans, mask=there, other=0.0)
        second = tl.load(squares + of_spans, mask=there, other=0.0)
        about += tl.sum(tl.where(there, second + shift * (2 * first + count * shift), 0.0), axis=0)
    variance = tl.maximum(about / n, 0.0)
    scale = 1 / tl.sqrt(variance + eps)
    if tl.program_id(1) == 0:
        tl.store(means + columns, mean, mask=inside)
        tl.store(scales + columns, scale, mask=inside)
        old = tl.load(running_mean + columns, mask=inside)
        tl.store(running_mean + columns, old + momentum * (mean - old), mask=inside)
        old = tl.load(running_var + columns, mask=inside)
        unbiased = variance * (n / (n - 1.0))
        tl.store(running_var + columns, old + momentum * (unbiased - old), mask=inside)
        if tl.program_id(0) == 0:
            tl.store(batches, tl.load(batches) + 1)
    factor = scale * tl.load(weight + columns, mask=inside, other=0.0)
    offset = tl.load(bias + columns, mask=inside, other=0.0)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, n)
    for row in range(begin, end, ROWS):
        rows = row + tl.arange(0, ROWS)
        known = (rows < end)[:, None] & inside[None, :]
        places = rows.to(tl.int64)[:, None] * k + columns[None, :]
        value = tl.load(x + places, mask=known, other=0.0).to(tl.float32)
        value = (value - mean[None, :]) * factor[None, :] + offset[None, :]
        # Not the maximum with 0, for which a nan is 0: a training that diverged must not look well.
        value = tl.where(value < 0.0, 0.0, value)
        tl.store(y + places, value.to(y.dtype.element_ty), mask=known)


@triton.jit
def _sum_gradients(
    x,
    dy,
    weight,
    bias,
    means,
    scales,
    sums,
    products,
    n,
    k,
    span,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of each span and channel: the sums of the gradients that the ReLU lets through, and times the input."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < k
    mean = tl.load(means + columns, mask=inside, other=0.0)
    scale = tl.load(scales + columns, mask=inside, other=0.0)
    factor = scale * tl.load(weight + columns, mask=inside, other=0.0)
    offset = tl.load(bias + columns, mask=inside, other=0.0)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, n)
    first = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    second = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for row in range(begin, end, ROWS):
        rows = row + tl.arange(0, ROWS)
        known = (rows < end)[:, None] & inside[None, :]
        places = rows.to(tl.int64)[:, None] * k + columns[None, :]
        centred = tl.load(x + places, mask=known, other=0.0).to(tl.float32) - mean[None, :]
        gradient = tl.load(dy + places, mask=known, other=0.0).to(tl.float32)
        gradient = tl.where(centred * factor[None, :] + offset[None, :] <= 0.0, 0.0, gradient)
        first += gradient
        second += gradient * centred
    place = tl.program_id(1) * k + columns
    tl.store(sums + place, tl.sum(first, axis=0), mask=inside)
    tl.store(products + place, tl.sum(second, axis=0), mask=inside)


@triton.jit(do_not_specialize=["spans"])
def _differentiate(
    x,
    dy,
    dx,
    weight,
    bias,
    means,
    scales,
    sums,
    products,
    dweight,
    dbias,
    n,
    k,
    span,
    spans,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """The gradients of weight, bias and input, of the spans' sums (Ioffe & Szegedy 2015, section 3)."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < k
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    product = tl.zeros((COLUMNS,), dtype=tl.float32)
    for at in range(0, spans, AT_ONCE):
        some = at + tl.arange(0, AT_ONCE)
        there = (some < spans)[:, None] & inside[None, :]
        of_spans = some[:, None] * k + columns[None, :]
        total += tl.sum(tl.load(sums + of_spans, mask=there, other=0.0), axis=0)
        product += tl.sum(tl.load(products + of_spans, mask=there, other=0.0), axis=0)
    mean = tl.load(means + columns, mask=inside, other=0.0)
    scale = tl.load(scales + columns, mask=inside, other=0.0)
    factor = scale * tl.load(weight + columns, mask=inside, other=0.0)
    offset = tl.load(bias + columns, mask=inside, other=0.0)
    if tl.program_id(1) == 0:
        tl.store(dweight + columns, product * scale, mask=inside)
        tl.store(dbias + columns, total, mask=inside)
    shift = total / n
    slope = product * scale * scale / n
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, n)
    for row in range(begin, end, ROWS):
        rows = row + tl.arange(0, ROWS)
        known = (rows < end)[:, None] & inside[None, :]
        places = rows.to(tl.int64)[:, None] * k + columns[None, :]
        centred = tl.load(x + places, mask=known, other=0.0).to(tl.float32) - mean[None, :]
        gradient = tl.load(dy + places, mask=known, other=0.0).to(tl.float32)
        gradient = tl.where(centred * factor[None, :] + offset[None, :] <= 0.0, 0.0, gradient)
        value = factor[None, :] * (gradient - shift[None, :] - slope[None, :] * centred)
        tl.store(dx + places, value.to(dx.dtype.element_ty), mask=known)


class _Cut:
    """How a map of ``n`` rows and ``k`` columns is cut."""

    def __init__(self, n: int, k: int) -> None:
        self.columns = min(_COLUMNS, triton.next_power_of_2(k))
        self.rows = _TILE // self.columns
        blocks = triton.cdiv(k, self.columns)
        spans = max(1, min(_SPANS, _PROGRAMS // blocks, triton.cdiv(n, self.rows)))
        self.span = self.rows * triton.cdiv(n, self.rows * spans)
        self.spans = triton.cdiv(n, self.span)
        self.grid = (blocks, self.spans)

    @property
    def sizes(self) -> dict[str, int]:
        # The fusion of products and sums is said, for Triton 3.9 warns that its default will change.
        return {"ROWS": self.rows, "COLUMNS": self.columns, "num_warps": _WARPS, "enable_fp_fusion": True}


class _BatchNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        k = x_BCHW.shape[1]
        n = x_BCHW.numel() // k
        cut = _Cut(n, k)
        y_BCHW = torch.empty_like(x_BCHW)
        sums = torch.empty((3, cut.spans, k), device=x_BCHW.device)
        known = torch.empty((2, k), device=x_BCHW.device)
        with torch.cuda.device_of(x_BCHW):
            _sum_map[cut.grid](x_BCHW, *sums, n, k, cut.span, **cut.sizes)
            _normalise[cut.grid](
                *(x_BCHW, y_BCHW, *sums, weight_C, bias_C, *known),
                *(norm.running_mean, norm.running_var, norm.num_batches_tracked),
                *(n, k, cut.span, cut.spans, norm.eps, norm.momentum),
                **cut.sizes,
                AT_ONCE=_AT_ONCE,
            )
        ctx.save_for_backward(x_BCHW, weight_C, bias_C, known)
        return y_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_BCHW, weight_C, bias_C, known = ctx.saved_tensors
        k = x_BCHW.shape[1]
        n = x_BCHW.numel() // k
        cut = _Cut(n, k)
        dy_BCHW = dy_BCHW.contiguous(memory_format=torch.channels_last)
        dx_BCHW, dweight_C, dbias_C = map(torch.empty_like, (x_BCHW, weight_C, bias_C))
        sums = torch.empty((2, cut.spans, k), device=x_BCHW.device)
        with torch.cuda.device_of(x_BCHW):
            _sum_gradients[cut.grid](
                x_BCHW, dy_BCHW, weight_C, bias_C, *known, *sums, n, k, cut.span, **cut.sizes
            )
            _differentiate[cut.grid](
                *(x_BCHW, dy_BCHW, dx_BCHW, weight_C, bias_C, *known, *sums, dweight_C, dbias_C),
                *(n, k, cut.span, cut.spans),
                **cut.sizes,
                AT_ONCE=_AT_ONCE,
            )
        return dx_BCHW, dweight_C, dbias_C, None


def batch_norm_relu(norm: nn.BatchNorm2d, x_BCHW: Tensor) -> Tensor | None:
    """``norm`` in training, with its running statistics moved; None: these kernels are not for this.

    Their results are torch's, to rounding.
    """
    learns = norm.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    fits = x_BCHW.dtype in _FORMATS and x_BCHW.is_contiguous(memory_format=torch.channels_last)
    several = x_BCHW.numel() > x_BCHW.shape[1]  # torch has an error for a map of one number
    if not (learns and fits and several) or norm.momentum is None:
        return None
    y_BCHW: Tensor = _BatchNormReLU.apply(x_BCHW, norm.weight, norm.bias, norm)
    return y_BCHW

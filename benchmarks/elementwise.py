"""A training step with fused elementwise parts: batch norm with ReLU, and (1 + M) * T with M's sigmoid.

Both are fused by torch.compile, or batch norm with ReLU by Triton kernels (benchmarks/norm_kernels.py). The
convolutions stay cuDNN's own calls, between the fused parts. On a GPU the whole step is captured as a CUDA
graph, as the package's own is. An attempt for the visit to a GPU (benchmarks/gpu_parts.py): nothing of it is
in the package.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from waiting import Case

from tune_rescon.config import TrialConfig
from tune_rescon.models import build_described, describe_network
from tune_rescon.models.network import AttentionModule, Mask, PreActivationUnit
from tune_rescon.training.cuda_graphs import choose_graph_capture
from tune_rescon.training.device import DeviceConfig, resolve_device
from tune_rescon.training.module import StepExecution, TrialModule

#: What is fused, and by what.
Fused = Literal["no", "compiled", "triton"]

#: Batches that a loss curve repeats.
BATCHES = 8

CLASSES = 10


def make_step(case: Case, device: str, *, fused: Fused) -> Callable[[], Tensor]:
    """A training step on one batch, as ``build_step`` of the package makes it."""
    module, placement, side = _trainee(case, device, fused=fused)
    optimizer, scheduler = module.optimizer_and_scheduler()
    images_BCHW, labels_B = _batch(case, side, device, seed=0)

    def step() -> Tensor:
        with placement.active():
            optimizer.zero_grad()
            loss = module.training_step((images_BCHW, labels_B))
            module.backward(loss)
            optimizer.step()
            scheduler.step()
        return loss.detach()

    return step


def loss_curve(case: Case, device: str, *, steps: int, fused: Fused) -> list[float]:
    """The losses of the first steps, from the same weights and on the same batches for each call."""
    module, placement, side = _trainee(case, device, fused=fused)
    optimizer, _ = module.optimizer_and_scheduler()
    batches = [_batch(case, side, device, seed=seed) for seed in range(BATCHES)]
    losses = []
    with placement.active():
        for number in range(steps):
            optimizer.zero_grad()
            loss = module.training_step(batches[number % BATCHES])
            module.backward(loss)
            optimizer.step()
            losses.append(loss.detach().clone())
    return [float(loss) for loss in losses]


def _trainee(case: Case, device: str, *, fused: Fused) -> tuple[TrialModule, DeviceConfig, int]:
    config = TrialConfig(preset=case.preset, batch_size=case.batch_size)
    placement = resolve_device(device, precision=config.precision)
    spec = describe_network(config, classes=CLASSES, in_channels=3)
    torch.manual_seed(0)
    network = build_described(spec)
    if fused == "compiled":
        fuse_elementwise(network)
    elif fused == "triton":
        fuse_norms(network)
    # The capture first runs compiled code once on the ordinary stream.
    step_config = replace(config, compile="on" if fused != "no" else "off")
    module = TrialModule(
        network,
        config,
        StepExecution(
            placement=placement,
            graph_capture=choose_graph_capture(step_config, placement, micro_batches=1, recomputes=False),
        ),
        classes=CLASSES,
        epochs=1,
        steps_per_epoch=10**6,
    )
    return module.to(placement.device), placement, spec.image_size


def _batch(case: Case, side: int, device: str, *, seed: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    images_BCHW = torch.randn(case.batch_size, 3, side, side, generator=drawn)
    labels_B = torch.randint(CLASSES, (case.batch_size,), generator=drawn)
    return images_BCHW.to(device), labels_B.to(device)


def fuse_elementwise(network: nn.Module) -> int:
    """Compile batch norms that a ReLU follows, and the ends of masks; how many parts that are.

    Without it torch launches statistics, normalisation and ReLU one by one, and each reads and writes the
    whole map.
    """
    # Every shape of a map is a version of the compiled functions; torch's default limit is 8.
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 2048
    count = _replace_norms(network, _norm_relu)
    for module in network.modules():
        if isinstance(module, AttentionModule) and module.residual:
            assert module.mask.activation is torch.sigmoid
            mask: Any = module.mask
            mask.activation = _unchanged
            _replace_forward(module, functools.partial(_attended, module))
            count += 1
    return count


def fuse_norms(network: nn.Module) -> int:
    """Have Triton kernels compute batch norms that a ReLU follows, together with it; how many these are."""
    from norm_kernels import batch_norm_relu

    return _replace_norms(network, batch_norm_relu)


def _replace_norms(network: nn.Module, fused: Callable[[nn.BatchNorm2d, Tensor], Tensor | None]) -> int:
    count = 0
    for module in network.modules():
        if isinstance(module, PreActivationUnit):
            for norm in (module.norm1, module.norm2, module.norm3):
                _replace_forward(norm, functools.partial(_normalised, norm, fused))
            _replace_forward(module.relu, _unchanged)
            count += 3
        elif isinstance(module, Mask):
            for name, part in module.head.named_children():
                if isinstance(part, nn.BatchNorm2d):
                    _replace_forward(part, functools.partial(_normalised, part, fused))
                    count += 1
                elif isinstance(part, nn.ReLU):
                    assert name.startswith("relu")
                    _replace_forward(part, _unchanged)
    return count


def _replace_forward(module: Any, forward: Callable[..., Tensor]) -> None:
    # Any: a method of an instance is replaced, which a type checker refuses.
    module.forward = forward


def _unchanged(x_BCHW: Tensor) -> Tensor:
    return x_BCHW


def _normalised(
    norm: nn.BatchNorm2d, fused: Callable[[nn.BatchNorm2d, Tensor], Tensor | None], x_BCHW: Tensor
) -> Tensor:
    """Batch norm and ReLU; in eval mode, and where ``fused`` returns None, as torch computes them."""
    y_BCHW = fused(norm, x_BCHW) if norm.training else None
    return F.relu(nn.BatchNorm2d.forward(norm, x_BCHW)) if y_BCHW is None else y_BCHW


def _norm_relu(norm: nn.BatchNorm2d, x_BCHW: Tensor) -> Tensor:
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    normalised: Tensor = _compiled(_batch_norm_relu)(
        x_BCHW, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.momentum, norm.eps
    )
    return normalised


def _attended(module: AttentionModule, x_BCHW: Tensor) -> Tensor:
    x_BCHW = module.pre(x_BCHW)
    trunk_BCHW = module.trunk(x_BCHW)
    mask_BCHW = module.mask(x_BCHW, trunk_BCHW)
    y_BCHW: Tensor = module.post(_compiled(_residual_attention)(mask_BCHW, trunk_BCHW))
    return y_BCHW


@functools.cache  # compiling imports torch's compiler, which takes seconds
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(function, dynamic=False)
    return compiled


def _batch_norm_relu(
    x_BCHW: Tensor,
    mean_C: Tensor,
    var_C: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    momentum: float,
    eps: float,
) -> Tensor:
    return F.relu(F.batch_norm(x_BCHW, mean_C, var_C, weight_C, bias_C, True, momentum, eps))


def _residual_attention(mask_BCHW: Tensor, trunk_BCHW: Tensor) -> Tensor:
    return (1 + torch.sigmoid(mask_BCHW)) * trunk_BCHW

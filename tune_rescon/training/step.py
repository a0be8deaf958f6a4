"""One training step on its own, on synthetic images: what the benchmarks time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from tune_rescon.config import TrialConfig
from tune_rescon.models import build_from_spec, resolve_network
from tune_rescon.training.compiling import many_shapes
from tune_rescon.training.module import TrialModule
from tune_rescon.training.placement import place

__all__ = ["build_step"]

#: The published tables of these networks at 32 pixels are CIFAR-10's.
CLASSES = 10


def build_step(
    preset: str, *, batch_size: int, device: str, precision: str = "auto", compiled: bool = False
) -> Callable[[], Tensor]:
    """A callable that runs one full training step and returns its loss, on the device and not waited for.

    Images of the preset's nominal size lie on the device; forward, loss, backward, optimiser and schedule
    are those of :func:`tune_rescon.training.train_trial` at the default recipe and ``precision``;
    ``compiled`` is its ``compile: on``. The step's metrics are counted, as in training. The process's
    switches (TF32, cuDNN's autotuner, the heap) hold during a call only.

    Raises:
        ConfigError: no such precision.
        NetworkError: no such preset.
        ResourceError: no such device ("auto", "cpu", "cuda").
    """
    config = TrialConfig(preset=preset, batch_size=batch_size, precision=precision)
    placement = place(device, precision=config.precision)
    spec = resolve_network(config, classes=CLASSES, in_channels=3)
    module = TrialModule(
        build_from_spec(spec),
        config,
        classes=CLASSES,
        epochs=1,
        steps_per_epoch=10**6,
        placement=placement,
        compiled=compiled,
    ).to(placement.device)
    optimizer, scheduler = module.optimizer_and_scheduler()
    images_BCHW = torch.randn(batch_size, 3, spec.image_size, spec.image_size, device=placement.device)
    labels_B = torch.randint(CLASSES, (batch_size,), device=placement.device)

    shapes = functools.partial(many_shapes, module.network) if compiled else contextlib.nullcontext

    def step() -> Tensor:
        with placement.active(), shapes():
            optimizer.zero_grad()
            loss = module.training_step((images_BCHW, labels_B))
            module.backward(loss)
            optimizer.step()
            scheduler.step()
        return loss.detach()

    return step

"""One training step on its own, on synthetic images: what the benchmarks time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tune_rescon.config import TrialConfig
from tune_rescon.models import build_from_spec, resolve_network
from tune_rescon.training.compiling import choose_compiling
from tune_rescon.training.graphs import choose_recorder
from tune_rescon.training.module import TrialModule
from tune_rescon.training.placement import Placement, place
from tune_rescon.training.stalls import StallWatch

__all__ = ["build_step", "step_of"]

#: The published tables of these networks at 32 pixels are CIFAR-10's.
CLASSES = 10


def build_step(
    preset: str,
    *,
    batch_size: int,
    device: str,
    precision: str = "auto",
    compiling: str = "off",
    checkpoint_activations: str = "auto",
    cuda_graphs: str = "auto",
) -> Callable[[], Tensor]:
    """A callable that runs one full training step and returns its loss, on the device and not waited for.

    Images of the preset's nominal size lie on the device; forward, loss, backward, optimiser and schedule
    are those of :func:`tune_rescon.training.train_trial` at the default recipe and ``precision``;
    ``compiling`` is its ``compile``. On a GPU the first call records the step. Its metrics are counted, as in
    training. The process's switches (TF32, cuDNN's autotuner, the heap) hold during a call only.

    Raises:
        ConfigError: no such precision or ``compiling``.
        NetworkError: no such preset.
        ResourceError: no such device ("auto", "cpu", "cuda").
    """
    config = TrialConfig(
        preset=preset,
        batch_size=batch_size,
        precision=precision,
        compile=compiling,
        checkpoint_activations=checkpoint_activations,
        cuda_graphs=cuda_graphs,
    )
    return step_of(config, place(device, precision=config.precision), classes=CLASSES, in_channels=3)


def step_of(
    config: TrialConfig,
    placement: Placement,
    *,
    classes: int,
    in_channels: int,
    watch: StallWatch | None = None,
) -> Callable[[], Tensor]:
    """The same of any trial, for images of ``in_channels`` channels; recorded under ``watch``, if any.

    Raises:
        NetworkError: there is no such network.
    """
    spec = resolve_network(config, classes=classes, in_channels=in_channels)
    recomputes = config.checkpoint_activations == "on"
    compiling, _ = choose_compiling(config.compile, placement.device, recomputes=recomputes)
    module = TrialModule(
        build_from_spec(spec),
        config,
        classes=classes,
        epochs=1,
        steps_per_epoch=10**6,
        placement=placement,
        compiling=compiling,
        recomputes=recomputes,
        recorder=choose_recorder(config, placement, micro_batches=1, recomputes=recomputes, watch=watch),
    ).to(placement.device)
    optimizer, scheduler = module.optimizer_and_scheduler()
    shape = (config.batch_size, in_channels, spec.image_size, spec.image_size)
    images_BCHW = torch.randn(shape, device=placement.device)
    labels_B = torch.randint(classes, (config.batch_size,), device=placement.device)

    def step() -> Tensor:
        with placement.active():
            optimizer.zero_grad()
            loss = module.training_step((images_BCHW, labels_B))
            module.backward(loss)
            optimizer.step()
            scheduler.step()
        return loss.detach()

    return step

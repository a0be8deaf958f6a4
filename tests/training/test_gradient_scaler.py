"""fp16 with a gradient scaler, as on a GPU without bf16, on a CPU."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.amp import GradScaler

from tests.models.one_module import one_module_spec
from tests.training.resuming import IMPROVING, ResumedTrial, assert_same_files, metrics_of, preempted
from tune_rescon.config import TrialConfig
from tune_rescon.models import build_from_spec
from tune_rescon.training.averaging import batch_norm_statistics
from tune_rescon.training.checkpoint import read_checkpoint
from tune_rescon.training.device import DeviceConfig
from tune_rescon.training.module import StepExecution, TrialModule

if TYPE_CHECKING:
    from tests.training.conftest import Train

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")
FP16 = DeviceConfig(device=CPU, precision="fp16")
TINY = TrialConfig(layout="cifar", width=0.0625, image_size=16, batch_size=8, learning_rate=0.01)

#: The first gradients are infinite at this scale, which grows after two steps that are not skipped.
TOO_LARGE: dict[str, Any] = {"init_scale": 2.0**22, "growth_interval": 2}


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in fp16 on the CPU, with a scaler that skips steps and changes its scale."""
    monkeypatch.setattr("tune_rescon.training.trial.resolve_device", lambda *_, **__: FP16)
    scaler = functools.partial(GradScaler, **TOO_LARGE)
    monkeypatch.setattr("tune_rescon.training.module.GradScaler", scaler)


def _module(placement: DeviceConfig, config: TrialConfig = TINY, *, micro_batches: int = 1) -> TrialModule:
    torch.manual_seed(0)
    network = build_from_spec(one_module_spec(config, classes=4))
    execution = StepExecution(placement=placement, micro_batches=micro_batches)
    return TrialModule(network, config, execution, classes=4, epochs=1, steps_per_epoch=64)


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 16, 16, generator=generator), torch.randint(4, (8,), generator=generator)


@pytest.mark.parametrize(
    "optimizer",
    [
        "sgd",
        "adamw",
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("lion", "rmsprop", "muon")),
    ],
)
def test_a_step_with_infinite_gradients_is_skipped_and_the_scale_halved(
    monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """The optimiser's state is unchanged, also if it is fused."""
    monkeypatch.setattr("tune_rescon.training.module.GradScaler", functools.partial(GradScaler, **TOO_LARGE))
    module = _module(FP16, dataclasses.replace(TINY, optimizer=optimizer, learning_rate=1e-4))
    trained, _ = module.optimizer_and_scheduler()
    before = [weight.detach().clone() for weight in module.network.parameters()]
    scale, skipped, losses = module.scaler.get_scale(), 0, []
    for _ in range(40):
        trained.zero_grad()
        loss = module.training_step(_batch())
        module.backward(loss)
        module.scaler.step(trained)
        module.scaler.update()
        losses.append(float(loss.detach()))
        if skipped == len(losses) - 1 and module.scaler.get_scale() == scale / 2:
            scale, skipped = scale / 2, skipped + 1
            pairs = zip(before, module.network.parameters(), strict=True)
            assert all(torch.equal(old, new) for old, new in pairs)
            assert not trained.state
    assert 3 < skipped < 30
    assert losses[-1] < losses[0]
    assert all(weight.isfinite().all() for weight in module.network.parameters())


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradients_are_those_of_the_loss_times_the_scale(
    monkeypatch: pytest.MonkeyPatch, micro_batches: int
) -> None:
    scaler = functools.partial(GradScaler, init_scale=2.0**8)
    monkeypatch.setattr("tune_rescon.training.module.GradScaler", scaler)
    module = _module(FP16, micro_batches=micro_batches)
    fp32_module = _module(DeviceConfig(device=CPU, precision="fp32"), micro_batches=micro_batches)
    for either in (module, fp32_module):
        either.backward(either.training_step(_batch()))
    # Only of the classifier: rounding errors accumulate along the earlier layers.
    grad, expected = (list(either.network.parameters())[-1].grad for either in (module, fp32_module))
    assert grad is not None
    assert expected is not None
    torch.testing.assert_close(grad / module.scaler.get_scale(), expected, rtol=0.02, atol=1e-3)


@pytest.mark.usefixtures("on_cpu")
def test_a_resumed_trial_equals_an_uninterrupted_one_and_so_does_its_scale(
    train: Train,
    small: TrialConfig,
    limit_file_size: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    common_options = {**IMPROVING, "epochs": 2}
    config = dataclasses.replace(small, precision="fp16")
    reference, interrupted = (
        ResumedTrial(functools.partial(train, config), tmp_path / name, limit_file_size, common_options)
        for name in ("reference", "interrupted")
    )
    reference.run()
    preempted(at=6)(interrupted)
    state_at_preemption = read_checkpoint(interrupted.folder / "last.ckpt")["ScaledPrecision"]
    interrupted.run()
    assert [metrics_of(report) for report in interrupted.reports] == [
        metrics_of(report) for report in reference.reports
    ]
    assert_same_files(interrupted.folder, reference.folder)
    states = [
        read_checkpoint(one.folder / "last.ckpt")["ScaledPrecision"] for one in (interrupted, reference)
    ]
    assert states[0] == states[1]
    assert state_at_preemption["scale"] < TOO_LARGE["init_scale"]
    assert states[0]["scale"] > TOO_LARGE["init_scale"] / 2**8, "not every step was skipped"


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.filterwarnings("error")
def test_skipped_first_steps_and_clipping_raise_no_warning(train: Train, small: TrialConfig) -> None:
    assert small.gradient_clip > 0
    assert len(train(dataclasses.replace(small, precision="fp16"), epochs=1)) == 1


def test_fp16_on_a_cpu_falls_back_to_fp32_with_a_message(train: Train, small: TrialConfig) -> None:
    messages: list[str] = []
    config = dataclasses.replace(small, precision="fp16")
    reports = train(config, epochs=1, on_message=messages.append)
    assert messages == ["precision fp16 is for GPUs; this trial trains in fp32 on its CPU"]
    expected = train(dataclasses.replace(small, precision="fp32"), epochs=1)
    assert metrics_of(reports[0]) == metrics_of(expected[0])


def _with_a_large_image() -> tuple[torch.Tensor, torch.Tensor]:
    """A batch with one image whose activations overflow in fp16 and not in fp32."""
    images_BCHW, labels_B = _batch()
    return images_BCHW * torch.tensor([1e6, *[1.0] * 7]).view(8, 1, 1, 1), labels_B


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_an_image_that_overflows_in_validation_is_evaluated_in_fp32(micro_batches: int) -> None:
    fp16_module = _module(FP16, micro_batches=micro_batches).eval()
    fp32_module = _module(DeviceConfig(device=CPU, precision="fp32"), micro_batches=micro_batches).eval()
    large, original = _with_a_large_image(), _batch()
    with torch.inference_mode():
        with FP16.autocast():
            assert not fp16_module.eval_network(large[0]).isfinite().all()
        for module in (fp16_module, fp32_module):
            module.validation_step(large)
            module.validation_step(original)
    values, expected = (module.val_metrics.compute() for module in (fp16_module, fp32_module))
    assert expected["loss"] < 1e7
    assert values == pytest.approx(expected, rel=0.01)


def test_images_without_overflow_are_evaluated_once_in_fp16() -> None:
    module, calls = _module(FP16).eval(), []
    module.network.register_forward_hook(lambda *_: calls.append(torch.is_autocast_enabled("cpu")))
    with torch.inference_mode():
        module.validation_step(_batch())
        assert calls == [True]
        module.validation_step(_with_a_large_image())
    assert calls == [True, True, False]


def test_nan_outputs_in_fp32_give_nan_metrics() -> None:
    module = _module(FP16).eval()
    with torch.inference_mode():
        module.validation_step((_batch()[0] * torch.nan, _batch()[1]))
    assert all(math.isnan(value) for value in module.val_metrics.compute().values())


def test_batch_norm_statistics_are_estimated_in_fp32_on_overflow() -> None:
    fp16_module, fp32_module = _module(FP16), _module(DeviceConfig(device=CPU, precision="fp32"))
    for module in (fp16_module, fp32_module):
        module.reestimate_batch_norm([_batch()[0], _with_a_large_image()[0]])
    values, expected = (batch_norm_statistics(module.eval_network) for module in (fp16_module, fp32_module))
    for one, other in zip(values, expected, strict=True):
        torch.testing.assert_close(one, other)

"""Captured and replayed steps: by CUDA graphs on a GPU, by an equivalent graph_capture on a CPU."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.one_module import one_module_spec
from tests.training.conftest import Train
from tests.training.resuming import metrics_of_all
from tune_rescon.config import TrialConfig
from tune_rescon.data import ImageDataset
from tune_rescon.models import build_from_spec, describe_network
from tune_rescon.training import EpochReport, TrialProcess, fit, train_trial
from tune_rescon.training.cuda_graphs import (
    CapturedStep,
    CaptureError,
    CudaGraphs,
    HangWatchdog,
    Outputs,
    choose_graph_capture,
)
from tune_rescon.training.device import DeviceConfig, Precision
from tune_rescon.training.memory import memory_key
from tune_rescon.training.module import StepExecution, TrialModule

pytestmark = pytest.mark.torch

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA GPU")

CPU = torch.device("cpu")

#: GPU kernels add in varying order: in fp64 rounding does not hide a wrong gradient.
DTYPES = {"cpu": torch.float32, "cuda": torch.float64}

SMALL_FIELDS: dict[str, Any] = {
    "layout": "cifar",
    "depth": 56,
    "width": 0.25,
    "image_size": 16,
    "batch_size": 8,
}


class CpuGraphCapture:
    """Replays a step as a CUDA graph does: from the same input memory to the same output memory."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        self.captures += 1
        run()  # as CudaGraphs does before a capture
        outputs = tuple(output.clone() for output in run())

        def replay() -> None:
            self.replays += 1
            for memory, output in zip(outputs, run(), strict=True):
                memory.copy_(output)

        return replay, outputs


class CountingNetwork(nn.Module):
    """Counts its calls in a buffer and adds a random number to its input."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x_B: Tensor) -> Tensor:
        self.calls.add_(1)
        return x_B + torch.rand(())


@pytest.fixture
def graph_capture() -> CpuGraphCapture:
    return CpuGraphCapture()


def test_capturing_has_no_side_effects_and_replays_the_function(graph_capture: CpuGraphCapture) -> None:
    network = CountingNetwork()
    torch.manual_seed(0)
    noise = torch.rand(())
    torch.manual_seed(0)
    function = CapturedStep(lambda x_B: (network(x_B),), network, graph_capture)
    [y_B] = function(torch.ones(3))
    torch.testing.assert_close(y_B, torch.ones(3) + noise)
    assert network.calls == 1
    first_B = y_B.clone()
    [second_B] = function(torch.ones(3))
    assert second_B is y_B, "the output memory is reused"
    assert not torch.equal(second_B, first_B)
    assert (int(network.calls), graph_capture.captures, graph_capture.replays) == (2, 1, 2)


def test_inputs_of_another_shape_run_uncaptured(graph_capture: CpuGraphCapture) -> None:
    network = CountingNetwork()
    function = CapturedStep(lambda x_B: (network(x_B),), network, graph_capture)
    for images in (4, 3, 4, 3):
        assert function(torch.ones(images))[0].shape == (images,)
    assert (int(network.calls), graph_capture.captures, graph_capture.replays) == (4, 1, 2)


def test_a_moved_network_is_captured_again(graph_capture: CpuGraphCapture) -> None:
    """Lightning moves a network at the end of a training. The old memory must not be used then."""
    network = nn.Linear(2, 1)
    function = CapturedStep(lambda x_BK: (network(x_BK),), network, graph_capture)
    for _ in range(2):
        function(torch.ones(3, 2))
    network.double().float()
    [y_BK] = function(torch.ones(3, 2))
    assert graph_capture.captures == 2
    torch.testing.assert_close(y_BK, network(torch.ones(3, 2)))


@pytest.mark.parametrize(
    ("device", "fields", "micro_batches", "captures"),
    [
        ("cuda", {}, 1, True),
        ("cpu", {}, 1, False),
        ("cuda", {"cuda_graphs": "off"}, 1, False),
        ("cuda", {}, 2, False),
    ],
)
def test_only_whole_batches_on_a_gpu_are_captured(
    device: str, fields: dict[str, Any], micro_batches: int, *, captures: bool
) -> None:
    placement = DeviceConfig(device=torch.device(device), precision="fp32")
    config = TrialConfig(**fields)
    capture = choose_graph_capture(config, placement, micro_batches=micro_batches, recomputes=False)
    assert (capture is not None) == captures
    assert choose_graph_capture(config, placement, micro_batches=micro_batches, recomputes=True) is None


def test_capture_and_first_replays_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of CUDA's calls but those of the device are real."""
    files_at_replay: list[int] = []

    def replay_graph() -> None:
        files_at_replay.append(len(list(tmp_path.iterdir())))

    monkeypatch.setattr(CudaGraphs, "_warm_up", lambda _, run: run())
    monkeypatch.setattr(CudaGraphs, "_capture", lambda _, run, warmed: (replay_graph, (*warmed, *run())))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    placement = DeviceConfig(device=torch.device("cuda"), precision="fp32")
    watchdog = HangWatchdog(folder=tmp_path, key="a")
    graph_capture = choose_graph_capture(
        TrialConfig(), placement, micro_batches=1, recomputes=False, watchdog=watchdog
    )
    assert graph_capture is not None
    replay, files = graph_capture(lambda: (torch.tensor(len(list(tmp_path.iterdir()))),))
    assert [int(count) for count in files] == [1, 1], "the warm-up runs are watched too"
    for _ in range(5):
        replay()
    assert files_at_replay == [1] * 5 + [0]
    assert list(tmp_path.iterdir()) == []


def _module(
    graph_capture: CudaGraphs | CpuGraphCapture | None, placement: DeviceConfig, **fields: Any
) -> TrialModule:
    torch.manual_seed(0)
    config = TrialConfig(**(SMALL_FIELDS | fields))
    network = build_from_spec(one_module_spec(config, classes=4))
    module = TrialModule(
        network.to(DTYPES[placement.device.type]),
        config,
        StepExecution(placement=placement, graph_capture=graph_capture),
        classes=4,
        epochs=1,
        steps_per_epoch=10,
    )
    return module.to(placement.device)


def _train(module: TrialModule, device: torch.device, steps: int) -> Tensor:
    """The losses of ``steps`` steps, and the weights after them."""
    generator = torch.Generator().manual_seed(0)
    optimizer, scheduler = module.optimizer_and_scheduler()
    torch.manual_seed(1)
    losses = []
    for _ in range(steps):
        images_BCHW = torch.randn(8, 3, 16, 16, generator=generator).to(device, DTYPES[device.type])
        labels_B = torch.randint(4, (8,), generator=generator).to(device)
        optimizer.zero_grad()
        loss = module.training_step((images_BCHW, labels_B))
        optimizer.zero_grad()  # as Lightning, between forward and backward
        module.backward(loss)
        module.scaler.step(optimizer)
        module.scaler.update()
        scheduler.step()
        losses.append(loss.detach())
    results = (*losses, *module.network.parameters())
    return torch.cat([result.detach().cpu().flatten() for result in results])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])  # bf16 and fp16 cast all weights at once
def test_a_replayed_step_trains_like_a_launched_one(
    graph_capture: CpuGraphCapture, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp16 also after the gradient scale has changed since the capture."""
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**10, growth_interval=1)
    monkeypatch.setattr("tune_rescon.training.module.GradScaler", scaler)
    placement = DeviceConfig(device=CPU, precision=precision)
    fields = {"drop_path": 0.3, "label_smoothing": 0.1}
    replayed = _train(_module(graph_capture, placement, **fields), CPU, steps=3)
    assert (graph_capture.captures, graph_capture.replays) == (1, 3)
    assert torch.equal(replayed, _train(_module(None, placement, **fields), CPU, steps=3))


@pytest.mark.parametrize("captured", [True, False])
def test_a_captured_step_casts_all_weights_and_all_gradients_at_once(
    graph_capture: CpuGraphCapture, *, captured: bool
) -> None:
    """No weight is left to autocast, which casts each one separately."""
    module = _module(graph_capture if captured else None, DeviceConfig(device=CPU, precision="bf16"))
    batch = (torch.randn(8, 3, 16, 16), torch.randint(4, (8,)))
    module.training_step(batch)  # captures the step
    with torch.profiler.profile(record_shapes=True) as profile:
        module.backward(module.training_step(batch))
    weights = {tuple(part.weight.shape) for part in module.modules() if isinstance(part, nn.Conv2d)}
    events = list(profile.events() or ())
    assert sum(event.name == "aten::_foreach_copy_" for event in events) == (2 if captured else 0)
    casts = [event for event in events if event.name == "aten::_to_copy" and not _within_convolution(event)]
    weight_casts = [event for event in casts if tuple((event.input_shapes or [[]])[0]) in weights]
    assert bool(weight_casts) != captured


def _within_convolution(event: Any) -> bool:
    """Whether a convolution made the cast: on a CPU with bf16 instructions some cast their weights."""
    while event is not None and event.name != "aten::convolution_backward":
        event = event.cpu_parent
    return event is not None


@NEEDS_GPU
@pytest.mark.timeout(120)
def test_a_cuda_graph_trains_as_launched_kernels_do() -> None:
    placement = DeviceConfig(device=torch.device("cuda"), precision="fp32")
    replayed, launched = (
        _train(_module(graph_capture, placement), placement.device, steps=4)
        for graph_capture in (CudaGraphs(placement.device), None)
    )
    torch.testing.assert_close(replayed, launched, rtol=1e-7, atol=1e-9)


@NEEDS_GPU
@pytest.mark.timeout(120)
def test_a_cuda_graph_draws_from_the_seed_and_differs_at_each_step() -> None:
    network = CountingNetwork().cuda()
    draw = CapturedStep(lambda x_B: (x_B + torch.rand_like(x_B),), network, CudaGraphs(torch.device("cuda")))
    zeros_B = torch.zeros(4, device="cuda")
    samples = []
    for _ in range(2):
        torch.manual_seed(3)
        samples.append([draw(zeros_B)[0].tolist() for _ in range(2)])
    assert samples[0] == samples[1]
    assert samples[0][0] != samples[0][1]


@pytest.fixture
def captured_on_cpu(monkeypatch: pytest.MonkeyPatch, graph_capture: CpuGraphCapture) -> CpuGraphCapture:
    monkeypatch.setattr(fit, "choose_graph_capture", lambda *_, **__: graph_capture)
    return graph_capture


def test_a_captured_trial_reports_the_same_as_an_uncaptured_one(
    train: Train, request: pytest.FixtureRequest
) -> None:
    """With every feature that holds state: mixup, drop path, averaging, precise batch norm, clipping."""
    expected = metrics_of_all(train())
    graph_capture: CpuGraphCapture = request.getfixturevalue("captured_on_cpu")
    assert metrics_of_all(train()) == expected
    assert graph_capture.captures == 1
    assert graph_capture.replays > 1


@NEEDS_GPU
@pytest.mark.timeout(300)
def test_a_gpu_trial_trains_the_same_with_cuda_graphs(
    digits: ImageDataset, small_attention: TrialConfig
) -> None:
    """With every feature that holds state: mixup, drop path, clipping, averaging."""
    reports: dict[str, list[EpochReport]] = {"auto": [], "off": []}
    messages: list[str] = []
    for cuda_graphs, reports_of_run in reports.items():
        config = dataclasses.replace(
            small_attention, precision="fp32", learning_rate=1e-3, cuda_graphs=cuda_graphs
        )
        train_trial(
            config,
            digits,
            epochs=3,
            seed=0,
            checkpoint_dir=None,
            on_epoch=reports_of_run.append,
            process=TrialProcess(on_message=messages.append, device="cuda"),
        )
    assert messages == []
    for name in ("train_loss", "val_loss"):
        replayed, launched = (
            [report.metrics[name] for report in reports_of_run] for reports_of_run in reports.values()
        )
        assert replayed == pytest.approx(launched, rel=5e-2), name


class FailingCapture:
    """A graph_capture that raises: capture is impossible or does not fit into memory."""

    def __init__(self, error: RuntimeError) -> None:
        self.error = error

    def __call__(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        run()
        raise self.error


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (CaptureError("not permitted"), "no CUDA graph here (not permitted); training continues without"),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            "a CUDA graph of a batch of 16 images leaves too little memory; training continues without",
        ),
    ],
)
def test_a_trial_that_cannot_be_captured_trains_without_cuda_graphs(
    train: Train, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, note: str
) -> None:
    expected = metrics_of_all(train())
    monkeypatch.setattr(fit, "choose_graph_capture", lambda *_, **__: FailingCapture(error))
    messages: list[str] = []
    assert metrics_of_all(train(on_message=messages.append)) == expected
    assert messages == [note]


def test_a_trial_trains_without_cuda_graphs_after_a_hang(
    train: Train,
    captured_on_cpu: CpuGraphCapture,
    tmp_path: Path,
    small: TrialConfig,
) -> None:
    messages: list[str] = []
    train(hang_folder=tmp_path, on_message=messages.append, epochs=1)
    assert (messages, captured_on_cpu.captures) == ([], 1)
    placement = DeviceConfig(device=CPU, precision="fp32")
    key = memory_key(describe_network(small, classes=10, in_channels=1), placement, small.compile)
    with HangWatchdog(folder=tmp_path, key=key).watching(60):
        [evidence] = tmp_path.iterdir()
        evidence.write_text("Timeout (0:10:00)!")
        train(hang_folder=tmp_path, on_message=messages.append, epochs=1)
    assert messages == [
        f"no CUDA graph: one of this network has hung here before ({evidence}; remove it to try again)"
    ]
    assert captured_on_cpu.captures == 1


@NEEDS_GPU
@pytest.mark.timeout(120)
def test_a_step_that_waits_for_the_device_cannot_be_captured() -> None:
    network = CountingNetwork().cuda()
    synchronising_step = CapturedStep(
        lambda x_B: (x_B * x_B.sum().item(),), network, CudaGraphs(torch.device("cuda"))
    )
    with pytest.raises(CaptureError):
        synchronising_step(torch.ones(4, device="cuda"))
    assert torch.ones(4, device="cuda").sum().item() == 4, "the device still works"
    assert torch.rand(4, device="cuda").max() < 1, "so do its random numbers"

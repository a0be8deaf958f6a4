"""Steps that are recorded and played back: by CUDA graphs on a GPU, by what keeps their rules on a CPU."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_rescon.config import TrialConfig
from tune_rescon.data import ImageDataset
from tune_rescon.models import build_from_spec, resolve_network
from tune_rescon.training import EpochReport, TrialProcess, fit, train_trial
from tune_rescon.training.cuda_graphs import (
    CapturedStep,
    CudaGraphs,
    HangWatchdog,
    Outputs,
    RecordingError,
    choose_recorder,
)
from tune_rescon.training.device import DeviceConfig, Precision
from tune_rescon.training.memory import shape_key
from tune_rescon.training.module import StepExecution, TrialModule

pytestmark = pytest.mark.torch

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA GPU")

CPU = torch.device("cpu")

#: A GPU's kernels do not always add in one order: in fp64 rounding does not hide a wrong gradient.
DTYPES = {"cpu": torch.float32, "cuda": torch.float64}

SMALL: dict[str, Any] = {"layout": "cifar", "depth": 56, "width": 0.25, "image_size": 16, "batch_size": 8}


class PlayedOnCpu:
    """Does what a CUDA graph's replay does: all again, from the same inputs to the same outputs."""

    def __init__(self) -> None:
        self.recorded = self.played = 0

    def __call__(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        self.recorded += 1
        run()  # as CudaGraphs, before a recording
        outputs = tuple(output.clone() for output in run())

        def replay() -> None:
            self.played += 1
            for kept, output in zip(outputs, run(), strict=True):
                kept.copy_(output)

        return replay, outputs


class Counts(nn.Module):
    """Counts its calls in a buffer, and draws a random number at each."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x_B: Tensor) -> Tensor:
        self.calls.add_(1)
        return x_B + torch.rand(())


@pytest.fixture
def recorder() -> PlayedOnCpu:
    return PlayedOnCpu()


def test_capturing_has_no_side_effects_and_replays_the_function(recorder: PlayedOnCpu) -> None:
    network = Counts()
    torch.manual_seed(0)
    drawn = torch.rand(())
    torch.manual_seed(0)
    function = CapturedStep(lambda x_B: (network(x_B),), network, recorder)
    [y_B] = function(torch.ones(3))
    torch.testing.assert_close(y_B, torch.ones(3) + drawn)
    assert network.calls == 1
    first = y_B.clone()
    [again_B] = function(torch.ones(3))
    assert again_B is y_B, "where the last one lay"
    assert not torch.equal(again_B, first)
    assert (int(network.calls), recorder.recorded, recorder.played) == (2, 1, 2)


def test_inputs_of_another_shape_run_uncaptured(recorder: PlayedOnCpu) -> None:
    network = Counts()
    function = CapturedStep(lambda x_B: (network(x_B),), network, recorder)
    for images in (4, 3, 4, 3):
        assert function(torch.ones(images))[0].shape == (images,)
    assert (int(network.calls), recorder.recorded, recorder.played) == (4, 1, 2)


def test_a_moved_network_is_captured_again(recorder: PlayedOnCpu) -> None:
    """As by Lightning at a training's end: where it lay is somebody else's by now."""
    network = nn.Linear(2, 1)
    function = CapturedStep(lambda x_BK: (network(x_BK),), network, recorder)
    for _ in range(2):
        function(torch.ones(3, 2))
    network.double().float()
    [y_BK] = function(torch.ones(3, 2))
    assert recorder.recorded == 2
    torch.testing.assert_close(y_BK, network(torch.ones(3, 2)))


@pytest.mark.parametrize(
    ("device", "fields", "micro_batches", "records"),
    [
        ("cuda", {}, 1, True),
        ("cpu", {}, 1, False),
        ("cuda", {"cuda_graphs": "off"}, 1, False),
        ("cuda", {}, 2, False),
    ],
)
def test_what_is_recorded(device: str, fields: dict[str, Any], micro_batches: int, *, records: bool) -> None:
    placement = DeviceConfig(device=torch.device(device), precision="fp32")
    config = TrialConfig(**fields)
    chosen = choose_recorder(config, placement, micro_batches=micro_batches, recomputes=False)
    assert (chosen is not None) == records
    assert choose_recorder(config, placement, micro_batches=micro_batches, recomputes=True) is None


def test_capture_and_first_replays_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of CUDA only the device is missing."""
    played: list[int] = []

    def play() -> None:
        played.append(len(list(tmp_path.iterdir())))

    monkeypatch.setattr(CudaGraphs, "_warmed", lambda _, run: run())
    monkeypatch.setattr(CudaGraphs, "_recorded", lambda _, run, warmed: (play, (*warmed, *run())))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    placement = DeviceConfig(device=torch.device("cuda"), precision="fp32")
    watch = HangWatchdog(folder=tmp_path, key="a")
    recorder = choose_recorder(TrialConfig(), placement, micro_batches=1, recomputes=False, watch=watch)
    assert recorder is not None
    replay, files = recorder(lambda: (torch.tensor(len(list(tmp_path.iterdir()))),))
    assert [int(count) for count in files] == [1, 1], "the runs before it, too"
    for _ in range(5):
        replay()
    assert played == [1] * 5 + [0]
    assert list(tmp_path.iterdir()) == []


def _module(recorder: CudaGraphs | PlayedOnCpu | None, placement: DeviceConfig, **fields: Any) -> TrialModule:
    torch.manual_seed(0)
    config = TrialConfig(**(SMALL | fields))
    network = build_from_spec(resolve_network(config, classes=4, in_channels=3))
    module = TrialModule(
        network.to(DTYPES[placement.device.type]),
        config,
        StepExecution(placement=placement, recorder=recorder),
        classes=4,
        epochs=1,
        steps_per_epoch=10,
    )
    return module.to(placement.device)


def _train(module: TrialModule, device: torch.device, steps: int) -> Tensor:
    """Its losses in some steps, and its weights after them."""
    generator = torch.Generator().manual_seed(0)
    optimizer, scheduler = module.optimizer_and_scheduler()
    torch.manual_seed(1)
    losses = []
    for _ in range(steps):
        images_BCHW = torch.randn(8, 3, 16, 16, generator=generator).to(device, DTYPES[device.type])
        labels_B = torch.randint(4, (8,), generator=generator).to(device)
        optimizer.zero_grad()
        loss = module.training_step((images_BCHW, labels_B))
        optimizer.zero_grad()  # as Lightning, between the two
        module.backward(loss)
        module.scaler.step(optimizer)
        module.scaler.update()
        scheduler.step()
        losses.append(loss.detach())
    results = (*losses, *module.network.parameters())
    return torch.cat([result.detach().cpu().flatten() for result in results])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])  # the last two cast their weights together
def test_a_replayed_step_trains_like_a_launched_one(
    recorder: PlayedOnCpu, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp16 also when the scale of the gradients has changed since the recording."""
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**10, growth_interval=1)
    monkeypatch.setattr("tune_rescon.training.module.GradScaler", scaler)
    placement = DeviceConfig(device=CPU, precision=precision)
    fields = {"drop_path": 0.3, "label_smoothing": 0.1}
    played = _train(_module(recorder, placement, **fields), CPU, steps=3)
    assert (recorder.recorded, recorder.played) == (1, 3)
    assert torch.equal(played, _train(_module(None, placement, **fields), CPU, steps=3))


@pytest.mark.parametrize("recorded", [True, False])
def test_a_captured_step_casts_all_weights_and_all_gradients_at_once(
    recorder: PlayedOnCpu, *, recorded: bool
) -> None:
    """And leaves no weight to autocast, which casts each by itself."""
    module = _module(recorder if recorded else None, DeviceConfig(device=CPU, precision="bf16"))
    batch = (torch.randn(8, 3, 16, 16), torch.randint(4, (8,)))
    module.training_step(batch)  # records
    with torch.profiler.profile(record_shapes=True) as profile:
        module.backward(module.training_step(batch))
    weights = {tuple(part.weight.shape) for part in module.modules() if isinstance(part, nn.Conv2d)}
    events = list(profile.events() or ())
    assert sum(event.name == "aten::_foreach_copy_" for event in events) == (2 if recorded else 0)
    copied = [event for event in events if event.name == "aten::_to_copy" and not _within_convolution(event)]
    alone = [event for event in copied if tuple((event.input_shapes or [[]])[0]) in weights]
    assert bool(alone) != recorded


def _within_convolution(event: Any) -> bool:
    """Whether a convolution did it by itself: on a CPU with bf16 instructions some cast their weights."""
    while event is not None and event.name != "aten::convolution_backward":
        event = event.cpu_parent
    return event is not None


@NEEDS_GPU
@pytest.mark.timeout(120)
def test_a_cuda_graph_trains_as_launched_kernels_do() -> None:
    placement = DeviceConfig(device=torch.device("cuda"), precision="fp32")
    played, launched = (
        _train(_module(recorder, placement), placement.device, steps=4)
        for recorder in (CudaGraphs(placement.device), None)
    )
    torch.testing.assert_close(played, launched, rtol=1e-7, atol=1e-9)


@NEEDS_GPU
@pytest.mark.timeout(120)
def test_a_cuda_graph_draws_from_the_seed_and_differs_at_each_step() -> None:
    network = Counts().cuda()
    draw = CapturedStep(lambda x_B: (x_B + torch.rand_like(x_B),), network, CudaGraphs(torch.device("cuda")))
    zeros_B = torch.zeros(4, device="cuda")
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append([draw(zeros_B)[0].tolist() for _ in range(2)])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


@pytest.fixture
def recorded_on_cpu(monkeypatch: pytest.MonkeyPatch, recorder: PlayedOnCpu) -> PlayedOnCpu:
    monkeypatch.setattr(fit, "choose_recorder", lambda *_, **__: recorder)
    return recorder


def test_a_captured_trial_reports_the_same_as_an_uncaptured_one(
    train: Callable[..., list[EpochReport]], request: pytest.FixtureRequest
) -> None:
    """With mixup, dropped paths, an average, precise statistics, clipping: everything that keeps state."""
    expected = [_lasting(report) for report in train()]
    recorder: PlayedOnCpu = request.getfixturevalue("recorded_on_cpu")
    assert [_lasting(report) for report in train()] == expected
    assert recorder.recorded == 1
    assert recorder.played > 1


def _lasting(report: EpochReport) -> dict[str, float]:
    return {name: value for name, value in report.metrics.items() if "second" not in name}


@NEEDS_GPU
@pytest.mark.timeout(300)
def test_a_gpu_trial_trains_the_same_with_cuda_graphs(digits: ImageDataset, small: TrialConfig) -> None:
    """With everything that keeps state on: mixup, dropped paths, clipping, an average."""
    reports: dict[str, list[EpochReport]] = {"auto": [], "off": []}
    told: list[str] = []
    for word, kept in reports.items():
        config = dataclasses.replace(small, precision="fp32", learning_rate=1e-3, cuda_graphs=word)
        train_trial(
            config,
            digits,
            epochs=3,
            seed=0,
            checkpoint_dir=None,
            on_epoch=kept.append,
            process=TrialProcess(on_message=told.append, device="cuda"),
        )
    assert told == []
    for name in ("train_loss", "val_loss"):
        played, launched = ([report.metrics[name] for report in kept] for kept in reports.values())
        assert played == pytest.approx(launched, rel=5e-2), name


class Refuses:
    """As a device on which nothing can be recorded, or that has no room for it."""

    def __init__(self, error: RuntimeError) -> None:
        self.error = error

    def __call__(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        run()
        raise self.error


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (RecordingError("not permitted"), "no CUDA graph here (not permitted); training continues without"),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            "a CUDA graph of a batch of 16 images leaves too little memory; training continues without",
        ),
    ],
)
def test_a_trial_that_cannot_be_captured_trains_without_cuda_graphs(
    train: Callable[..., list[EpochReport]], monkeypatch: pytest.MonkeyPatch, error: RuntimeError, note: str
) -> None:
    expected = [_lasting(report) for report in train()]
    monkeypatch.setattr(fit, "choose_recorder", lambda *_, **__: Refuses(error))
    told: list[str] = []
    assert [_lasting(report) for report in train(on_message=told.append)] == expected
    assert told == [note]


def test_a_trial_trains_without_cuda_graphs_after_a_hang(
    train: Callable[..., list[EpochReport]], recorded_on_cpu: PlayedOnCpu, tmp_path: Path, small: TrialConfig
) -> None:
    told: list[str] = []
    train(hang_folder=tmp_path, on_message=told.append, epochs=1)
    assert (told, recorded_on_cpu.recorded) == ([], 1)
    placement = DeviceConfig(device=CPU, precision="fp32")
    key = shape_key(resolve_network(small, classes=10, in_channels=1), placement, small.compile)
    with HangWatchdog(folder=tmp_path, key=key).watching(60):
        [evidence] = tmp_path.iterdir()
        evidence.write_text("Timeout (0:10:00)!")
        train(hang_folder=tmp_path, on_message=told.append, epochs=1)
    assert told == [
        f"no CUDA graph: one of this network never came back here ({evidence}; remove it to try again)"
    ]
    assert recorded_on_cpu.recorded == 1


@NEEDS_GPU
@pytest.mark.timeout(120)
def test_a_step_that_waits_for_the_device_cannot_be_captured() -> None:
    network = Counts().cuda()
    waits = CapturedStep(lambda x_B: (x_B * x_B.sum().item(),), network, CudaGraphs(torch.device("cuda")))
    with pytest.raises(RecordingError):
        waits(torch.ones(4, device="cuda"))
    assert torch.ones(4, device="cuda").sum().item() == 4, "the device still works"
    assert torch.rand(4, device="cuda").max() < 1, "and so do its random numbers"

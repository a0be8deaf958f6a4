"""Trials of external networks: trained, resumed, used and exported like Residual Attention Networks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.training.resuming import IMPROVING, ResumedTrial, assert_same_files, metrics_of, preempted
from tune_rescon.config import TrialConfig
from tune_rescon.data import ImageDataset
from tune_rescon.data.preprocessing import Normalization, to_unit
from tune_rescon.errors import ConfigError, NetworkError
from tune_rescon.inference import batches_of, export_model, predictions
from tune_rescon.models import NetworkDescription, build_described, describe_network
from tune_rescon.predict import main as predict
from tune_rescon.training import load_trained
from tune_rescon.training.cuda_graphs import Outputs
from tune_rescon.training.device import DeviceConfig, resolve_device
from tune_rescon.training.initial_weights import read_initial
from tune_rescon.training.memory import OomHistory
from tune_rescon.training.module import StepExecution, TrialModule

if TYPE_CHECKING:
    from tests.training.conftest import Train

pytestmark = pytest.mark.torch

USER_NETWORK = "tests.own_networks:small"

#: Every feature that holds state between steps or epochs is on.
CONFIGS = {
    "timm": TrialConfig(
        network="timm/test_resnet",
        image_size=32,
        batch_size=16,
        learning_rate=0.05,
        drop_path=0.2,
        ema_decay=0.9,
        precise_bn_batches=2,
        mixup=0.2,
    ),
    "own": TrialConfig(
        network=USER_NETWORK,
        image_size=16,
        batch_size=16,
        learning_rate=0.05,
        ema_decay=0.9,
        precise_bn_batches=2,
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def trained_trial(
    request: pytest.FixtureRequest, train: Train, tmp_path_factory: pytest.TempPathFactory
) -> ResumedTrial:
    """An uninterrupted trial of two epochs."""
    folder = tmp_path_factory.mktemp(request.param)
    config = CONFIGS[request.param]
    trial = ResumedTrial(functools.partial(train, config), folder, lambda _: pytest.fail("not used"))
    trial.run(epochs=2)
    return trial


def config_of_trial(trial: ResumedTrial) -> TrialConfig:
    return load_trained(trial.folder / "best.ckpt")[1].config


def test_a_preempted_trial_equals_an_uninterrupted_one(
    trained_trial: ResumedTrial,
    train: Train,
    limit_file_size: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    assert trained_trial.reports[1].metrics["train_loss"] < trained_trial.reports[0].metrics["train_loss"]
    resumed = ResumedTrial(
        functools.partial(train, config_of_trial(trained_trial)),
        tmp_path,
        limit_file_size,
        {**IMPROVING, "epochs": 2},
    )
    preempted(at=3)(resumed)
    resumed.run()
    assert [metrics_of(report) for report in resumed.reports] == [
        metrics_of(report) for report in trained_trial.reports
    ]
    assert_same_files(resumed.folder, trained_trial.folder)


def accuracy_of_predict(checkpoint: Path, digits: ImageDataset, folder: Path) -> float:
    """The accuracy of ``predict`` on the validation images, saved as image files."""
    folder.mkdir()
    images_NHWC, labels_N = digits.val.gather(np.arange(len(digits.val)))
    for number, image_HWC in enumerate(images_NHWC):
        Image.fromarray(image_HWC[..., 0]).save(folder / f"{number:04d}.png")
    network, about = load_trained(checkpoint)
    files = sorted(folder.iterdir())
    batches = batches_of(files, about, batch_size=16, on_bad=lambda _, message: pytest.fail(message))
    predicted = predictions(network, about, batches, resolve_device("cpu", precision="fp32"), top=1)
    pairs = zip(predicted, labels_N, strict=True)
    return float(np.mean([prediction.best[0] == digits.class_names[label] for prediction, label in pairs]))


def test_the_best_network_reproduces_the_validation_accuracy(
    trained_trial: ResumedTrial, digits: ImageDataset, tmp_path: Path
) -> None:
    source = trained_trial.folder / "best.ckpt"
    measured = load_trained(source)[1].metrics["val_accuracy"]
    assert accuracy_of_predict(source, digits, tmp_path / "pictures") == pytest.approx(measured)


@pytest.mark.parametrize("form", ["safetensors", "torch-export", "onnx", "timm"])
def test_an_external_network_is_exported_in_each_format(
    form: str, trained_trial: ResumedTrial, tmp_path: Path
) -> None:
    network, about = load_trained(trained_trial.folder / "best.ckpt")
    if form == "timm" and about.config.network == USER_NETWORK:
        with pytest.raises(ConfigError, match="--format: the format timm is for networks that timm can"):
            export_model(network, about, form=form, output=tmp_path / "model")
        return
    # export_model loads the file and compares the probabilities.
    assert export_model(network, about, form=form, output=tmp_path / "model") <= 1e-4
    assert (tmp_path / "model").exists()


def test_a_network_that_torch_cannot_export_is_refused(trained_trial: ResumedTrial, tmp_path: Path) -> None:
    class DataDependentNetwork(nn.Module):
        def forward(self, images_BCHW: Tensor) -> Tensor:
            logits_BK = images_BCHW.flatten(1)[:, :10]
            return logits_BK if float(logits_BK.sum()) > 0 else 2 * logits_BK

    _, about = load_trained(trained_trial.folder / "best.ckpt")
    with pytest.raises(
        ConfigError, match=r"--format: torch must be able to export the network .*safetensors"
    ):
        export_model(DataDependentNetwork(), about, form="torch-export", output=tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_masks_cannot_be_drawn(
    trained_trial: ResumedTrial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    masks = tmp_path / "masks"
    arguments = [str(trained_trial.folder / "best.ckpt"), str(tmp_path / "a.png"), "--masks", str(masks)]
    assert predict(arguments) == 2
    assert "--masks: only Residual Attention Networks have masks to draw" in capsys.readouterr().err
    assert not masks.exists()


def test_initial_weights_of_another_trial_are_loaded_if_they_fit(trained_trial: ResumedTrial) -> None:
    source, config = trained_trial.folder / "best.ckpt", config_of_trial(trained_trial)
    trained = load_trained(source)[0].state_dict()
    for names in ("0123456789", "9876543210", "0123"):
        classes = len(names)
        spec = describe_network(config, classes=classes, in_channels=1)
        weights, network = read_initial(str(source)), build_described(spec)
        weights.check_fits(spec)
        message = weights.classifier_message(spec, tuple(names))
        assert (message is not None) == (names == "9876543210")
        weights.load_into(network, spec, tuple(names))
        initial = network.state_dict()
        same = {
            name
            for name, tensor in initial.items()
            if tensor.shape == trained[name].shape and torch.equal(tensor, trained[name])
        }
        reinitialised = initial.keys() - same
        assert len(reinitialised) == (0 if names == "0123456789" else 2)
        assert all(len(initial[name]) == classes for name in reinitialised)
    for other_config in (TrialConfig(), TrialConfig(network="timm/resnet18")):
        spec = describe_network(other_config, classes=10, in_channels=1)
        with pytest.raises(NetworkError, match=f"Choose `network: {config.network}`"):
            read_initial(str(source)).check_fits(spec)
    with pytest.raises(NetworkError, match=r"must have the tensors of .*, but got .* of another shape"):
        read_initial(str(source)).check_fits(describe_network(config, classes=10, in_channels=3))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_bare_timm_state_dict_is_accepted(prefix: str, train: Train, tmp_path: Path) -> None:
    import timm

    timm_weights = timm.create_model("test_resnet", num_classes=1000, in_chans=1).state_dict()
    path = tmp_path / "timm.pth"
    torch.save(
        {"epoch": 3, "state_dict": {f"{prefix}{name}": tensor for name, tensor in timm_weights.items()}}, path
    )
    config = TrialConfig(network="timm/test_resnet", image_size=32, learning_rate=1e-12, init_from=str(path))
    train(config, tmp_path / "trial", epochs=1)
    initial = load_trained(tmp_path / "trial" / "best.ckpt")[0].state_dict()
    for name, tensor in timm_weights.items():
        if tensor.ndim == 4:
            torch.testing.assert_close(initial[name], tensor, rtol=0, atol=1e-6)
    assert len(initial["fc.weight"]) == 10
    with pytest.raises(NetworkError, match="init_from: must hold a network of this package"):
        read_initial(str(path))
    weights = read_initial(str(path), external=True)
    with pytest.raises(NetworkError, match="but got a Residual Attention Network"):
        weights.check_fits(describe_network(TrialConfig(), classes=10, in_channels=1))
    with pytest.raises(NetworkError, match=r"but got .* missing; .* unexpected"):
        weights.check_fits(describe_network(TrialConfig(network=USER_NETWORK), classes=10, in_channels=1))


def test_a_position_table_of_another_size_is_refused(tmp_path: Path) -> None:
    """Only its first axis differs, as in a classifier for another number of classes."""

    def spec_of(image_size: int, classes: int) -> NetworkDescription:
        config = TrialConfig(network="tests.own_networks:placed", image_size=image_size)
        return describe_network(config, classes=classes, in_channels=1)

    path = tmp_path / "placed.pth"
    torch.save(build_described(spec_of(16, 10)).state_dict(), path)
    weights = read_initial(str(path), external=True)
    weights.check_fits(spec_of(16, 4))
    with pytest.raises(NetworkError, match="got table of another shape"):
        weights.check_fits(spec_of(32, 10))


@pytest.mark.parametrize("keys", [("model", "model_ema"), ("module", "model")])
def test_a_file_with_two_networks_is_refused(keys: tuple[str, str], tmp_path: Path) -> None:
    """A teacher and a student have the same tensors, so the choice would be ambiguous."""
    spec = describe_network(TrialConfig(network=USER_NETWORK), classes=10, in_channels=1)
    networks = {key: build_described(spec).state_dict() for key in keys}
    path = tmp_path / "two.pth"
    in_dicts = keys[1] == "model_ema"
    flat_state_dict = {
        f"{key}.{name}": tensor for key, state_dict in networks.items() for name, tensor in state_dict.items()
    }
    torch.save(networks if in_dicts else flat_state_dict, path)
    weights = read_initial(str(path), external=True)
    with pytest.raises(NetworkError, match=r"init_from: must hold one network, but got 2, in mod"):
        weights.check_fits(spec)
    torch.save({keys[0]: networks[keys[0]], "epoch": 3}, path)
    read_initial(str(path), external=True).check_fits(spec)


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Pretrained weights of timm's test_resnet as a local file instead of on the hub."""
    import timm
    from timm.models import _registry as registry

    weights: dict[str, Tensor] = timm.create_model("test_resnet", num_classes=1000).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    hub_config = timm.get_pretrained_cfg("test_resnet")
    assert hub_config is not None
    local_config = dataclasses.replace(
        hub_config,
        file=str(tmp_path / "weights.pth"),
        hf_hub_id=None,
        url="",
        mean=(0.2, 0.3, 0.4),
        std=(0.5, 0.5, 0.5),
        interpolation="bicubic",
    )
    for name in ("test_resnet", "test_resnet.r160_in1k"):
        monkeypatch.setitem(registry._model_pretrained_cfgs, name, local_config)
    return weights


def test_pretrained_weights_use_their_own_preprocessing(
    pretrained: dict[str, Tensor], train: Train, digits: ImageDataset, tmp_path: Path
) -> None:
    config = TrialConfig(network="timm/test_resnet", image_size=32, pretrained=True, learning_rate=1e-12)
    train(config, tmp_path / "trial", epochs=1)
    network, about = load_trained(tmp_path / "trial" / "best.ckpt")
    initial = network.state_dict()
    assert torch.allclose(initial["layer1.0.conv1.weight"], pretrained["layer1.0.conv1.weight"], atol=1e-6)
    # timm sums the weights of the colour channels.
    summed = pretrained["conv1.0.weight"].sum(dim=1, keepdim=True)
    assert torch.allclose(initial["conv1.0.weight"], summed, atol=1e-5)
    assert [*about.mean, *about.std] == pytest.approx([0.3, 0.5])
    assert about.preprocessing.interpolation == "bicubic"
    images_BCHW = torch.from_numpy(digits.val.gather(np.arange(8))[0]).permute(0, 3, 1, 2)
    expected_BCHW = Normalization(about.preprocessing)(images_BCHW)
    torch.testing.assert_close((to_unit(images_BCHW, about.preprocessing) - 0.3) / 0.5, expected_BCHW)
    measured = about.metrics["val_accuracy"]
    accuracy = accuracy_of_predict(tmp_path / "trial" / "best.ckpt", digits, tmp_path / "pictures")
    assert accuracy == pytest.approx(measured)
    random_init = dataclasses.replace(config, pretrained=False)
    train(random_init, tmp_path / "random_init", epochs=1)
    about = load_trained(tmp_path / "random_init" / "best.ckpt")[1]
    assert (about.mean, about.preprocessing.interpolation) == (digits.mean, "bilinear")


def test_an_external_network_reports_that_it_keeps_all_activations(train: Train) -> None:
    messages: list[str] = []
    config = dataclasses.replace(CONFIGS["own"], checkpoint_activations="on")
    train(config, epochs=1, on_message=messages.append)
    assert messages == [
        "keeps all activations, because checkpoint_activations works with Residual Attention Networks only"
    ]


def test_out_of_memory_leads_directly_to_micro_batches(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activation checkpointing is not tried first: it does not apply to external networks."""
    original = TrialModule.training_step

    def step(self: TrialModule, batch: tuple[Tensor, Tensor]) -> Tensor:
        if not tried:
            tried.append(len(batch[0]))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, batch)

    tried: list[int] = []
    messages: list[str] = []
    monkeypatch.setattr(TrialModule, "training_step", step)
    train(CONFIGS["own"], epochs=1, on_message=messages.append)
    assert messages == ["ran out of memory at 16 images; continuing in 2 micro-batches of 8"]


class FakeGraphCapture:
    """A graph_capture whose replays run the function again and copy into the outputs' memory."""

    def __call__(self, run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        outputs = run()

        def replay() -> None:
            for output, new_output in zip(outputs, run(), strict=True):
                output.copy_(new_output)

        return replay, outputs


def test_a_captured_step_handles_unused_parameters_like_an_eager_one() -> None:
    config = TrialConfig(network="tests.own_networks:unused", image_size=16, batch_size=4)
    spec = describe_network(config, classes=10, in_channels=1)
    steps: list[dict[str, Any]] = []
    for graph_capture in (None, FakeGraphCapture()):
        torch.manual_seed(0)
        execution = StepExecution(
            placement=DeviceConfig(device=torch.device("cpu"), precision="fp32"), graph_capture=graph_capture
        )
        module = TrialModule(
            build_described(spec), config, execution, classes=10, epochs=1, steps_per_epoch=10
        )
        optimizer, _ = module.optimizer_and_scheduler()
        batch = (torch.rand(4, 1, 16, 16), torch.arange(4))
        for _ in range(2):
            optimizer.zero_grad()
            loss = module.training_step(batch)
            module.backward(loss)
            optimizer.step()
        steps.append({name: tensor.clone() for name, tensor in module.network.state_dict().items()})
    torch.testing.assert_close(steps[0], steps[1])
    assert not torch.equal(steps[0]["linear.weight"], build_described(spec).state_dict()["linear.weight"])


def test_the_memory_key_differs_between_networks() -> None:
    placement = resolve_device("cpu", precision="fp32")
    keys = {
        OomHistory.of(config, describe_network(config, classes=10, in_channels=1), placement, None).key
        for config in (*CONFIGS.values(), TrialConfig(image_size=32))
    }
    assert len(keys) == 3


def test_a_parametrized_weight_trains_in_bfloat16_in_a_captured_step() -> None:
    """The weight is cast by autocast: it is no parameter that a cast copy could replace."""
    config = TrialConfig(network="tests.own_networks:normalised", image_size=16, batch_size=4)
    spec = describe_network(config, classes=10, in_channels=1)
    execution = StepExecution(
        placement=DeviceConfig(device=torch.device("cpu"), precision="bf16"), graph_capture=FakeGraphCapture()
    )
    module = TrialModule(build_described(spec), config, execution, classes=10, epochs=1, steps_per_epoch=10)
    module.backward(module.training_step((torch.rand(4, 1, 16, 16), torch.arange(4))))
    assert all(parameter.grad is not None for parameter in module.network.parameters())


@pytest.mark.nightly
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.usefixtures("cpp_compiler")
def test_an_external_network_is_compiled(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config = dataclasses.replace(CONFIGS["own"], ema_decay=0.0)
    eager = train(config, epochs=1)
    before = counters["stats"]["unique_graphs"]
    compiled = train(dataclasses.replace(config, compile="on"), epochs=1)
    assert counters["stats"]["unique_graphs"] > before
    # Dropout masks are drawn in another order.
    assert compiled[0].metrics["train_loss"] == pytest.approx(eager[0].metrics["train_loss"], rel=0.1)

"""Initial weights: accepted files, the classifier, and the messages about refused files."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.training.conftest import PLAIN_CONFIG, Train
from tune_rescon.config import TrialConfig
from tune_rescon.data import ImageDataset
from tune_rescon.errors import NetworkError, StorageError
from tune_rescon.inference import export_model
from tune_rescon.models import build_from_spec, build_network, resolve_network
from tune_rescon.models.rescon import rescon_names
from tune_rescon.training import EpochReport, TrialProcess, load_trained, train_trial
from tune_rescon.training.initial_weights import ResidualAttentionWeights, read_initial
from tune_rescon.training.weights import load_exported

pytestmark = pytest.mark.torch

HEAD = ("classifier.weight", "classifier.bias")


def initialised(
    source: Path,
    config: TrialConfig,
    *,
    classes: int,
    in_channels: int = 3,
    names: tuple[str, ...] = ("ant", "bee", "cat"),
) -> dict[str, Tensor]:
    """The state dict of a new network after the initial weights are loaded."""
    torch.manual_seed(5)
    spec = resolve_network(config, classes=classes, in_channels=in_channels)
    network = build_from_spec(spec)
    read_initial(str(source)).load_into(network, spec, names)
    return network.state_dict()


def equal_names(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name in first if torch.equal(first[name], second[name])}


@pytest.fixture(scope="module")
def rescon(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A Lightning checkpoint of ResCon with 7 classes, and its weights by this package's names."""
    own = build_network("rescon_attention92_32", num_classes=7).state_dict()
    spec = resolve_network(TrialConfig(preset="rescon_attention92_32"), classes=7, in_channels=3)
    theirs = {f"model.{name}": own[our_name] for name, our_name in rescon_names(spec).items()}
    path = tmp_path_factory.mktemp("rescon") / "rescon.ckpt"
    torch.save({"epoch": 3, "state_dict": theirs, "hyper_parameters": {"lr": 0.1}}, path)
    return path, own


@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("form", ["best.ckpt", "a.safetensors"])
def test_own_weights_load_at_another_size_and_with_other_classes(
    form: str, classes: int, checkpoint: Path, tmp_path: Path
) -> None:
    network, about = load_trained(checkpoint)
    source = checkpoint
    if form == "a.safetensors":
        source = tmp_path / form
        export_model(network, about, form="safetensors", output=source)
    larger_config = dataclasses.replace(about.config, image_size=20, drop_path=0.1)
    loaded = initialised(source, larger_config, classes=classes)
    if classes == 3:
        assert equal_names(loaded, network.state_dict()) == loaded.keys()
    else:
        assert equal_names(loaded, network.state_dict()) == loaded.keys() - set(HEAD)
        assert loaded["classifier.weight"].shape[0] == 5
        assert torch.equal(loaded["classifier.bias"], torch.zeros(5)), "a new classifier has zero biases"


def test_the_classifier_of_other_classes_is_not_used(checkpoint: Path) -> None:
    """A file with as many classes, of other names, gave its classifier."""
    network, about = load_trained(checkpoint)
    for names, what in (
        (("ant", "bee", "dog"), "other classes"),
        (("bee", "ant", "cat"), "the classes in another order"),
    ):
        loaded = initialised(checkpoint, about.config, classes=3, names=names)
        assert equal_names(loaded, network.state_dict()) == loaded.keys() - {HEAD[0]}, "both biases are 0"
        message = read_initial(str(checkpoint)).classifier_message(about.spec, names)
        assert message == (
            f"init_from {checkpoint} has {what} (ant, bee, cat), so the classifier is drawn at random"
        )
    assert read_initial(str(checkpoint)).classifier_message(about.spec, about.class_names) is None


def test_a_file_that_does_not_record_its_classes_is_named(rescon: tuple[Path, dict[str, Tensor]]) -> None:
    weights, names = read_initial(str(rescon[0])), tuple("abcdefghij")
    for classes in (7, 10):
        config = TrialConfig(preset="rescon_attention92_32")
        spec = resolve_network(config, classes=classes, in_channels=3)
        message = weights.classifier_message(spec, names[:classes])
        expected = (
            f"init_from {rescon[0]} does not record its classes; its classifier is used, as it has as many"
        )
        assert message == (expected if classes == 7 else None)


@pytest.mark.parametrize("classes", [7, 10])
def test_rescon_weights_load_for_other_classes(classes: int, rescon: tuple[Path, dict[str, Tensor]]) -> None:
    path, own = rescon
    loaded = initialised(path, TrialConfig(preset="rescon_attention92_32"), classes=classes)
    assert equal_names(loaded, own) == (loaded.keys() if classes == 7 else loaded.keys() - set(HEAD))


def test_a_file_of_an_older_torch_loads(rescon: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path, own = rescon
    older = tmp_path / "older.pth"
    torch.save(torch.load(path), older, _use_new_zipfile_serialization=False)
    loaded = initialised(older, TrialConfig(preset="rescon_attention92_32"), classes=7)
    assert equal_names(loaded, own) == loaded.keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"layout": "rescon", "depth": 92},
            "added_reference False and not True. Choose `preset: rescon_attention92_32`.",
        ),
        ({"preset": "rescon_attention92_32", "attention": "channel"}, "attention channel and not mixed"),
        ({"preset": "rescon_attention92_32", "width": 0.5}, "channels of stages [64, 128, 256] and not [128"),
        ({"depth": 56}, "and 5 more"),
    ],
)
def test_weights_of_another_network_are_refused_with_the_preset_to_choose(
    fields: dict[str, Any], message: str, rescon: tuple[Path, dict[str, Tensor]]
) -> None:
    with pytest.raises(NetworkError) as error:
        initialised(rescon[0], TrialConfig(**fields), classes=10)
    assert message in str(error.value)
    assert "Choose `preset: rescon_attention92_32`." in str(error.value)


def test_own_weights_of_another_network_are_refused_with_its_fields(checkpoint: Path) -> None:
    with pytest.raises(NetworkError, match=r"Choose `layout: cifar`, `depth: 56`, `width: 0\.125`"):
        initialised(checkpoint, TrialConfig(layout="cifar", depth=92, image_size=16), classes=3)


def test_weights_for_other_input_channels_are_refused(checkpoint: Path) -> None:
    config = load_trained(checkpoint)[1].config
    with pytest.raises(NetworkError, match=r"in_channels 1 and not 3\. They were trained on images of other"):
        initialised(checkpoint, config, classes=3, in_channels=1)


class CodeInPickle:
    """Creates a directory when its pickle is loaded."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self._folder,)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_file_is_not_run(archive: bool, tmp_path: Path) -> None:
    malicious, created = tmp_path / "malicious.ckpt", tmp_path / "created"
    torch.save(
        {"state_dict": {"a": CodeInPickle(created)}}, malicious, _use_new_zipfile_serialization=archive
    )
    torch.load(malicious, weights_only=False)
    assert created.is_dir(), "the code runs in an unsafe load"
    created.rmdir()
    with pytest.raises(StorageError, match="code in it is never run"):
        read_initial(str(malicious))
    malicious.write_bytes(pickle.dumps(CodeInPickle(created)))
    with pytest.raises(StorageError, match="code in it is never run"):
        read_initial(str(malicious))
    assert not created.exists()


def damaged_copy(source: Path, folder: Path) -> Path:
    data = bytearray(source.read_bytes())
    weights = load_trained(source)[0].state_dict()["classifier.weight"].numpy().tobytes()
    data[data.index(weights) + 5] ^= 1
    path = folder / "damaged.ckpt"
    path.write_bytes(data)
    return path


def test_invalid_weight_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "truncated.ckpt"
    truncated.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    foreign = tmp_path / "foreign.ckpt"
    torch.save(nn.Linear(2, 2).state_dict(), foreign)
    tensor = tmp_path / "tensor.ckpt"
    torch.save(torch.ones(3), tensor)
    text_file = tmp_path / "text.safetensors"
    text_file.write_text("no tensors")
    for path, message in {
        tmp_path / "nowhere.ckpt": "init_from: must be a file that exists",
        tmp_path: "init_from: must be a file that exists",
        truncated: "init_from: a checkpoint must be a whole file that torch wrote",
        damaged_copy(checkpoint, tmp_path): "damaged",
        foreign: "init_from: must hold a network of this package, or of ResCon or the port it follows",
        tensor: "init_from: must hold a network of this package",
        text_file: r"init_from: a \.safetensors file must be one that `export` has written",
    }.items():
        with pytest.raises((StorageError, NetworkError), match=message):
            read_initial(str(path))


def test_foreign_safetensors_load_only_as_weights_of_a_known_network(
    checkpoint: Path, rescon: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    rescon_weights = torch.load(rescon[0], weights_only=True)["state_dict"]
    save_file(rescon_weights, file)
    family_weights = read_initial(str(file))
    assert isinstance(family_weights, ResidualAttentionWeights)
    assert family_weights.network_fields == {"preset": "rescon_attention92_32"}
    for metadata in (None, {"format": "pt"}):
        save_file({"a.weight": torch.ones(1)}, file, metadata=metadata)
        with pytest.raises(NetworkError, match=r"^init_from: must hold .*unexpected a\.weight"):
            read_initial(str(file))
        with pytest.raises(StorageError, match=r"MODEL: a .*1 tensor: a\.weight, .*metadata: "):
            load_exported(file, where="MODEL")
    for metadata_value in (
        "[]",
        "{}",
        "null",
        "{",
        '{"spec": 3, "config": {}}',
        '{"spec": {}, "config": {}}',
    ):
        save_file({"a.weight": torch.ones(1)}, file, metadata={"tune_rescon": metadata_value})
        with pytest.raises(StorageError, match="whose `tune_rescon` does not describe these tensors: "):
            load_exported(file, where="MODEL")
    about = json.dumps(load_trained(checkpoint)[1].to_dict())
    save_file({"a.weight": torch.ones(1)}, file, metadata={"tune_rescon": about})
    with pytest.raises(StorageError, match="does not describe these tensors: Error"):
        load_exported(file, where="MODEL")


def test_a_trial_starts_from_initial_weights_and_resumes_from_its_own(
    train: Train, digits: ImageDataset, tmp_path: Path
) -> None:
    train(dataclasses.replace(PLAIN_CONFIG, learning_rate=0.5), tmp_path / "first", epochs=30)
    source = tmp_path / "winner.ckpt"
    (tmp_path / "first" / "best.ckpt").rename(source)
    config = dataclasses.replace(PLAIN_CONFIG, init_from=str(source), learning_rate=1e-6)
    random_init = train(dataclasses.replace(config, init_from=None), epochs=1)
    reports: list[EpochReport] = []

    def stop(report: EpochReport) -> None:
        reports.append(report)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, folder=tmp_path / "second", epochs=2, on_epoch=stop)
    (first_report,) = reports
    assert first_report.metrics["train_loss"] < random_init[0].metrics["train_loss"] - 0.1
    source.unlink()
    (resumed_report,) = train(config, folder=tmp_path / "second", epochs=2)
    assert resumed_report.epoch == 2
    with pytest.raises(StorageError, match="init_from: must be a file that exists"):
        train_trial(
            config,
            digits,
            epochs=1,
            seed=0,
            checkpoint_dir=None,
            on_epoch=lambda _: None,
            process=TrialProcess(device="cpu"),
        )

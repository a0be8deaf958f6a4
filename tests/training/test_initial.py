"""Weights to begin with: whose they may be, what becomes of the classifier, and what is refused in words."""

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

from tests.training.conftest import PLAIN
from tune_rescon.config import TrialConfig
from tune_rescon.data import ImageDataset
from tune_rescon.errors import NetworkError, StorageError
from tune_rescon.inference import export_model
from tune_rescon.models import build_from_spec, build_network, resolve_network
from tune_rescon.models.rescon import rescon_names
from tune_rescon.training import EpochReport, TrialProcess, load_trained, train_trial
from tune_rescon.training.initial_weights import FamilyWeights, read_initial
from tune_rescon.training.weights import load_exported

pytestmark = pytest.mark.torch

HEAD = ("classifier.weight", "classifier.bias")

Run = Callable[..., list[EpochReport]]


def begun(source: Path, config: TrialConfig, *, classes: int, in_channels: int = 3) -> dict[str, Tensor]:
    """The weights of a new network that begins with a file's."""
    torch.manual_seed(5)
    spec = resolve_network(config, classes=classes, in_channels=in_channels)
    network = build_from_spec(spec)
    read_initial(str(source)).load_into(network, spec)
    return network.state_dict()


def equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> set[str]:
    assert some.keys() == others.keys()
    return {name for name in some if torch.equal(some[name], others[name])}


@pytest.fixture(scope="module")
def rescon(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint as ResCon's Lightning writes it, of 7 classes, and our names of its weights."""
    own = build_network("rescon_attention92_32", num_classes=7).state_dict()
    spec = resolve_network(TrialConfig(preset="rescon_attention92_32"), classes=7, in_channels=3)
    theirs = {f"model.{name}": own[ours] for name, ours in rescon_names(spec).items()}
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
    larger = dataclasses.replace(about.config, image_size=20, drop_path=0.1)
    found = begun(source, larger, classes=classes)
    if classes == 3:
        assert equal(found, network.state_dict()) == found.keys()
    else:
        assert equal(found, network.state_dict()) == found.keys() - set(HEAD)
        assert found["classifier.weight"].shape[0] == 5
        assert torch.equal(found["classifier.bias"], torch.zeros(5)), "the head is as it was drawn"


@pytest.mark.parametrize("classes", [7, 10])
def test_rescon_weights_load_for_other_classes(classes: int, rescon: tuple[Path, dict[str, Tensor]]) -> None:
    path, own = rescon
    found = begun(path, TrialConfig(preset="rescon_attention92_32"), classes=classes)
    assert equal(found, own) == (found.keys() if classes == 7 else found.keys() - set(HEAD))


def test_a_file_of_an_older_torch_loads(rescon: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path, own = rescon
    older = tmp_path / "older.pth"
    torch.save(torch.load(path), older, _use_new_zipfile_serialization=False)
    found = begun(older, TrialConfig(preset="rescon_attention92_32"), classes=7)
    assert equal(found, own) == found.keys()


@pytest.mark.parametrize(
    ("fields", "said"),
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
    fields: dict[str, Any], said: str, rescon: tuple[Path, dict[str, Tensor]]
) -> None:
    with pytest.raises(NetworkError) as caught:
        begun(rescon[0], TrialConfig(**fields), classes=10)
    assert said in str(caught.value)
    assert "Choose `preset: rescon_attention92_32`." in str(caught.value)


def test_own_weights_of_another_network_are_refused_with_its_fields(checkpoint: Path) -> None:
    with pytest.raises(NetworkError, match=r"Choose `layout: cifar`, `depth: 56`, `width: 0\.125`"):
        begun(checkpoint, TrialConfig(layout="cifar", depth=92, image_size=16), classes=3)


def test_weights_for_other_input_channels_are_refused(checkpoint: Path) -> None:
    config = load_trained(checkpoint)[1].config
    with pytest.raises(NetworkError, match=r"in_channels 1 and not 3\. They were trained on images of other"):
        begun(checkpoint, config, classes=3, in_channels=1)


class Code:
    """What runs when its pickle is loaded: it makes a directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self._folder,)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_file_is_not_run(archive: bool, tmp_path: Path) -> None:
    evil, ran = tmp_path / "evil.ckpt", tmp_path / "ran"
    torch.save({"state_dict": {"a": Code(ran)}}, evil, _use_new_zipfile_serialization=archive)
    torch.load(evil, weights_only=False)
    assert ran.is_dir(), "it does run, where it is loaded"
    ran.rmdir()
    with pytest.raises(StorageError, match="code in it is never run"):
        read_initial(str(evil))
    evil.write_bytes(pickle.dumps(Code(ran)))
    with pytest.raises(StorageError, match="code in it is never run"):
        read_initial(str(evil))
    assert not ran.exists()


def damaged(whole: Path, folder: Path) -> Path:
    data = bytearray(whole.read_bytes())
    weights = load_trained(whole)[0].state_dict()["classifier.weight"].numpy().tobytes()
    data[data.index(weights) + 5] ^= 1
    path = folder / "damaged.ckpt"
    path.write_bytes(data)
    return path


def test_invalid_weight_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.ckpt"
    half.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    foreign = tmp_path / "foreign.ckpt"
    torch.save(nn.Linear(2, 2).state_dict(), foreign)
    tensor = tmp_path / "tensor.ckpt"
    torch.save(torch.ones(3), tensor)
    words = tmp_path / "words.safetensors"
    words.write_text("no tensors")
    for path, said in {
        tmp_path / "nowhere.ckpt": "init_from: must be a file that exists",
        tmp_path: "init_from: must be a file that exists",
        half: "init_from: a checkpoint must be a whole file that torch wrote",
        damaged(checkpoint, tmp_path): "damaged",
        foreign: "init_from: must hold a network of this package, or of ResCon or the port it follows",
        tensor: "init_from: must hold a network of this package",
        words: r"init_from: a \.safetensors file must be one that `export` has written",
    }.items():
        with pytest.raises((StorageError, NetworkError), match=said):
            read_initial(str(path))


def test_foreign_safetensors_load_only_as_weights_of_a_known_network(
    checkpoint: Path, rescon: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    theirs = torch.load(rescon[0], weights_only=True)["state_dict"]
    save_file(theirs, file)
    known = read_initial(str(file))
    assert isinstance(known, FamilyWeights)
    assert known.network_fields == {"preset": "rescon_attention92_32"}
    for metadata in (None, {"format": "pt"}):
        save_file({"a.weight": torch.ones(1)}, file, metadata=metadata)
        with pytest.raises(NetworkError, match=r"^init_from: must hold .*unexpected a\.weight"):
            read_initial(str(file))
        with pytest.raises(StorageError, match=r"MODEL: a .*1 tensor: a\.weight, .*metadata: "):
            load_exported(file, where="MODEL")
    for ours in ("[]", "{}", "null", "{", '{"spec": 3, "config": {}}', '{"spec": {}, "config": {}}'):
        save_file({"a.weight": torch.ones(1)}, file, metadata={"tune_rescon": ours})
        with pytest.raises(StorageError, match="whose `tune_rescon` does not describe these tensors: "):
            load_exported(file, where="MODEL")
    about = json.dumps(load_trained(checkpoint)[1].to_dict())
    save_file({"a.weight": torch.ones(1)}, file, metadata={"tune_rescon": about})
    with pytest.raises(StorageError, match="does not describe these tensors: Error"):
        load_exported(file, where="MODEL")


def test_a_trial_starts_from_initial_weights_and_resumes_from_its_own(
    train: Run, digits: ImageDataset, tmp_path: Path
) -> None:
    train(PLAIN, tmp_path / "first", epochs=8)
    source = tmp_path / "winner.ckpt"
    (tmp_path / "first" / "best.ckpt").rename(source)
    config = dataclasses.replace(PLAIN, init_from=str(source), learning_rate=1e-6)
    drawn = train(dataclasses.replace(config, init_from=None), epochs=1)
    reports: list[EpochReport] = []

    def stop(report: EpochReport) -> None:
        reports.append(report)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, folder=tmp_path / "second", epochs=2, on_epoch=stop)
    (begun_so,) = reports
    assert begun_so.metrics["train_loss"] < drawn[0].metrics["train_loss"] - 0.1
    source.unlink()
    (gone_on,) = train(config, folder=tmp_path / "second", epochs=2)
    assert gone_on.epoch == 2
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

"""predict and export on a checkpoint: equal probabilities in every format, and errors for bad input."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import importlib
import io
import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.models.one_module import one_module_spec
from tune_rescon.config import TrialConfig
from tune_rescon.data import decode_image
from tune_rescon.errors import StorageError, UserError
from tune_rescon.export import main as export
from tune_rescon.inference.model import changed_network_message, check_checkpoint
from tune_rescon.models import ExternalSpec, build_described, build_from_spec
from tune_rescon.predict import main as predict
from tune_rescon.spaces import dump_space, load_space
from tune_rescon.storage import RemoteError
from tune_rescon.testing import SimulatedSearch, Simulation, SyntheticCurve
from tune_rescon.training import load_trained
from tune_rescon.training.initial_weights import read_initial
from tune_rescon.training.weights import Classifier, load_exported, trained_values
from tune_rescon.tuning.input_digests import function_digest

pytestmark = pytest.mark.torch


@functools.cache
def classifier(checkpoint: Path) -> Classifier:
    return Classifier(*load_trained(checkpoint)).eval()


def expected_probabilities(checkpoint: Path, picture: Path, *, mirrored: bool = False) -> torch.Tensor:
    image = torch.tensor(decode_image(picture.read_bytes(), 16))
    pixels = image.permute(2, 0, 1)[None].float() / 255
    pixels = pixels.flip(-1) if mirrored else pixels
    with torch.inference_mode():
        probabilities: torch.Tensor = classifier(checkpoint)(pixels)[0]
    return probabilities


def test_json_has_one_line_per_image(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict([str(checkpoint), str(pictures), "--json", "--batch-size", "2", "--top", "3"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["0.png", "1.png", "2.png", "3.png", "grey.jpg"]
    for line in lines:
        expected = expected_probabilities(checkpoint, Path(line["path"]))
        assert line["class"] == ("ant", "bee", "cat")[int(expected.argmax())]
        assert line["probability"] == pytest.approx(float(expected.max()), rel=1e-4)
        assert line["probability"] < 0.999, "a saturated network would hide differences"
        assert sum(top["probability"] for top in line["top"]) == pytest.approx(1, abs=1e-5)


def test_flip_averages_the_image_and_its_mirror_image(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict([str(checkpoint), str(pictures), "--json", "--tta", "flip", "--batch-size", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 5
    difference = 0.0
    for line in lines:
        original, flipped = (
            expected_probabilities(checkpoint, Path(line["path"]), mirrored=mirrored)
            for mirrored in (False, True)
        )
        expected = (original + flipped) / 2
        assert line["tta"] == "flip"
        assert line["class"] == ("ant", "bee", "cat")[int(expected.argmax())]
        assert line["probability"] == pytest.approx(float(expected.max()), rel=1e-4)
        difference = max(difference, float((original - flipped).abs().max()))
    assert difference > 0.01, "the mirror images must change the result"


def test_csv_and_table_output(checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict([str(checkpoint), str(pictures / "0.png"), str(pictures / "0.png"), "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert set(row) == {"path", "class", "probability"}
    assert predict([str(checkpoint), str(pictures)]) == 0
    assert "probability" in capsys.readouterr().out


def test_csv_text_is_never_a_formula(
    checkpoint: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pictures)
    Path("0.png").rename("=1+1.png")
    network, about = load_trained(checkpoint)
    named = dataclasses.replace(about, class_names=tuple(f"-{name}" for name in about.class_names))
    torch.save(trained_values(network, named), pictures / "named.ckpt")
    assert predict(["named.ckpt", "=1+1.png", "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["path"] == "'=1+1.png"
    assert row["class"].startswith("'-")
    assert 0 < float(row["probability"]) <= 1


def test_unreadable_pictures_are_reported_and_the_others_classified(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    cut = pictures / "cut.bmp"
    Image.new("RGB", (64, 64), "white").save(cut)
    size = cut.stat().st_size
    os.truncate(cut, 8192)
    os.truncate(cut, size)
    assert predict([str(checkpoint), str(pictures), "--json"]) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 6
    assert "broken.png: not a picture" in captured.err
    assert f"the file of 1 picture ends in zeros, as after an interrupted copy ({cut})" in captured.err


def test_masks_are_drawn(one_module_checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    assert predict([str(one_module_checkpoint), str(pictures), "--json", "--masks", str(folder)]) == 0
    page = (folder / "index.html").read_text()
    drawn = sorted(folder.glob("*.png"))
    assert len(drawn) == 5
    assert all(f'src="{drawing.name}"' in page for drawing in drawn)
    with Image.open(drawn[0]) as image:
        assert image.size[0] > 400
        assert len(np.unique(np.asarray(image))) > 50


@pytest.mark.parametrize("form", ["--json", "--csv", "--top=2"])
def test_nan_outputs_give_no_prediction(
    form: str, checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise the first class would be printed, with exit code 0."""
    network, about = load_trained(checkpoint)
    for parameter in network.parameters():
        parameter.data.fill_(torch.nan)
    torch.save(trained_values(network, about), tmp_path / "lost.ckpt")
    masks = tmp_path / "masks"
    assert predict([str(tmp_path / "lost.ckpt"), str(pictures), form, "--masks", str(masks)]) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == (0 if form == "--json" else 1)
    assert captured.err.count("no prediction (the network returns nan instead of probabilities)") == 5
    assert not list(masks.iterdir())


@pytest.mark.parametrize(
    ("form", "name"), [("safetensors", "a.safetensors"), ("torch-export", "a.pt2"), ("onnx", "a.onnx")]
)
def test_every_exported_format_gives_the_same_probabilities(
    form: str, name: str, one_module_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / name
    assert export([str(one_module_checkpoint), "--format", form, "--output", str(output)]) == 0
    stdout = capsys.readouterr().out
    assert "3 classes, pixels 3 x 16 x 16; loaded again, its probabilities differ by at most" in stdout
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("form", ["safetensors", "torch-export", "timm"])
def test_a_full_disk_is_reported_by_export_and_leaves_no_file(
    form: str,
    one_module_checkpoint: Path,
    tmp_path: Path,
    limit_file_size: Callable[[int], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "a"
    with limit_file_size(16_384):
        assert export([str(one_module_checkpoint), "--format", form, "--output", str(output)]) == 2
    assert f"must be a file that can be written, but got {output} (File too large)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_exported_safetensors_file_can_be_used_by_predict(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.safetensors"
    assert export([str(checkpoint), "--format", "safetensors", "--output", str(output)]) == 0
    capsys.readouterr()
    assert predict([str(output), str(pictures), "--json"]) == 0
    predictions = capsys.readouterr().out
    assert predict([str(checkpoint), str(pictures), "--json"]) == 0
    assert capsys.readouterr().out == predictions


def test_a_network_whose_layers_share_weights_is_exported(checkpoint: Path, tmp_path: Path) -> None:
    """The library refuses tensors that share memory; its format holds every network nevertheless."""
    _, family = load_trained(checkpoint)
    spec = ExternalSpec(
        network="tests.own_networks:tied", classes=3, in_channels=3, image_size=16, drop_path=0.0
    )
    about = dataclasses.replace(family, spec=spec)
    network = build_described(spec).eval()
    torch.save(trained_values(network, about), tmp_path / "best.ckpt")
    output = tmp_path / "a.safetensors"
    assert export([str(tmp_path / "best.ckpt"), "--format", "safetensors", "--output", str(output)]) == 0
    again, known = load_exported(output, where="MODEL")
    assert known == about
    assert again.first is again.second
    pixels_BCHW = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(pixels_BCHW), network(pixels_BCHW))


class Payload:
    """An object whose unpickling runs code: it creates a directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self._folder,)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nosuch", "nosuch"),
        ("no/such.ckpt", "MODEL must be a search's name, models:/NAME@ALIAS, or a file that exists"),
        ("models:/nosuch@champion", "models:/nosuch@champion"),
        ("models:/nosuch", "must be models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_an_unknown_model_is_reported(
    model: str, message: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict([model, str(pictures), "--storage", str(tmp_path / "runs")]) == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert "Traceback" not in stderr
    # Asking for a model creates no database.
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("variable", ["TUNE_RESCON_TRACKING_URI", "MLFLOW_TRACKING_URI"])
def test_a_registered_model_is_looked_up_in_the_mlflow_that_a_variable_names(
    variable: str,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    monkeypatch.setenv(variable, f"sqlite:///{tmp_path}/named.db")
    assert predict(["models:/s@champion", str(pictures), "--storage", str(tmp_path)]) == 2
    expected = f"MODEL: MLflow's database must exist, but got no {tmp_path}/named.db for models:/s@champion."
    assert expected in capsys.readouterr().err


def test_a_search_name_with_dots_is_not_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Searches of published rows have names such as reproduce-attention56-nal-0.1x0.05."""
    output = ["--format", "safetensors", "--output", str(tmp_path / "x.safetensors")]
    assert export(["pets-v1.2", *output, "--storage", str(tmp_path / "runs")]) == 2
    assert "no search named 'pets-v1.2'" in capsys.readouterr().err
    assert export(["pets.ckpt", *output, "--storage", str(tmp_path / "runs")]) == 2
    assert "or a file that exists" in capsys.readouterr().err


def test_a_search_is_read_from_its_shared_study(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "s").mkdir(parents=True)
    (tmp_path / "runs" / "s" / "space.yaml").write_text(dump_space(load_space("digits")))
    where = ["--storage", str(tmp_path / "runs"), "--study", f"sqlite:///{tmp_path / 'team.db'}"]
    assert predict(["s", str(pictures), *where]) == 2
    assert export(["s", "--format", "onnx", "--output", str(tmp_path / "x.onnx"), *where]) == 2
    assert capsys.readouterr().err.count(f"{tmp_path / 'team.db'}, which does not exist") == 2


def test_a_checkpoint_of_another_search_is_refused(checkpoint: Path) -> None:
    """A copied storage may mix the checkpoints of two searches with the same name."""
    search = SimulatedSearch(load_space("digits", ["budget.trials=4", "sampler.type=random"]))
    Simulation(lambda _: SyntheticCurve(limit=0.9)).drive(search.policy())
    result = dataclasses.replace(search.result(Path("runs/s")), images={"digits": "0123"})
    best = result.best
    assert best is not None
    assert best.origin is not None
    config = best.config(result.space)
    assert config is not None
    _, about = load_trained(checkpoint)
    matching = dataclasses.replace(about, config=config, seed=best.origin.seed, dataset="0123")
    check_checkpoint(matching, result, best)
    url = "https://ann:s3cret@host/a.ckpt"
    origin = dataclasses.replace(best.origin, config={**best.origin.config, "init_from": url})
    # A file of an earlier version has the first URL.
    for known in (url, "https://ann:***@host/a.ckpt"):
        from_url = dataclasses.replace(matching, config=dataclasses.replace(config, init_from=known))
        check_checkpoint(from_url, result, dataclasses.replace(best, origin=origin))
    for other, what in (
        (dataclasses.replace(matching, config=about.config), "configuration"),
        (dataclasses.replace(matching, seed=matching.seed + 1), "seed"),
        (dataclasses.replace(matching, dataset="4567"), "images"),
    ):
        with pytest.raises(StorageError, match=f"of a training with another {what}"):
            check_checkpoint(other, result, best)


def test_changed_code_of_a_custom_network_is_reported(checkpoint: Path) -> None:
    """The weights load, because the tensors are the same, but the predictions differ."""
    search = SimulatedSearch(load_space("digits", ["budget.trials=4", "sampler.type=random"]))
    result, name = search.result(Path("runs/s")), "tests.own_networks:small"
    _, family = load_trained(checkpoint)
    spec = ExternalSpec(network=name, classes=2, in_channels=3, image_size=16, drop_path=0.0)
    about = dataclasses.replace(family, spec=spec)
    for code in ({}, {name: function_digest(name) or ""}, {"tests.own_networks:reading": "0123"}):
        assert changed_network_message(about, dataclasses.replace(result, code=code)) is None
    changed = dataclasses.replace(result, code={name: "0123"})
    assert changed_network_message(family, changed) is None
    message = changed_network_message(about, changed)
    assert message is not None
    assert message.startswith(f"The code of {name} has changed since {result.name}.")


def untrusted_file(kind: str, folder: Path) -> Path:
    """Write a file that is not a trained network. If its code runs, it creates ``ran`` beside the file."""
    path = folder / "foreign.ckpt"
    code = Payload(folder / "ran")
    lightning = {"epoch": 1, "pytorch-lightning_version": "2.6.6", "state_dict": {"a": torch.ones(3)}}
    values: dict[str, Any] = {
        "code": {"format": 1, "weights": code},
        "a class": {**lightning, "hyper_parameters": argparse.Namespace(lr=0.1)},
        "a whole module": torch.nn.Linear(2, 2),
        "another project's": {**lightning, "hyper_parameters": {"lr": 0.1}},
        "a list": [1],
        "a tensor": torch.ones(3),
        "no description": {"format": 1},
        "a description of nothing": {"format": 1, "about": 3, "weights": {}},
        "an empty description": {"format": 1, "about": {}, "weights": {}},
        "half a description": {"format": 1, "about": {"spec": {}, "config": {}}, "weights": {}},
    }
    texts = {"a text": b"hello world\n", "nothing": b"", "a pickle": pickle.dumps(code)}
    if kind in values:
        torch.save(values[kind], path)
    elif kind in texts:
        path.write_bytes(texts[kind])
    elif kind == "code, as before torch 1.6":
        torch.save(values["code"], path, _use_new_zipfile_serialization=False)
    elif kind == "half a file":
        torch.save({"format": 1, "weights": torch.ones(1000)}, path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "safetensors":
        save_file({"a": torch.ones(1)}, path := folder / "foreign.safetensors")
    elif kind == "an exported program":
        program = torch.export.export(torch.nn.ReLU(), (torch.ones(1),))
        torch.export.save(program, original := folder / "original.pt2")
        torch.save(((code,), {}), inputs := io.BytesIO())
        with zipfile.ZipFile(original) as archive, zipfile.ZipFile(path, "w") as tampered:
            for name in archive.namelist():
                is_code = name.endswith("sample_inputs/model.pt")
                tampered.writestr(name, inputs.getvalue() if is_code else archive.read(name))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            # TorchScript, which torch deprecates, has this member.
            archive.writestr("a/constants.pkl" if kind == "a script" else "a/b", "c")
            archive.writestr("a/data.pkl", "c")
            archive.writestr("a/version", "3")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    {
        "code": "holds an object of posix.mkdir",
        "code, as before torch 1.6": "holds an object of posix.mkdir",
        "a class": "holds an object of argparse.Namespace",
        "a whole module": "holds an object of torch.nn.modules.linear.Linear",
        "another project's": "must have format 1, but got None",
        "a list": "which holds a list",
        "a tensor": "which holds a Tensor",
        "no description": "it has no 'about'",
        "a description of nothing": "does not describe its weights",
        "an empty description": "it has no 'spec'",
        "half a description": "a stored NetworkSpec must have",
        "a text": "damaged or of another kind",
        "nothing": "which is empty",
        "a pickle": "damaged or of another kind",
        "half a file": "damaged or of another kind",
        "safetensors": "must be one that `export` has written",
        "an exported program": "which is an exported program",
        "a script": "which is a TorchScript program",
        "a zip": "damaged or of another kind",
    }.items(),
)
def test_an_untrusted_file_is_refused_without_running_its_code(
    kind: str, message: str, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = untrusted_file(kind, tmp_path)
    assert predict([str(path), str(pictures)]) == 2
    stderr = capfd.readouterr().err
    assert message in stderr
    assert export([str(path), "--format", "safetensors", "--output", str(tmp_path / "a")]) == 2
    with pytest.raises(UserError) as caught:
        read_initial(str(path))
    for text in (stderr, capfd.readouterr().err, str(caught.value)):
        assert path.name in text
        # torch's message would advise the user to run the code in the file.
        assert not re.search(r"weights_only|torch\.load|safe_globals|Traceback|Warning", text), text
    assert not (tmp_path / "ran").exists()


def test_loading_an_untrusted_file_with_plain_torch_runs_its_code(tmp_path: Path) -> None:
    for kind in ("code", "code, as before torch 1.6"):
        torch.load(untrusted_file(kind, tmp_path), weights_only=False)
        (tmp_path / "ran").rmdir()
    # SECURITY.md says for this reason that an exported program is trusted like code. This fails once torch
    # no longer runs the code.
    with suppress(Exception):  # the result of the code is not a valid input of the program
        torch.export.load(untrusted_file("an exported program", tmp_path))
    assert (tmp_path / "ran").is_dir()


def test_an_unknown_format_is_refused(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export([str(checkpoint), "--format", "tflite", "--output", "a"]) == 2
    assert "format: unknown format 'tflite'" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_refused_before_the_export(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = MagicMock()
    monkeypatch.setattr("tune_rescon.inference.export.FORMATS", {"onnx": write})
    assert export([str(checkpoint), "--format", "onnx", "--output", "no/such/folder/a.onnx"]) == 2
    assert "--output: must be a file that can be written" in capsys.readouterr().err
    write.assert_not_called()


def test_saved_model_supports_every_operation_of_the_networks() -> None:
    """Checked without TensorFlow, which `test_saved_model` needs."""
    name = "tune_rescon.inference.saved_model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorflow", MagicMock())
        patch.delitem(sys.modules, name, raising=False)
        known = importlib.import_module(name).OPERATIONS
        patch.delitem(sys.modules, name)
    for stem_channels, config in (
        # Strided projections of both types.
        (8, TrialConfig(layout="cifar", depth=56, width=0.125, image_size=18)),
        (16, TrialConfig(layout="cifar", depth=56, width=0.25, image_size=17, attention="channel")),
    ):
        spec = one_module_spec(config, classes=3, stem_channels=stem_channels)
        with torch.device("meta"):
            network = build_from_spec(spec).eval()
            pixels_BCHW = torch.empty(2, 3, spec.image_size, spec.image_size)
            program = torch.export.export(network, (pixels_BCHW,))
        called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert called <= known.keys()


def test_a_format_with_missing_packages_is_reported(
    one_module_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "tune_rescon.inference.saved_model", None)  # as without TensorFlow
    output = ["--format", "tensorflow", "--output", str(tmp_path / "a")]
    assert export([str(one_module_checkpoint), *output]) == 2
    assert "pip install 'tune_rescon[tensorflow]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_image_paths_are_reported(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict([str(checkpoint), str(tmp_path / "nowhere.png")]) == 2
    assert "a picture or a folder of them must exist" in capsys.readouterr().err
    assert predict([str(checkpoint), str(tmp_path)]) == 2
    assert "there must be pictures" in capsys.readouterr().err


def test_an_unreadable_checkpoint_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(_self: object, name: str, _target: Path) -> bool:
        raise RemoteError(f"reading {name}: Access Denied")

    monkeypatch.setattr("tune_rescon.storage.RemoteFolder.download", denied)
    searched = MagicMock()
    searched.checkpoint.return_value = "memory://bucket/s/best.ckpt"
    monkeypatch.setattr("tune_rescon.inference.model.read_search", lambda *_args, **_where: searched)
    assert export(["s", "--format", "onnx", "--output", str(tmp_path / "a.onnx")]) == 2
    assert "checkpoint must be readable, but got reading best.ckpt: Access Denied" in capsys.readouterr().err

"""predict and export on a checkpoint: the network's own answers, in every form, and bad input in words."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tune_rescon.data import decode_image
from tune_rescon.export import main as export
from tune_rescon.predict import main as predict
from tune_rescon.training import load_trained
from tune_rescon.training.weights import Classifier

pytestmark = pytest.mark.torch


def expected(checkpoint: Path, picture: Path, *, mirrored: bool = False) -> torch.Tensor:
    network, about = load_trained(checkpoint)
    image = torch.tensor(decode_image(picture.read_bytes(), 16))
    pixels = image.permute(2, 0, 1)[None].float() / 255
    pixels = pixels.flip(-1) if mirrored else pixels
    with torch.inference_mode():
        probabilities: torch.Tensor = Classifier(network, about).eval()(pixels)[0]
    return probabilities


def test_json_is_a_line_for_each_picture(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict([str(checkpoint), str(pictures), "--json", "--batch-size", "2", "--top", "3"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["0.png", "1.png", "2.png", "3.png", "grey.jpg"]
    for line in lines:
        wanted = expected(checkpoint, Path(line["path"]))
        assert line["class"] == ("ant", "bee", "cat")[int(wanted.argmax())]
        assert line["probability"] == pytest.approx(float(wanted.max()), rel=1e-4)
        assert line["probability"] < 0.999, "a network that is always sure would show no difference"
        assert sum(one["probability"] for one in line["top"]) == pytest.approx(1, abs=1e-5)


def test_flip_is_the_mean_of_the_picture_and_its_mirror_image(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict([str(checkpoint), str(pictures), "--json", "--tta", "flip", "--batch-size", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 5
    moved = 0.0
    for line in lines:
        plain, mirrored = (expected(checkpoint, Path(line["path"]), mirrored=one) for one in (False, True))
        wanted = (plain + mirrored) / 2
        assert line["tta"] == "flip"
        assert line["class"] == ("ant", "bee", "cat")[int(wanted.argmax())]
        assert line["probability"] == pytest.approx(float(wanted.max()), rel=1e-4)
        moved = max(moved, float((plain - mirrored).abs().max()))
    assert moved > 0.01, "a network that sees no mirroring would show no difference"


def test_csv_and_a_table(checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict([str(checkpoint), str(pictures / "0.png"), str(pictures / "0.png"), "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert set(row) == {"path", "class", "probability"}
    assert predict([str(checkpoint), str(pictures)]) == 0
    assert "probability" in capsys.readouterr().out


def test_what_is_no_picture_is_told_and_the_others_are_classified(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    assert predict([str(checkpoint), str(pictures), "--json"]) == 2
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 5
    assert "broken.png: no picture" in said.err


def test_masks_are_drawn(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    assert predict([str(checkpoint), str(pictures), "--json", "--masks", str(folder)]) == 0
    page = (folder / "index.html").read_text()
    drawn = sorted(folder.glob("*.png"))
    assert len(drawn) == 5
    assert all(f'src="{one.name}"' in page for one in drawn)
    with Image.open(drawn[0]) as image:
        assert image.size[0] > 400
        assert len(np.unique(np.asarray(image))) > 50


@pytest.mark.parametrize(
    ("form", "name"), [("safetensors", "a.safetensors"), ("torch-export", "a.pt2"), ("onnx", "a.onnx")]
)
def test_every_format_is_loaded_again_and_says_the_same(
    form: str, name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / name
    assert export([str(checkpoint), "--format", form, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "3 classes, pixels 3 x 16 x 16; loaded again, its probabilities differ by at most" in said
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_was_exported_as_safetensors_is_a_model(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.safetensors"
    assert export([str(checkpoint), "--format", "safetensors", "--output", str(output)]) == 0
    capsys.readouterr()
    assert predict([str(output), str(pictures), "--json"]) == 0
    again = capsys.readouterr().out
    assert predict([str(checkpoint), str(pictures), "--json"]) == 0
    assert capsys.readouterr().out == again


class Code:
    """What runs when its pickle is loaded: it makes a directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self._folder,)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nosuch", "nosuch"),
        ("no/such.ckpt", "MODEL must be a search's name, models:/NAME@ALIAS, or a file that exists"),
        ("models:/nosuch@champion", "models:/nosuch@champion"),
        ("models:/nosuch", "must be models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_a_model_that_is_none(
    model: str, said: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict([model, str(pictures), "--storage", str(tmp_path / "runs")]) == 2
    words = capsys.readouterr().err
    assert said in words
    assert "Traceback" not in words


def test_a_pickle_with_code_in_it_is_refused(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil, ran = tmp_path / "evil.ckpt", tmp_path / "ran"
    code = Code(ran)
    pickle.loads(pickle.dumps(code))
    assert ran.is_dir(), "it does run, where it is loaded"
    ran.rmdir()
    torch.save({"format": 1, "weights": code}, evil)
    assert predict([str(evil), str(pictures)]) == 2
    evil.write_bytes(pickle.dumps(code))
    assert predict([str(evil), str(pictures)]) == 2
    assert not ran.exists()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "tflite", "--output", "a"], "format: unknown format 'tflite'"),
        (["--format", "onnx", "--output", "no/such/folder/a.onnx"], "--output: must be a file that can be"),
    ],
)
def test_bad_exports(
    arguments: list[str], said: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export([str(checkpoint), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_format_whose_packages_are_not_there(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tune_rescon.inference.saved_model", None)  # as without TensorFlow
    assert export([str(checkpoint), "--format", "tensorflow", "--output", str(tmp_path / "a")]) == 2
    assert "pip install 'tune_rescon[tensorflow]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_paths_that_are_none(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict([str(checkpoint), str(tmp_path / "nowhere.png")]) == 2
    assert "a picture or a folder of them must exist" in capsys.readouterr().err
    assert predict([str(checkpoint), str(tmp_path)]) == 2
    assert "there must be pictures" in capsys.readouterr().err

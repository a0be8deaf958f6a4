"""From a search to its winner in other hands, through the commands alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

pytestmark = pytest.mark.ray

#: A program that knows nothing of this package: pixels in, classes out.
STRANGER = """
import json, sys
import numpy as np, onnxruntime
assert not any(name.startswith("tune_rescon") for name in sys.modules)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
pixels = np.load(sys.argv[2])
(probabilities,) = session.run(None, {"pixels": pixels})
print(json.dumps([names[k] for k in probabilities.argmax(1)]))
"""


def command(*arguments: str | Path, folder: Path, code: int = 0) -> str:
    environment = {**os.environ, "RAY_TMPDIR": str(folder), "TUNE_RESCON_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_a_winner_is_found_by_its_searchs_name_and_by_mlflows(short_tmp: Path, tmp_path: Path) -> None:
    folder = short_tmp / "winner"
    folder.mkdir()
    storage = ["--storage", str(folder / "runs")]
    search = ["--space", "digits", "--name", "a", "--plain", "--trials", "2", "--set", "fidelity.max=3"]
    command("tune_rescon.search", *search, *storage, folder=folder)

    digits = load_digits().images[:40]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(digits):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(pictures / f"{number:02d}.png")

    by_name = command("tune_rescon.predict", "a", pictures, "--json", *storage, folder=folder)
    lines = [json.loads(line) for line in by_name.splitlines()]
    right = sum(line["class"] == str(k) for line, k in zip(lines, load_digits().target[:40], strict=True))
    assert right >= 30, f"{right} of 40"

    champion = "models:/a@champion"
    by_mlflow = command("tune_rescon.predict", champion, pictures, "--json", *storage, folder=folder)
    assert by_mlflow == by_name

    output = tmp_path / "a.onnx"
    command("tune_rescon.export", "a", "--format", "onnx", "--output", output, *storage, folder=folder)
    stack = [
        np.asarray(Image.open(one).resize((16, 16), Image.Resampling.BILINEAR))
        for one in sorted(pictures.iterdir())
    ]
    np.save(tmp_path / "pixels.npy", np.stack(stack)[:, None].astype(np.float32) / 255)
    (tmp_path / "stranger.py").write_text(STRANGER)
    stranger = [sys.executable, "-I", *map(str, (tmp_path / "stranger.py", output, tmp_path / "pixels.npy"))]
    said = json.loads(subprocess.run(stranger, capture_output=True, text=True, check=True).stdout)
    assert said == [line["class"] for line in lines]

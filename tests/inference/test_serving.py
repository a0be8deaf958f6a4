"""MLflow's model server on the champion of a search returns the network's probabilities for a JPEG file."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tune_rescon.spaces import load_space
from tune_rescon.training import load_trained
from tune_rescon.training.weights import Classifier
from tune_rescon.tuning import RunOptions, run_search

pytestmark = [pytest.mark.torch, pytest.mark.nightly]


@contextmanager
def serve_model(model: str, tracking_uri: str, log: Path) -> Iterator[str]:
    """Run the documented command and yield the server's URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["models", "serve", "--model-uri", model, "--env-manager", "local", "--port", str(port)]
    env = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            env=env,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        for _ in range(1200):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(60)


@pytest.mark.usefixtures("without_ray")
def test_a_jpeg_gets_the_networks_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_RESCON_CACHE", str(tmp_path / "cache"))
    storage = tmp_path / "runs"
    settings = ["trials=1", "fidelity.max=1", "width=0.125", "initial=[]", "dataset.limit=200"]
    result = run_search(load_space("digits", settings), RunOptions(name="s", storage=storage))
    assert result.best is not None
    network, about = load_trained(str(result.kept_checkpoint(result.best)))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    picture = tmp_path / "seven.jpg"
    Image.fromarray(pixels).save(picture, quality=95)
    with serve_model("models:/s@champion", f"sqlite:///{storage}/mlflow.db", tmp_path / "serve.log") as url:
        image_HW = np.asarray(Image.open(picture).convert("L"), dtype=np.float32) / 255
        request = urllib.request.Request(
            f"{url}/invocations",
            data=json.dumps({"inputs": image_HW[None, None].tolist()}).encode(),
            headers={"Content-Type": "application/json"},
        )
        answer = json.load(urllib.request.urlopen(request, timeout=60))
    with torch.inference_mode():
        expected_BK = Classifier(network, about).eval()(torch.from_numpy(image_HW)[None, None])
    assert answer["predictions"][0] == pytest.approx(expected_BK[0].tolist(), abs=1e-4)

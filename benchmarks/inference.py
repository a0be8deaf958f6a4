"""Images per second of a trained network in the forms it can be used in, on a CPU.

The network itself (eager, channels last), what ``export --format torch-export`` writes, and ``onnx`` in
onnxruntime, each a classifier: pixels in, probabilities out. They take turns in this process, which all give
the same number of threads::

    python benchmarks/inference.py
    python benchmarks/inference.py --rounds 9 --seconds 2 --presets rescon_attention92_32
    python benchmarks/inference.py --images cifar10-jpeg.zip       # also compares their probabilities
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from table import Row, hardware, print_rows, spread
from torch import Tensor, nn

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import open_dataset
from tune_rescon.inference import export_model
from tune_rescon.models import build_from_spec, list_presets, resolve_network
from tune_rescon.training import TrainedNetwork
from tune_rescon.training.device import resolve_device
from tune_rescon.training.weights import Classifier

Run = Callable[[Tensor], Tensor]

PRESETS = ("rescon_attention92_32", "cifar_attention56")
BATCHES = (1, 64)

#: Largest relative difference of a probability, and images that are compared.
TOLERANCE = 1e-4
COMPARED = 256

#: Images of a batch while batch norm's statistics are made. Without them one class would get all of the
#: probability.
WARM = 16


def trained(preset: str) -> tuple[nn.Module, TrainedNetwork]:
    """A network of ten classes with random weights: what a network has learnt does not change its speed."""
    config = TrialConfig(preset=preset)
    spec = resolve_network(config, classes=10, in_channels=3)
    torch.manual_seed(0)
    network, side = build_from_spec(spec), spec.image_size
    with torch.no_grad():
        for _ in range(10):
            network((torch.rand(WARM, 3, side, side) - 0.5) / 0.3)
    about = TrainedNetwork(
        spec=spec,
        config=config,
        class_names=tuple("abcdefghij"),
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
        dataset="none",
        seed=0,
        epoch=1,
        metrics={},
    )
    return network.eval(), about


def forms(network: nn.Module, about: TrainedNetwork, folder: Path, threads: int) -> dict[str, Run]:
    """By name, what makes probabilities of pixels, B x C x H x W in 0..1."""
    files = {"torch-export": folder / "network.pt2", "onnx": folder / "network.onnx"}
    for form, file in files.items():
        export_model(network, about, form=form, output=file)
    return {
        "torch eager": eager(network, about),
        "torch-export": torch.export.load(files["torch-export"]).module(),
        "onnx": onnx(files["onnx"], threads),
    }


def eager(network: nn.Module, about: TrainedNetwork) -> Run:
    """As ``predict`` runs it."""
    placement = resolve_device("cpu", precision="fp32")
    classifier = placement.move_network(Classifier(network, about).eval())
    return lambda pixels_BCHW: classifier(placement.move_images(pixels_BCHW))


def onnx(file: Path, threads: int) -> Run:
    """In onnxruntime."""
    # Imported here: it is an extra.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(pixels_BCHW: Tensor) -> Tensor:
        (probabilities_BK,) = session.run(None, {"pixels": pixels_BCHW.numpy()})
        return torch.from_numpy(probabilities_BK)

    return run


@torch.inference_mode()
def images_per_second(run: Run, pixels_BCHW: Tensor, seconds: float) -> float:
    """Run for at least ``seconds``, and at least two batches."""
    began, batches = time.perf_counter(), 0
    while batches < 2 or time.perf_counter() - began < seconds:
        run(pixels_BCHW)
        batches += 1
    return batches * len(pixels_BCHW) / (time.perf_counter() - began)


def speeds(made: Mapping[str, Run], side: int, options: argparse.Namespace) -> Iterator[Row]:
    """A row for each form and batch size; the forms alternate, round by round."""
    for batch in BATCHES:
        pixels_BCHW = torch.rand(batch, 3, side, side)
        measured: dict[str, list[float]] = {name: [] for name in made}
        for run in made.values():
            images_per_second(run, pixels_BCHW, 0)  # warms it up
        for _ in range(options.rounds):
            for name, run in made.items():
                measured[name].append(images_per_second(run, pixels_BCHW, options.seconds))
        for name, values in measured.items():
            yield Row(
                what=f"{name}, batch {batch}",
                measured=f"{spread(values, 1)} images/s, n = {len(values)}",
                target="",
                met=None,
            )


def real_pixels(images: str, folder: Path) -> Tensor:
    """The first validation images of a folder or .zip, in 0..1."""
    config = DatasetConfig(name="folder", path=images)
    dataset = open_dataset(config, data_root=folder, cache_root=folder)
    images_BHWC, _ = dataset.val.gather(np.arange(min(COMPARED, len(dataset.val))))
    return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).float() / 255


def same(made: Mapping[str, Run], pixels_BCHW: Tensor) -> Row:
    """Compare the probabilities of the other forms with those of the network, on real images."""
    with torch.inference_mode():
        wanted_BK, *others = (run(pixels_BCHW) for run in made.values())
    largest = max(float(((other - wanted_BK).abs() / wanted_BK).max()) for other in others)
    return Row(
        what=f"largest relative difference of a probability, {len(pixels_BCHW)} real images",
        measured=f"{largest:.1e}",
        target=f"{TOLERANCE:g}",
        met=largest <= TOLERANCE,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=PRESETS, choices=list_presets(), metavar="PRESET")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round, for each form")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--images", help="a folder or .zip with train/CLASS/*.jpg")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(hardware("cpu", "torch", "onnxruntime"), f"{options.threads} threads", sep="; ")
    for preset in options.presets:
        network, about = trained(preset)
        with tempfile.TemporaryDirectory() as scratch:
            made = forms(network, about, Path(scratch), options.threads)
            rows = list(speeds(made, about.spec.image_size, options))
            if options.images:
                rows.append(same(made, real_pixels(options.images, Path(scratch))))
        print(f"\n{preset}, {about.spec.image_size} pixels")
        print_rows(rows)


if __name__ == "__main__":
    main()

"""An image gets the same probabilities from validation, ``predict``, MLflow and every exported format."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import textwrap
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inference import COMPARED, forms, real_pixels, same, trained
from PIL import Image
from torch import Tensor, nn

from tests.conftest import ROOT
from tests.models.one_module import one_module_spec
from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import ImageDataModule, ImageDataset, decode_image, open_dataset
from tune_rescon.errors import NetworkError, StorageError
from tune_rescon.export import main as export_command
from tune_rescon.inference import Pictures, batches_of, export, export_model, pixels, predictions
from tune_rescon.models import build_from_spec
from tune_rescon.training.device import resolve_device
from tune_rescon.training.weights import TrainedNetwork, load_trained, trained_values

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

#: The largest difference of two probabilities due to rounding.
TOLERANCE = 1e-4


def photograph(seed: int, size: tuple[int, int], *, red: bool = True) -> bytes:
    """Return a JPEG file with large shapes and fine stripes, which differ between methods of scaling."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    stripes = 60 * np.sin(2 * np.pi * (x * rng.uniform(0.02, 0.3) + y * rng.uniform(0.02, 0.3)))
    planes = [stripes + 127 + 50 * np.cos(x / width * rng.uniform(1, 9)) for _ in range(3)]
    pixels_HWC = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
    if not red:
        pixels_HWC[..., 0] = 0
    data = io.BytesIO()
    Image.fromarray(pixels_HWC).save(data, "PNG" if not red else "JPEG", quality=90)
    return data.getvalue()


def write_folder(root: Path, size: tuple[int, int], *, red: bool = True) -> Path:
    """Write twelve training and six validation images of two classes; images without red are PNG files."""
    for split, count in (("train", 6), ("val", 3)):
        for label in ("ant", "bee"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                seed = 100 * len(split) + 10 * number + len(label) + ord(label[0])
                name = f"{number}.{'jpg' if red else 'png'}"
                (folder / name).write_bytes(photograph(seed, size, red=red))
    return root


def make_network(dataset: ImageDataset, config: TrialConfig) -> tuple[nn.Module, TrainedNetwork, Tensor]:
    """Return a network with batch statistics of the data, its description, and its validation output."""
    spec = one_module_spec(config, classes=dataset.classes, in_channels=dataset.channels)
    torch.manual_seed(0)
    network = build_from_spec(spec)
    module = ImageDataModule(dataset, config, image_size=spec.image_size, seed=0)
    with torch.no_grad():
        for epoch in range(15):
            for images_BCHW, _ in module.train_batches(epoch=epoch):
                network(images_BCHW)
    network.eval()
    about = TrainedNetwork(
        spec=spec,
        config=config,
        class_names=dataset.class_names,
        mean=dataset.mean,
        std=dataset.std,
        stored_side=dataset.stored_side,
        dataset=dataset.digest,
        seed=0,
        epoch=1,
        metrics={},
    )
    with torch.inference_mode():
        batches = [network(images_BCHW).softmax(1) for images_BCHW, _ in module.val_batches()]
    return network, about, torch.cat(batches)


def open_folder(path: Path, tmp_path: Path, **settings: Any) -> ImageDataset:
    config = DatasetConfig(name="folder", path=str(path), **settings)
    return open_dataset(config, data_root=tmp_path / "data", cache_root=tmp_path / "cache")


def predict_validation(network: nn.Module, about: TrainedNetwork, path: Path) -> tuple[Tensor, Tensor]:
    """Return the probabilities of ``predict`` for the validation images, and the network's input."""
    files = sorted((path / "val").rglob("*.*"))
    refused: list[str] = []
    batches = list(
        batches_of(files, about, batch_size=64, on_bad=lambda *problem: refused.append(str(problem)))
    )
    assert not refused
    cpu = resolve_device("cpu", precision="fp32")
    # A copy, because `predictions` changes the memory format of the weights.
    predicted = predictions(copy.deepcopy(network), about, batches, cpu, top=len(about.class_names))
    rows = [[dict(prediction.classes)[name] for name in about.class_names] for prediction in predicted]
    return torch.tensor(rows), torch.cat([pixels(batch, about) for batch in batches])


# These sizes are halved exactly or not scaled, which are easier cases.
NIGHTLY_SIZES = [pytest.param(sizes, marks=pytest.mark.nightly) for sizes in [((40, 32), 32), ((48, 48), 32)]]


@pytest.fixture(scope="module", params=[((90, 70), 32), *NIGHTLY_SIZES], ids=str)
def winner(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, TrainedNetwork, Tensor, Path]:
    """A network and images larger than its input or of its size, so that they are scaled once or twice."""
    size, side = request.param
    tmp_path = tmp_path_factory.mktemp("one")
    path = write_folder(tmp_path / "photographs", size)
    dataset = open_folder(path, tmp_path)
    config = TrialConfig(layout="cifar", depth=56, width=0.125, image_size=side, batch_size=4)
    return *make_network(dataset, config), path


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert torch.equal(got.argmax(1), expected.argmax(1))
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_predict_matches_validation(winner: tuple[nn.Module, TrainedNetwork, Tensor, Path]) -> None:
    network, about, validation_BK, path = winner
    assert validation_BK.std() > TOLERANCE, "probabilities must differ for the comparison to mean something"
    predicted_BK, _ = predict_validation(network, about, path)
    assert_close(predicted_BK, validation_BK)


def test_a_checkpoint_keeps_the_preprocessing(
    winner: tuple[nn.Module, TrainedNetwork, Tensor, Path], tmp_path: Path
) -> None:
    network, about, validation_BK, path = winner
    torch.save(trained_values(network, about), tmp_path / "best.ckpt")
    loaded, known = load_trained(tmp_path / "best.ckpt")
    assert known.preprocessing == about.preprocessing
    assert_close(predict_validation(loaded, known, path)[0], validation_BK)


def test_a_checkpoint_without_a_stored_side_decodes_to_the_image_size(
    winner: tuple[nn.Module, TrainedNetwork, Tensor, Path],
) -> None:
    _, about, _, _ = winner
    values = about.to_dict()
    del values["stored_side"]
    known = TrainedNetwork.from_dict(values)
    assert known.preprocessing.stored_side == known.preprocessing.image_size == 32


# The slow formats are nightly: an export itself compares the file with the network.
SLOW_FORMS = [
    pytest.param(form, marks=pytest.mark.nightly) for form in ("torch-export", "onnx", "tensorflow")
]


@pytest.mark.parametrize("form", ["safetensors", "timm", *SLOW_FORMS])
def test_an_exported_model_matches_validation(
    winner: tuple[nn.Module, TrainedNetwork, Tensor, Path],
    form: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if form == "tensorflow":
        pytest.importorskip("tensorflow", reason="TensorFlow is not installed: tune_rescon[tensorflow]")
    network, about, validation_BK, path = winner
    exported: list[Callable[[Tensor], Tensor]] = []
    write = export.FORMATS[form]

    def capture(classifier: nn.Module, known: TrainedNetwork, target: Path) -> Callable[[Tensor], Tensor]:
        exported.append(write(classifier, known, target))
        return exported[-1]

    monkeypatch.setattr(export, "FORMATS", {form: capture})
    export_model(network, about, form=form, output=tmp_path / "model")
    _, pixels_BCHW = predict_validation(network, about, path)
    with torch.inference_mode():
        assert_close(exported[0](pixels_BCHW), validation_BK)


def test_the_mlflow_champion_matches_validation(
    winner: tuple[nn.Module, TrainedNetwork, Tensor, Path], tmp_path: Path
) -> None:
    """The model is loaded by MLflow."""
    import mlflow

    from tune_rescon.tracking.registry import exported

    network, about, validation_BK, path = winner
    torch.save(trained_values(network, about), tmp_path / "best.ckpt")
    _, pixels_BCHW = predict_validation(network, about, path)
    with exported(str(tmp_path / "best.ckpt")) as folder:
        predicted_BK = mlflow.pyfunc.load_model(str(folder)).predict(pixels_BCHW.numpy())
    assert_close(torch.from_numpy(np.asarray(predicted_BK)), validation_BK)


def test_timm_export_matches_validation(
    winner: tuple[nn.Module, TrainedNetwork, Tensor, Path], tmp_path: Path
) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'tune_rescon[timm]'")
    network, about, validation_BK, path = winner
    export_model(network, about, form="timm", output=tmp_path / "winner")
    timm_network = timm.create_model(f"local-dir:{tmp_path / 'winner'}", pretrained=True).eval()
    files = sorted((path / "val").rglob("*.*"))
    assert_close(probabilities_of(timm_network, files, timm_network.preprocess), validation_BK)
    # timm's own transform scales in one step, so probabilities differ slightly, but labels do not.
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(timm_network))
    transformed_BK = probabilities_of(timm_network, files, lambda picture: transform(picture.convert("RGB")))
    assert torch.equal(transformed_BK.argmax(1), validation_BK.argmax(1))


@pytest.mark.parametrize(("size", "resize"), [((32, 32), "crop"), ((90, 70), "squash")], ids=str)
def test_timms_transform_matches_validation_if_images_are_scaled_once(
    size: tuple[int, int], resize: str, tmp_path: Path
) -> None:
    """Timm scales in one step and validation in two; an image of the stored size is not scaled at all."""
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'tune_rescon[timm]'")
    path = write_folder(tmp_path / "photographs", size)
    dataset = open_folder(path, tmp_path, store_size=32, resize=resize)
    config = TrialConfig(layout="cifar", depth=56, width=0.125, image_size=32, batch_size=4)
    network, about, validation_BK = make_network(dataset, config)
    about = dataclasses.replace(about, resize=resize)
    export_model(network, about, form="timm", output=tmp_path / "winner")
    timm_network = timm.create_model(f"local-dir:{tmp_path / 'winner'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(timm_network))
    files = sorted((path / "val").rglob("*.*"))
    assert_close(
        probabilities_of(timm_network, files, lambda picture: transform(picture.convert("RGB"))),
        validation_BK,
    )
    assert timm_network.pretrained_cfg["label_names"] == ["ant", "bee"]


def test_a_transform_unsupported_by_timm_is_reported(
    winner: tuple[nn.Module, TrainedNetwork, Tensor, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm", reason="timm is not installed: pip install 'tune_rescon[timm]'")
    network, about, _, _ = winner
    unsupported = dataclasses.replace(about, resize="pad", levels=(0.0, 4095.0))
    torch.save(trained_values(network, unsupported), tmp_path / "best.ckpt")
    arguments = [str(tmp_path / "best.ckpt"), "--format", "timm", "--output", str(tmp_path / "winner")]
    assert export_command(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "timm's own transform scales in one step, pads with the mean colour instead of black, does not scale"
        " pictures of more than 8 bits; the pixels of validation are those of `network.preprocess(picture)`"
    )
    supported = dataclasses.replace(about, resize="squash", stored_side=about.spec.image_size)
    assert export.timm_transform_message(supported) is None


def probabilities_of(
    network: nn.Module, files: list[Path], preprocess: Callable[[Image.Image], Tensor]
) -> Tensor:
    """Return a network's probabilities for image files."""
    images = []
    for file in files:
        with Image.open(file) as picture:
            images.append(preprocess(picture))
    with torch.inference_mode():
        probabilities_BK: Tensor = network(torch.stack(images)).softmax(1)
    return probabilities_BK


def test_an_exported_file_names_its_preprocessing(
    winner: tuple[nn.Module, TrainedNetwork, Tensor, Path], tmp_path: Path
) -> None:
    from safetensors import safe_open

    network, about, _, _ = winner
    export_model(network, about, form="safetensors", output=tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        known: Mapping[str, Any] = json.loads(file.metadata()["preprocessing"])
    expected = about.preprocessing
    assert (known["stored_side"], known["image_size"]) == (expected.stored_side, 32)
    assert (known["mean"], known["std"]) == (list(expected.mean), list(expected.std))
    assert (known["resize"], known["interpolation"]) == ("crop", "bilinear")
    assert known["channel_order"] == "RGB"


def test_a_constant_channel_is_normalised_alike_in_training_and_predict(tmp_path: Path) -> None:
    """Its standard deviation is 0, so training and inference must replace it by the same number."""
    path = write_folder(tmp_path / "green", (32, 32), red=False)
    dataset = open_folder(path, tmp_path)
    assert dataset.std[0] == 0
    config = TrialConfig(layout="cifar", depth=56, width=0.125, image_size=32, batch_size=4)
    network, about, validation_BK = make_network(dataset, config)
    assert validation_BK.isfinite().all()
    assert_close(predict_validation(network, about, path)[0], validation_BK)
    assert export_model(network, about, form="safetensors", output=tmp_path / "a") <= TOLERANCE


class NanNetwork(nn.Module):
    def forward(self, images_BCHW: Tensor) -> Tensor:
        return torch.full((len(images_BCHW), 2), torch.nan)


def test_an_export_that_gives_nan_is_refused(
    winner: tuple[nn.Module, TrainedNetwork, Tensor, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, about, _, _ = winner

    def write(classifier: nn.Module, known: TrainedNetwork, target: Path) -> Callable[[Tensor], Tensor]:
        del classifier, known
        target.write_bytes(b"")
        return NanNetwork()

    cpu = resolve_device("cpu", precision="fp32")
    batch = Pictures(paths=(tmp_path / "a.png",), images_BHWC=np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(NetworkError, match=r"must give probabilities, but got nan for .*a\.png"):
        list(predictions(NanNetwork(), about, [batch], cpu, top=1))

    monkeypatch.setattr(export, "FORMATS", {"onnx": write})
    with pytest.raises(StorageError, match="a difference of nan"):
        export_model(network, about, form="onnx", output=tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_the_documented_request_applies_exif_orientation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phones save upright photographs rotated, with the orientation in the EXIF data."""
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x112] = 6
    with Image.open(io.BytesIO(photograph(0, (448, 448)))) as picture:
        picture.save("cat.jpg", exif=exif, quality=95)
    code = (ROOT / "docs/howto/winner.md").read_text().partition("import json, urllib.request\n")[2]
    names: dict[str, Any] = {}
    exec(textwrap.dedent("    " + code.partition("    body = ")[0].lstrip()), names)
    wanted_HWC = decode_image(Path("cat.jpg").read_bytes(), 224)
    difference_HWC = 255 * names["pixels"][0].transpose(1, 2, 0) - wanted_HWC
    assert np.abs(difference_HWC).mean() < 3


@pytest.fixture(scope="module")
def photographs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 images of each CIFAR-10 class, half of them for validation."""
    folder = tmp_path_factory.mktemp("photographs")
    counts: dict[str, int] = {}
    with zipfile.ZipFile(shared / "data" / "cifar10-jpeg.zip") as archive:
        for name in archive.namelist():
            *_, split, label, file = ("", "", *Path(name).parts)
            number = counts.setdefault(label, 0)
            if split == "train" and file.endswith((".jpg", ".jpeg")) and number < 60:
                counts[label] += 1
                target = folder / ("train" if number % 2 else "val") / label / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    return folder


@pytest.mark.shared
@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_every_format_gives_the_same_result_on_real_images(photographs: Path, tmp_path: Path) -> None:
    """By the comparison of ``benchmarks/inference.py``."""
    pixels_BCHW = real_pixels(str(photographs), tmp_path)
    assert pixels_BCHW.shape == (COMPARED, 3, 32, 32)
    models = forms(*trained("cifar_attention56"), tmp_path, threads=1)
    assert {"torch eager", "torch-export", "onnx"} <= set(models)
    row = same(models, pixels_BCHW)
    assert row.met, row.measured

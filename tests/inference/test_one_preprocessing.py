"""A picture gets the same probabilities from validation, ``predict`` and every exported form."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.conftest import ROOT
from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import ImageDataModule, ImageDataset, decode_image, open_dataset
from tune_rescon.errors import NetworkError, StorageError
from tune_rescon.export import main as export_command
from tune_rescon.inference import Pictures, batches_of, export, export_model, pixels, predictions
from tune_rescon.models import build_from_spec, resolve_network
from tune_rescon.training.device import resolve_device
from tune_rescon.training.weights import TrainedNetwork, load_trained, trained_values

pytestmark = pytest.mark.torch

#: The largest difference of two probabilities that a rounding may make.
CLOSE = 1e-4


def photograph(seed: int, size: tuple[int, int], *, red: bool = True) -> bytes:
    """A jpeg with large shapes and fine stripes, which every way of scaling renders differently."""
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


def folder_of(root: Path, size: tuple[int, int], *, red: bool = True) -> Path:
    """Twelve pictures to train on and six to validate on, of two classes; without red as PNG."""
    for part, count in (("train", 6), ("val", 3)):
        for label in ("ant", "bee"):
            folder = root / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                seed = 100 * len(part) + 10 * number + len(label) + ord(label[0])
                name = f"{number}.{'jpg' if red else 'png'}"
                (folder / name).write_bytes(photograph(seed, size, red=red))
    return root


def trained_on(dataset: ImageDataset, config: TrialConfig) -> tuple[nn.Module, TrainedNetwork, Tensor]:
    """A network with statistics of its data, what goes with it, and its validation probabilities."""
    spec = resolve_network(config, classes=dataset.classes, in_channels=dataset.channels)
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
        validated = [network(images_BCHW).softmax(1) for images_BCHW, _ in module.val_batches()]
    return network, about, torch.cat(validated)


def opened(path: Path, tmp_path: Path, **settings: Any) -> ImageDataset:
    config = DatasetConfig(name="folder", path=str(path), **settings)
    return open_dataset(config, data_root=tmp_path / "data", cache_root=tmp_path / "cache")


def predicted(network: nn.Module, about: TrainedNetwork, path: Path) -> tuple[Tensor, Tensor]:
    """What ``predict`` finds of the validation pictures, and the pixels it showed the network."""
    files = sorted((path / "val").rglob("*.*"))
    refused: list[str] = []
    batches = list(
        batches_of(files, about, batch_size=64, on_bad=lambda *problem: refused.append(str(problem)))
    )
    assert not refused
    cpu = resolve_device("cpu", precision="fp32")
    # Its own copy: predictions change the layout of the weights in memory.
    found = predictions(copy.deepcopy(network), about, batches, cpu, top=len(about.class_names))
    rows = [[dict(one.classes)[name] for name in about.class_names] for one in found]
    return torch.tensor(rows), torch.cat([pixels(batch, about) for batch in batches])


# A side that is halved exactly or left alone is the easier case.
MORE_SIZES = [pytest.param(sizes, marks=pytest.mark.nightly) for sizes in [((40, 32), 32), ((48, 48), 32)]]


@pytest.fixture(scope="module", params=[((90, 70), 32), *MORE_SIZES], ids=str)
def winner(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, TrainedNetwork, Tensor, Path]:
    """Pictures larger than the network's input, or of its size: decoded in one step or in two."""
    size, side = request.param
    tmp_path = tmp_path_factory.mktemp("one")
    path = folder_of(tmp_path / "photographs", size)
    dataset = opened(path, tmp_path)
    config = TrialConfig(layout="cifar", depth=56, width=0.125, image_size=side, batch_size=4)
    return *trained_on(dataset, config), path


def close(got: Tensor, wanted: Tensor) -> None:
    assert torch.equal(got.argmax(1), wanted.argmax(1))
    torch.testing.assert_close(got, wanted, atol=CLOSE, rtol=0)


def test_predict_matches_validation(winner: tuple[nn.Module, TrainedNetwork, Tensor, Path]) -> None:
    network, about, validated_BK, path = winner
    assert validated_BK.std() > CLOSE, "probabilities must differ for the comparison to mean something"
    found_BK, _ = predicted(network, about, path)
    close(found_BK, validated_BK)


def test_a_checkpoint_keeps_the_preprocessing(
    winner: tuple[nn.Module, TrainedNetwork, Tensor, Path], tmp_path: Path
) -> None:
    network, about, validated_BK, path = winner
    torch.save(trained_values(network, about), tmp_path / "best.ckpt")
    loaded, known = load_trained(tmp_path / "best.ckpt")
    assert known.preprocessing == about.preprocessing
    close(predicted(loaded, known, path)[0], validated_BK)


def test_a_checkpoint_of_an_earlier_version_decodes_to_the_networks_own_size(
    winner: tuple[nn.Module, TrainedNetwork, Tensor, Path],
) -> None:
    _, about, _, _ = winner
    values = about.to_dict()
    del values["stored_side"]
    known = TrainedNetwork.from_dict(values)
    assert known.preprocessing.stored_side == known.preprocessing.image_size == 32


# The slow ones are nightly: an export compares the file with the network, whose preprocessing is shown above.
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
    network, about, validated_BK, path = winner
    made: list[Callable[[Tensor], Tensor]] = []
    write = export.FORMATS[form]

    def kept(classifier: nn.Module, known: TrainedNetwork, target: Path) -> Callable[[Tensor], Tensor]:
        made.append(write(classifier, known, target))
        return made[-1]

    monkeypatch.setattr(export, "FORMATS", {form: kept})
    export_model(network, about, form=form, output=tmp_path / "model")
    _, pixels_BCHW = predicted(network, about, path)
    with torch.inference_mode():
        close(made[0](pixels_BCHW), validated_BK)


def test_the_mlflow_champion_matches_validation(
    winner: tuple[nn.Module, TrainedNetwork, Tensor, Path], tmp_path: Path
) -> None:
    """MLflow's model, by MLflow's own reader."""
    import mlflow

    from tune_rescon.tracking.registry import exported

    network, about, validated_BK, path = winner
    torch.save(trained_values(network, about), tmp_path / "best.ckpt")
    _, pixels_BCHW = predicted(network, about, path)
    with exported(str(tmp_path / "best.ckpt")) as folder:
        found_BK = mlflow.pyfunc.load_model(str(folder)).predict(pixels_BCHW.numpy())
    close(torch.from_numpy(np.asarray(found_BK)), validated_BK)


def test_timm_export_matches_validation(
    winner: tuple[nn.Module, TrainedNetwork, Tensor, Path], tmp_path: Path
) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'tune_rescon[timm]'")
    network, about, validated_BK, path = winner
    export_model(network, about, form="timm", output=tmp_path / "winner")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'winner'}", pretrained=True).eval()
    files = sorted((path / "val").rglob("*.*"))
    close(_shown(theirs, files, theirs.preprocess), validated_BK)
    # timm's own transform scales in one step, whose probabilities differ; the labels do not.
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    own_BK = _shown(theirs, files, lambda picture: transform(picture.convert("RGB")))
    assert torch.equal(own_BK.argmax(1), validated_BK.argmax(1))


@pytest.mark.parametrize(("size", "resize"), [((32, 32), "crop"), ((90, 70), "squash")])
def test_timms_transform_matches_validation_if_images_are_scaled_once(
    size: tuple[int, int], resize: str, tmp_path: Path
) -> None:
    """It scales in one step what validation scales in two; a picture of the stored size is scaled by none."""
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'tune_rescon[timm]'")
    path = folder_of(tmp_path / "photographs", size)
    dataset = opened(path, tmp_path, store_size=32, resize=resize)
    config = TrialConfig(layout="cifar", depth=56, width=0.125, image_size=32, batch_size=4)
    network, about, validated_BK = trained_on(dataset, config)
    about = dataclasses.replace(about, resize=resize)
    export_model(network, about, form="timm", output=tmp_path / "winner")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'winner'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    files = sorted((path / "val").rglob("*.*"))
    close(_shown(theirs, files, lambda picture: transform(picture.convert("RGB"))), validated_BK)
    assert theirs.pretrained_cfg["label_names"] == ["ant", "bee"]


def test_a_transform_unsupported_by_timm_is_reported(
    winner: tuple[nn.Module, TrainedNetwork, Tensor, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm", reason="timm is not installed: pip install 'tune_rescon[timm]'")
    network, about, _, _ = winner
    deep = dataclasses.replace(about, resize="pad", levels=(0.0, 4095.0))
    torch.save(trained_values(network, deep), tmp_path / "best.ckpt")
    arguments = [str(tmp_path / "best.ckpt"), "--format", "timm", "--output", str(tmp_path / "winner")]
    assert export_command(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "timm's own transform scales in one step, pads with the mean colour instead of black, does not scale"
        " pictures of more than 8 bits; the pixels of validation are those of `network.preprocess(picture)`"
    )
    alike = dataclasses.replace(about, resize="squash", stored_side=about.spec.image_size)
    assert export.timm_transform_message(alike) is None


def _shown(network: nn.Module, files: list[Path], preprocess: Callable[[Image.Image], Tensor]) -> Tensor:
    """A network's probabilities of pictures."""
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
    wanted = about.preprocessing
    assert (known["stored_side"], known["image_size"]) == (wanted.stored_side, 32)
    assert (known["mean"], known["std"]) == (list(wanted.mean), list(wanted.std))
    assert (known["resize"], known["interpolation"]) == ("crop", "bilinear")
    assert known["channel_order"] == "RGB"


def test_a_constant_channel_is_normalised_alike_in_training_and_predict(tmp_path: Path) -> None:
    """Its deviation is 0: training and the kept network must divide by the same number."""
    path = folder_of(tmp_path / "green", (32, 32), red=False)
    dataset = opened(path, tmp_path)
    assert dataset.std[0] == 0
    config = TrialConfig(layout="cifar", depth=56, width=0.125, image_size=32, batch_size=4)
    network, about, validated_BK = trained_on(dataset, config)
    assert validated_BK.isfinite().all()
    close(predicted(network, about, path)[0], validated_BK)
    assert export_model(network, about, form="safetensors", output=tmp_path / "a") <= CLOSE


class _Broken(nn.Module):
    """Says NaN of everything."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return torch.full((len(images_BCHW), 2), torch.nan)


def test_an_export_that_gives_nan_is_refused(
    winner: tuple[nn.Module, TrainedNetwork, Tensor, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, about, _, _ = winner

    def write(classifier: nn.Module, known: TrainedNetwork, target: Path) -> Callable[[Tensor], Tensor]:
        del classifier, known
        target.write_bytes(b"")
        return _Broken()

    cpu = resolve_device("cpu", precision="fp32")
    batch = Pictures(paths=(tmp_path / "a.png",), images_BHWC=np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(NetworkError, match=r"must give probabilities, but got nan for .*a\.png"):
        list(predictions(_Broken(), about, [batch], cpu, top=1))

    monkeypatch.setattr(export, "FORMATS", {"onnx": write})
    with pytest.raises(StorageError, match="a difference of nan"):
        export_model(network, about, form="onnx", output=tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine torch's threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_documented_request_applies_exif_orientation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone held upright writes its photographs on their side, and says so in the EXIF data."""
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x112] = 6
    with Image.open(io.BytesIO(photograph(0, (448, 448)))) as picture:
        picture.save("cat.jpg", exif=exif, quality=95)
    code = (ROOT / "docs/howto/winner.md").read_text().partition("import json, urllib.request\n")[2]
    found: dict[str, Any] = {}
    exec(textwrap.dedent("    " + code.partition("    body = ")[0].lstrip()), found)
    wanted_HWC = decode_image(Path("cat.jpg").read_bytes(), 224)
    difference_HWC = 255 * found["pixels"][0].transpose(1, 2, 0) - wanted_HWC
    assert np.abs(difference_HWC).mean() < 3

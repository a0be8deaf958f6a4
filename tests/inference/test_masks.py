"""Mask overlays: their position and size on the photograph, and the files after an interrupt."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tune_rescon.config import TrialConfig
from tune_rescon.data.decode import BadImageError
from tune_rescon.errors import ConfigError
from tune_rescon.inference import Pictures, masks
from tune_rescon.inference.masks import draw_overlay, input_box, load_photograph
from tune_rescon.models import build_from_spec, resolve_network
from tune_rescon.models.network import AttentionModule
from tune_rescon.predict import main as predict

pytestmark = pytest.mark.torch


def test_overlays_have_the_photographs_size_and_follow_the_predictions(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "masks"
    (pictures / "0.png").rename(pictures / "0 #1 50%.png")
    assert predict([str(checkpoint), str(pictures), "--masks", str(folder)]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 6
    assert "Drawing the masks of 5 pictures" in captured.err
    page = (folder / "index.html").read_text()
    assert 'src="0000-0%20%231%2050%25.png"' in page
    overlays = sorted(folder.glob("0001-1-*.jpg"))
    assert [overlay.name for overlay in overlays] == [f"0001-1-stages.{n}.attention.0.jpg" for n in range(3)]
    for overlay in overlays:
        with Image.open(overlay) as image:
            assert image.size == (30, 21)
        assert f'src="{overlay.name}"' in page


def test_an_image_name_that_is_not_utf8_is_printed_and_linked(
    one_module_checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, printed = tmp_path / "masks", io.BytesIO()
    name = os.fsdecode(b"caf\xe9.png")
    (pictures / "0.png").rename(pictures / name)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8", errors="strict"))
    assert predict([str(one_module_checkpoint), str(pictures / name), "--csv", "--masks", str(folder)]) == 0
    assert os.fsencode(pictures / name) in printed.getvalue(), "as `ls` prints it"
    page = (folder / "index.html").read_text()
    assert 'src="0000-caf%E9.png"' in page
    assert r"caf\xe9.png</figcaption>" in page


def test_overlay_names_of_a_long_image_name_are_shortened(
    checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    folder, name = tmp_path / "masks", f"{'ü' * 125}.png"
    (pictures / "0.png").rename(pictures / name)
    assert predict([str(checkpoint), str(pictures / name), "--masks", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir())[:2] == [
        f"0000-{'ü' * 50}-stages.0.attention.0.jpg",
        f"0000-{'ü' * 50}-stages.1.attention.0.jpg",
    ]


def test_pictures_of_more_bits_than_the_training_pictures_are_said(
    one_module_checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(pictures / "deep.png")
    assert predict([str(one_module_checkpoint), str(pictures)]) == 0
    message = f"1 picture of more than 8 bits ({pictures / 'deep.png'}): the training pictures had 8"
    assert message in capsys.readouterr().err
    values = torch.load(one_module_checkpoint, weights_only=True)
    values["about"]["levels"] = (0.0, 599.0)
    torch.save(values, tmp_path / "deep.ckpt")
    assert predict([str(tmp_path / "deep.ckpt"), str(pictures)]) == 0
    assert "more than 8 bits" not in capsys.readouterr().err


def test_table_rows_are_aligned(checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict([str(checkpoint), str(pictures), "--top", "3"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 15
    assert {len(row) for row in rows} == {head.index("probability") + len("0.1234")}
    assert rows[0].split()[0] == str(pictures / "0.png")


@pytest.fixture
def interrupt_call(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str, int], None]:
    """Raises KeyboardInterrupt in the n-th call of a function."""

    def interrupt(owner: Any, name: str, call: int) -> None:
        original, calls = getattr(owner, name), []

        def counted(*arguments: Any, **named: Any) -> Any:
            calls.append(1)
            if len(calls) == call:
                raise KeyboardInterrupt
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    return interrupt


@pytest.mark.parametrize("form", ["--json", "--csv", "--top=1"])
def test_an_interrupt_keeps_predictions_and_drawings(
    form: str,
    one_module_checkpoint: Path,
    pictures: Path,
    tmp_path: Path,
    interrupt_call: Callable[[Any, str, int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt_call(masks, "draw_overlay", 3)
    folder = tmp_path / "masks"
    assert predict([str(one_module_checkpoint), str(pictures), form, "--masks", str(folder)]) == 130
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == (5 if form == "--json" else 6)
    assert "Interrupted. The predictions that were printed and the masks that were drawn are" in captured.err
    page = (folder / "index.html").read_text()
    assert page.count("<figure>") == 2
    assert not list(folder.glob(".*"))


def test_an_interrupt_in_the_second_batch_keeps_the_first(
    checkpoint: Path,
    pictures: Path,
    interrupt_call: Callable[[Any, str, int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tune_rescon.inference import model as predicting

    interrupt_call(predicting, "pixels", 2)
    assert predict([str(checkpoint), str(pictures), "--json", "--batch-size", "2"]) == 130
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["0.png", "1.png"]


def test_the_page_grows_with_every_batch(one_module_checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    from tune_rescon.training import load_trained

    network, about = load_trained(one_module_checkpoint)
    batches = [
        Pictures(paths=(pictures / f"{n}.png",), images_BHWC=np.zeros((1, 16, 16, 3), np.uint8))
        for n in range(2)
    ]
    drawing = masks.draw_gallery(network, about, batches, tmp_path)
    paths = [next(drawing), next(drawing)]
    assert [path.name for path in paths] == ["0.png", "1.png"]
    assert (tmp_path / "index.html").read_text().count("<figure>") == 1
    drawing.close()
    assert (tmp_path / "index.html").read_text().count("<figure>") == 2


@pytest.mark.parametrize("learning", ["arl", "nal"])
def test_maps_are_means_over_channels_and_no_features_are_kept(learning: str) -> None:
    config = TrialConfig(depth=56, width=0.125, image_size=16, attention_learning=learning)
    network = build_from_spec(resolve_network(config, classes=3, in_channels=3)).eval()
    inputs: dict[str, Tensor] = {}
    kept: list[torch.Size] = []

    def find_features(*_: object) -> None:
        tensors = [value for value in gc.get_objects() if isinstance(value, Tensor)]
        kept.extend(value.shape for value in tensors if value.ndim == 4 and len(value) == len(pixels_BCHW))

    pixels_BCHW = torch.rand(5, 3, 16, 16)
    for name, module in network.named_modules():
        if isinstance(module, AttentionModule):
            module.register_forward_pre_hook(
                lambda _, given, name=name: inputs.update({name: given[0].clone()})
            )
    expected = {}
    with torch.no_grad():
        network(pixels_BCHW)
        for name, input_BCHW in inputs.items():
            module = network.get_submodule(name)
            assert isinstance(module, AttentionModule)
            x_BCHW = module.pre(input_BCHW)
            trunk_BCHW = module.trunk(x_BCHW)
            mask_BCHW = module.mask(x_BCHW, trunk_BCHW)
            masked_BCHW = mask_BCHW * trunk_BCHW + (trunk_BCHW if learning == "arl" else 0)
            expected[name] = [maps.mean(1).numpy() for maps in (trunk_BCHW, mask_BCHW, masked_BCHW)]
    del x_BCHW, trunk_BCHW, mask_BCHW, masked_BCHW, input_BCHW
    for module in network.modules():
        module._forward_pre_hooks.clear()
    inputs.clear()
    network.classifier.register_forward_pre_hook(find_features)
    found = masks.attention_maps(network, pixels_BCHW)
    assert [module.name for module in found] == list(expected)
    for maps in found:
        for ours, theirs in zip(
            (maps.trunk_BHW, maps.mask_BHW, maps.masked_BHW), expected[maps.name], strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert kept == [pixels_BCHW.shape]


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_the_overlay_covers_the_region_seen_by_the_network(resize: str, tmp_path: Path) -> None:
    photograph = Image.new("RGB", (120, 80), (0, 0, 255))
    mask_HW = np.zeros((3, 3), np.float32)
    mask_HW[1, 1] = 1
    path = tmp_path / "a.jpg"
    draw_overlay(path, photograph, mask_HW, input_box((120, 80), resize))
    with Image.open(path) as image:
        drawn = np.asarray(image).astype(int)
    assert drawn.shape == (80, 120, 3)
    red = drawn[..., 0]
    assert np.unravel_index(red.argmax(), red.shape) == pytest.approx((40, 60), abs=12)
    assert red[40, 60] > 100
    outside = drawn[:, :18]
    assert (abs(outside - (0, 0, 255)).max() < 20) == (resize == "crop")


def test_a_panorama_wider_than_a_jpeg_is_scaled_down(tmp_path: Path) -> None:
    mask_HW = np.eye(3, dtype=np.float32)
    draw_overlay(tmp_path / "a.jpg", Image.new("RGB", (70_000, 20)), mask_HW, input_box((70_000, 20)))
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.size == (65_500, 19)


def test_a_picture_of_any_number_of_pixels_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's bound, 179 million pixels, ended `predict --masks` in a traceback."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    photograph = Image.new("RGB", (40, 30), "white")
    draw_overlay(tmp_path / "a.jpg", photograph, np.ones((3, 3), np.float32), input_box((40, 30)))
    monkeypatch.undo()
    with Image.open(tmp_path / "a.jpg") as image:
        covered = (np.asarray(image.convert("L")) < 190).any(axis=0)
    assert np.flatnonzero(covered).tolist() == [*range(5, 35)], "the centre square"


@pytest.mark.parametrize(
    ("size", "covered"),
    [((4, 1), [1]), ((6, 1), [2]), ((1, 4), [1]), ((2000, 1), [999]), ((7, 2), [2, 3])],
    ids=str,
)
def test_a_picture_whose_square_begins_between_two_pixels(
    size: tuple[int, int], covered: list[int], tmp_path: Path
) -> None:
    """The square of a picture one pixel high is one pixel, which the mask must cover."""
    path = tmp_path / "a.jpg"
    draw_overlay(path, Image.new("RGB", size, "white"), np.ones((3, 3), np.float32), input_box(size))
    with Image.open(path) as image:
        grey_HW = np.asarray(image.convert("L"))
    assert grey_HW.shape[::-1] == size
    line = grey_HW.min(axis=int(size[0] < size[1]))
    assert np.flatnonzero(line < 190).tolist() == covered


def test_seen_box_follows_the_resize_mode() -> None:
    assert input_box((20, 30)) == (0, 5, 20, 25)
    assert input_box((20, 30), "pad") == (-5, 0, 25, 30)
    assert (
        input_box((7, 7), "crop") == input_box((7, 7), "pad") == input_box((7, 7), "squash") == (0, 0, 7, 7)
    )
    with pytest.raises(ConfigError, match="unknown resize 'stretch'; known: crop, pad, squash"):
        input_box((7, 7), "stretch")


def test_photographs_are_upright_and_keep_their_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(path, exif=exif)
    photograph = load_photograph(path)
    assert (photograph.size, photograph.mode) == ((20, 40), "RGB")
    for invalid_exif in (b"Exif\0\0no TIFF at all", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM"):
        Image.new("RGB", (40, 20), "red").save(path, exif=invalid_exif)
        assert load_photograph(path).size == (40, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_matches_pillow(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(np.asarray(load_photograph(path)), expected)


def test_high_bit_depth_and_transparent_images_are_shown(tmp_path: Path) -> None:
    deep = tmp_path / "deep.png"
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(deep)
    levels = np.asarray(load_photograph(deep, (0.0, 599.0)))
    assert (levels.min(), levels.max()) == (0, 255)
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(clear)
    assert np.asarray(load_photograph(clear)).min() == 255


def test_an_unsupported_image_format_is_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "a.jpg", io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, format="EPS")
    path.write_bytes(data.getvalue())
    with pytest.raises(BadImageError, match="not an image in a format that is read"):
        load_photograph(path)

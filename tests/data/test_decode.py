"""Any picture becomes one upright RGB square; a broken one says so."""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tune_rescon.data.decode import BadImageError, SizesDifferError, decode_block, decode_image, probe_size

RED = (200, 30, 40)


def encode(image: Image.Image, kind: str, **settings: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def gradient(width: int = 24, height: int = 16) -> Image.Image:
    """Every corner tells itself from the others."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def half_clear(mode: str) -> Image.Image:
    """Opaque left half, fully transparent right half, over a colour that must not show."""
    alpha = Image.new("L", (16, 16), 0)
    alpha.paste(255, (0, 0, 8, 16))
    image = Image.new("L" if mode == "LA" else "RGB", (16, 16), 100 if mode == "LA" else RED)
    image.putalpha(alpha)
    return image.quantize() if mode == "P" else image


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_colour(kind: str) -> None:
    settings = {"lossless": True} if kind == "WEBP" else {"quality": 100}
    image = decode_image(encode(Image.new("RGB", (16, 16), RED), kind, **settings), 16)
    assert image.shape == (16, 16, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - RED).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("L", (16, 16), 77), "PNG", (77, 77, 77)),
        (Image.new("L", (16, 16), 77), "JPEG", (77, 77, 77)),
        (Image.new("1", (16, 16), 1), "PNG", (255, 255, 255)),
        (Image.new("I;16", (16, 16), 0xAB12), "PNG", (0xAB,) * 3),
        (Image.new("RGB", (16, 16), RED).quantize(), "PNG", RED),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("RGBA", (16, 16), (*RED, 255)), "PNG", RED),
    ],
    ids=["grey", "grey jpeg", "bilevel", "16 bit", "palette", "cmyk", "opaque"],
)
def test_mode(image: Image.Image, kind: str, expected: tuple[int, int, int]) -> None:
    assert np.abs(decode_image(encode(image, kind), 16).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_is_white(mode: str) -> None:
    image = decode_image(encode(half_clear(mode), "PNG"), 16)
    assert (image[:, 8:] == 255).all()
    assert (image[:, :8] < 255).any(-1).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_upright(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = gradient()
    turns = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for turn in turns[orientation]:
        stored = stored.transpose(turn)
    data = encode(stored, "PNG", exif=exif)
    assert np.array_equal(decode_image(data, 16), decode_image(encode(upright, "PNG"), 16))
    (tmp_path / "x.png").write_bytes(data)
    assert probe_size(tmp_path, "x.png") == upright.size


def test_shorter_side_is_scaled_and_the_middle_kept() -> None:
    image = np.zeros((30, 90, 3), dtype=np.uint8)
    image[:, 30:60] = 255
    assert (decode_image(encode(Image.fromarray(image), "PNG"), 15)[:, 1:-1] == 255).all()


def test_a_large_jpeg_is_scaled_while_decoding_and_stays_the_same_picture() -> None:
    large = gradient(1024, 1024)
    exact = np.asarray(large.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    found = decode_image(encode(large, "JPEG", quality=95), 32).astype(int)
    assert np.abs(found - exact).mean() < 2


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, (0, 0, 255))]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert (decode_image(data, 16) == RED).all()


def _noise(side: int) -> Image.Image:
    pixels: npt.NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
def test_cut_short(kind: str, share: float) -> None:
    data = encode(_noise(64), kind)
    with pytest.raises(BadImageError, match=r"."):
        decode_image(data[: int(share * len(data))], 32)


@pytest.mark.parametrize(
    "data", [b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(50), b"\xff\xd8\xff" + bytes(50)]
)
def test_no_image(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"."):
        decode_image(data, 16)
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(BadImageError, match=r"."):
        probe_size(tmp_path, "x.png")


def test_a_block_names_its_bad_images(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(encode(_noise(16), "PNG"))
    (tmp_path / "bad.png").write_bytes(b"no")
    names = ("bad.png", "good.png", "gone.png")
    block = decode_block(tmp_path, names, first_row=5, side=16, size=None)
    assert [(bad.row, bad.name) for bad in block.bad] == [(5, "bad.png"), (7, "gone.png")]
    assert np.array_equal(block.images_BHWC[1], np.asarray(_noise(16)))
    assert not block.images_BHWC[[0, 2]].any()


def test_a_block_of_one_size_refuses_another(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(_noise(16), "PNG"))
    with pytest.raises(SizesDifferError):
        decode_block(tmp_path, ("a.png",), first_row=0, side=32, size=(32, 32))


@given(st.binary(max_size=8), st.floats(0, 1), st.sampled_from(["PNG", "WEBP", "JPEG"]))
def test_damaged_bytes_decode_or_are_bad_and_nothing_else(damage: bytes, place: float, kind: str) -> None:
    data = _encoded_noise(kind)
    at = int(place * len(data))
    with warnings.catch_warnings(), contextlib.suppress(BadImageError):
        warnings.filterwarnings("ignore", module="PIL")
        assert decode_image(data[:at] + damage + data[at + len(damage) :], 16).shape == (16, 16, 3)


@cache
def _encoded_noise(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(_noise(24), kind, exif=exif)

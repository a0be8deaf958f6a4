"""The resize modes, and the scaling of images with more than 8 bits."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import OpenFolder, encode
from tune_rescon.config import TrialConfig
from tune_rescon.data.decode import (
    BadImageError,
    darkness_message,
    decode_image,
    levels_of,
    stored_size,
    to_bytes,
)


def three_squares() -> Image.Image:
    """Return a 60 x 20 image: a red, a green and a blue square from left to right."""
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    for channel in range(3):
        pixels[:, 20 * channel : 20 * (channel + 1), channel] = 255
    return Image.fromarray(pixels)


def gray_gradient(low: int, high: int, side: int = 16) -> Image.Image:
    """Return a horizontal gradient of 16-bit values."""
    row = np.linspace(low, high, side).round().astype(np.uint16)
    return Image.fromarray(np.tile(row, (side, 1)))


def save(root: Path, name: str, image: Image.Image) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def test_crop_keeps_the_centre() -> None:
    assert (decode_image(encode(three_squares()), 20) == (0, 255, 0)).all()


def test_pad_keeps_the_whole_image_and_adds_black() -> None:
    found = decode_image(encode(three_squares()), 60, resize="pad")
    assert (found[:20] == 0).all()
    assert (found[40:] == 0).all()
    assert np.array_equal(found[20:40], np.asarray(three_squares()))


def test_squash_keeps_the_whole_image() -> None:
    found = decode_image(encode(three_squares()), 21, resize="squash")
    for channel, column in enumerate((2, 10, 18)):
        assert (found[:, column, channel] == 255).all()


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_a_line_of_pixels_becomes_a_square(resize: str) -> None:
    line = Image.new("RGB", (400, 1), (10, 20, 30))
    assert decode_image(encode(line), 16, resize=resize).shape == (16, 16, 3)


def test_stored_size_is_at_most_the_image_size() -> None:
    assert stored_size((300, 200), 448) == (200, (300, 200))
    assert stored_size((300, 200), 448, "pad") == (300, (300, 200))
    assert stored_size((900, 700), 448) == (448, None)
    assert stored_size((300, 200), None, "pad") == (256, None)


def test_values_of_12_bits_are_scaled_by_their_own_range() -> None:
    image = gray_gradient(0, 4095)
    assert levels_of(image) == (0, 4095)
    found = np.asarray(to_bytes(image, (0, 4095)))
    assert (found.min(), found.max()) == (0, 255)
    assert np.abs(found[0].astype(int) - np.linspace(0, 255, 16)).max() <= 1


def test_nan_and_infinite_values_become_black_or_white() -> None:
    values = np.array([[np.nan, np.inf], [-np.inf, 5.0]], dtype=np.float32)
    image = Image.fromarray(values)
    assert levels_of(image) == (5, 5)
    assert np.asarray(to_bytes(image, (0.0, 10.0))).tolist() == [[0, 255], [0, 128]]


def test_values_outside_the_range_are_clipped() -> None:
    assert np.asarray(to_bytes(gray_gradient(0, 65535), (1000, 2000)))[0].tolist() == [0] + [255] * 15


def test_a_picture_without_a_finite_value_is_bad() -> None:
    empty = Image.fromarray(np.full((16, 16), np.nan, dtype=np.float32))
    with pytest.raises(BadImageError, match="no finite value"):
        decode_image(encode(empty, "TIFF"), 16)


def test_the_default_range_is_that_of_the_dtype() -> None:
    assert decode_image(encode(gray_gradient(0, 65535)), 16).max() == 255
    halves = Image.fromarray(np.full((16, 16), 0.5, dtype=np.float32))
    assert (decode_image(encode(halves, "TIFF"), 16) == 128).all()


@pytest.mark.parametrize("image", [gray_gradient(0, 65535), Image.fromarray(np.eye(16, dtype=np.float32))])
def test_a_tiff_whose_zero_is_white_is_inverted(image: Image.Image) -> None:
    """Pillow does so itself for up to 8 bits. The tag is patched, because Pillow writes 1, black is zero."""
    data = encode(image, "TIFF")
    black_is_zero, white_is_zero = (struct.pack("<HHII", 262, 3, 1, value) for value in (1, 0))
    assert data.count(black_is_zero) == 1
    inverted = decode_image(data.replace(black_is_zero, white_is_zero), 16)
    assert np.abs(255 - decode_image(data, 16).astype(int) - inverted).max() <= 1


def test_the_range_comes_from_the_training_images(tmp_path: Path, open_folder: OpenFolder) -> None:
    root = tmp_path / "cells"
    for label, high in (("a", 1000), ("b", 4000)):
        for number in range(4):
            save(root, f"train/{label}/{number}.png", gray_gradient(0, high))
        save(root, f"val/{label}/0.png", gray_gradient(0, 60_000))
    found = open_folder(root)
    assert found.levels == (0, 4000)
    images_NHWC, labels_N = found.train.gather(np.arange(len(found.train)))
    brightest = [images_NHWC[labels_N == label].max() for label in (0, 1)]
    assert brightest == [64, 255]
    assert (found.val.gather(np.arange(2))[0].max(axis=(1, 2, 3)) == 255).all()


def test_images_of_8_bits_beside_16_bits_are_unchanged(tmp_path: Path, open_folder: OpenFolder) -> None:
    root = tmp_path / "mixed"
    for number in range(4):
        save(root, f"a/{number}.png", Image.new("L", (16, 16), 100))
        save(root, f"b/{number}.png", gray_gradient(0, 200))
    found = open_folder(root)
    images_NHWC, labels_N = found.train.gather(np.arange(len(found.train)))
    assert (images_NHWC[labels_N == 0] == 100).all()
    assert images_NHWC[labels_N == 1].max() == 255


def color_gradient(high: int, side: int = 16) -> bytes:
    """Return a PNG file with a gradient of 16-bit colors, which Pillow cannot write."""
    row = np.repeat(np.linspace(0, high, side).astype(">u2"), 3).tobytes()
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress((b"\0" + row) * side)),
        (b"IEND", b""),
    )
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("high", "is_reported"), [(4095, True), (65535, False)])
def test_nearly_black_pictures_are_reported(
    high: int, is_reported: bool, tmp_path: Path, open_folder: OpenFolder
) -> None:
    """Colors of 12 bits are nearly black, because Pillow reads the upper 8 of 16 bits."""
    root = tmp_path / "cells"
    for number in range(8):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(color_gradient(high))
    found = open_folder(root)
    assert found.levels is None
    message = darkness_message(found.mean, found.std)
    assert (message is not None) == is_reported
    assert message is None or "nearly black: hardly a value is above 21 of 255" in message


def test_each_resize_mode_has_its_own_cache(tmp_path: Path, open_folder: OpenFolder) -> None:
    root = tmp_path / "wide"
    for label in "ab":
        for number in range(4):
            save(root, f"{label}/{number}.png", three_squares())
    sides = {resize: open_folder(root, resize=resize).stored_side for resize in ("crop", "pad", "squash")}
    assert sides == {"crop": 20, "pad": 60, "squash": 20}
    assert open_folder(root).preprocessing(TrialConfig(), 32).resize == "crop"
    assert open_folder(root, resize="pad").preprocessing(TrialConfig(), 32).resize == "pad"

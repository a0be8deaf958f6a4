"""An image is decoded to an upright RGB square; a broken one raises BadImageError."""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.conftest import encode
from tune_rescon.data.decode import BadImageError, SizesDifferError, decode_block, decode_image, probe_size
from tune_rescon.data.opening import FORMATS

RED = (200, 30, 40)


def gradient(width: int = 24, height: int = 16) -> Image.Image:
    """Return an image with four different corners."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def half_transparent(mode: str) -> Image.Image:
    """Return an image with an opaque left half and a fully transparent right half."""
    alpha = Image.new("L", (16, 16), 0)
    alpha.paste(255, (0, 0, 8, 16))
    image = Image.new("L" if mode == "LA" else "RGB", (16, 16), 100 if mode == "LA" else RED)
    image.putalpha(alpha)
    return image.quantize() if mode == "P" else image


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_colours_are_kept(kind: str) -> None:
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
def test_each_mode_is_converted_to_rgb(image: Image.Image, kind: str, expected: tuple[int, int, int]) -> None:
    assert np.abs(decode_image(encode(image, kind), 16).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(mode: str) -> None:
    image = decode_image(encode(half_transparent(mode), "PNG"), 16)
    assert (image[:, 8:] == 255).all()
    assert (image[:, :8] < 255).any(-1).all()


@pytest.mark.parametrize("alpha", [0, 255])
def test_a_bmp_whose_alpha_is_0_everywhere_is_opaque(alpha: int) -> None:
    """Programs that leave the alpha of a BMP unset write such files, and viewers show their colours."""
    assert (decode_image(bmp_with_alpha([alpha] * 256), 16) == RED).all()


def test_a_bmp_with_a_transparent_half_has_a_white_one() -> None:
    image = decode_image(bmp_with_alpha([255] * 128 + [0] * 128), 16)
    assert (image[:8] == 255).all(), "the rows of a BMP are stored from the bottom up"
    assert (image[8:] == RED).all()


def bmp_with_alpha(alpha: Sequence[int]) -> bytes:
    """Return a red BMP of 16 x 16 pixels whose header declares an alpha; Pillow itself writes none."""
    pixels = b"".join(bytes([*RED[::-1], value]) for value in alpha)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 16, 16, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    header += masks + b"BGRs" + bytes(48)
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = gradient()
    transposes = {
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
    for transpose in transposes[orientation]:
        stored = stored.transpose(transpose)
    data = encode(stored, "PNG", exif=exif)
    assert np.array_equal(decode_image(data, 16), decode_image(encode(upright, "PNG"), 16))
    (tmp_path / "x.png").write_bytes(data)
    assert probe_size(tmp_path, "x.png") == upright.size


def test_shorter_side_is_scaled_and_the_middle_kept() -> None:
    image = np.zeros((30, 90, 3), dtype=np.uint8)
    image[:, 30:60] = 255
    assert (decode_image(encode(Image.fromarray(image), "PNG"), 15)[:, 1:-1] == 255).all()


def test_a_large_jpeg_is_scaled_while_decoding_without_visible_change() -> None:
    large = gradient(1024, 1024)
    exact = np.asarray(large.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    found = decode_image(encode(large, "JPEG", quality=95), 32).astype(int)
    assert np.abs(found - exact).mean() < 2


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, (0, 0, 255))]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert (decode_image(data, 16) == RED).all()


def noise(side: int) -> Image.Image:
    pixels: npt.NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.9])
def test_a_truncated_image_is_bad(kind: str, fraction: float) -> None:
    data = encode(noise(64), kind)
    with pytest.raises(BadImageError, match=r"."):
        decode_image(data[: int(fraction * len(data))], 32)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {"compress_level": 0}),
        ("WEBP", {"quality": 95}),
        ("WEBP", {"lossless": True}),
    ],
)
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9])
def test_zeros_in_place_of_the_missing_end_do_not_make_an_image_whole(
    kind: str, settings: dict[str, Any], fraction: float
) -> None:
    """A copy that was interrupted may have its final size. Zeros after a whole image do no harm."""
    data = encode(noise(400), kind, **settings)
    kept = data[: int(fraction * len(data))]
    with pytest.raises(BadImageError, match=r"."):
        decode_image(kept + bytes(len(data) - len(kept)), 32)
    assert np.array_equal(decode_image(data + bytes(100), 32), decode_image(data, 32))


def test_a_webp_may_end_in_the_zeros_of_its_exif_data() -> None:
    exif = exif_block(orientation_entry(3, b"\x03\0")) + bytes(5000)
    plain, data = (encode(gradient(), "WEBP", lossless=True, **found) for found in ({}, {"exif": exif}))
    assert data.endswith(bytes(5000))
    assert np.array_equal(decode_image(data, 16), decode_image(plain, 16)[::-1, ::-1])


@pytest.mark.parametrize("kind", ["BMP", "PPM", "TIFF"])
@pytest.mark.parametrize(("kept", "is_reported"), [(8192, True), (8000, False)])
def test_zeros_that_begin_with_a_page_are_reported(
    kind: str, kept: int, is_reported: bool, tmp_path: Path
) -> None:
    """The zeros of a picture that is not compressed may be black pixels."""
    data = encode(noise(64), kind)
    assert data[kept - 1] != 0
    (tmp_path / "cut").write_bytes(data[:kept] + bytes(len(data) - kept))
    (tmp_path / "whole").write_bytes(data)
    block = decode_block(tmp_path, ("whole", "cut"), first_row=5, side=64, size=None)
    assert block.bad == ()
    assert block.zero_ends == ((6,) if is_reported else ())


@pytest.mark.parametrize(
    "data", [b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(50), b"\xff\xd8\xff" + bytes(50)]
)
def test_bytes_that_are_no_image_are_bad(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"."):
        decode_image(data, 16)
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(BadImageError, match=r"."):
        probe_size(tmp_path, "x.png")


def test_a_block_names_its_bad_images(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(encode(noise(16), "PNG"))
    (tmp_path / "bad.png").write_bytes(b"no")
    names = ("bad.png", "good.png", "gone.png")
    block = decode_block(tmp_path, names, first_row=5, side=16, size=None)
    assert [(bad.row, bad.name) for bad in block.bad] == [(5, "bad.png"), (7, "gone.png")]
    assert np.array_equal(block.images_BHWC[1], np.asarray(noise(16)))
    assert not block.images_BHWC[[0, 2]].any()


def test_a_block_of_one_size_refuses_another(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(noise(16), "PNG"))
    with pytest.raises(SizesDifferError):
        decode_block(tmp_path, ("a.png",), first_row=0, side=32, size=(32, 32))


@given(st.binary(max_size=8), st.floats(0, 1), st.sampled_from(["PNG", "WEBP", "JPEG"]))
def test_damaged_bytes_decode_or_raise_bad_image_error(damage: bytes, position: float, kind: str) -> None:
    data = _encoded_noise(kind)
    start = int(position * len(data))
    with warnings.catch_warnings(), contextlib.suppress(BadImageError):
        warnings.filterwarnings("ignore", module="PIL")
        assert decode_image(data[:start] + damage + data[start + len(damage) :], 16).shape == (16, 16, 3)


@cache
def _encoded_noise(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(noise(24), kind, exif=exif)


def exif_block(*entries: bytes) -> bytes:
    """Return an EXIF block of raw little-endian entries. Pillow cannot write invalid ones."""
    count = struct.pack("<H", len(entries))
    return b"Exif\0\0II*\0\x08\0\0\0" + count + b"".join(entries) + struct.pack("<I", 0)


def orientation_entry(kind: int, value: bytes) -> bytes:
    """Return an orientation entry with one value of EXIF type ``kind``."""
    return struct.pack("<HHI", 0x0112, kind, 1) + value.ljust(4, b"\0")


EXIF_CASES = {
    # A valid orientation, and a resolution whose value is beyond the end of the block.
    "signed rational": (
        exif_block(orientation_entry(3, b"\x06\0"), struct.pack("<HHII", 0x011A, 10, 1, 38), b"\xff" * 8),
        None,
    ),
    "orientation 0/0": (exif_block(struct.pack("<HHII", 0x0112, 5, 1, 38)) + b"\0" * 8, 1),
    "orientation undefined": (exif_block(orientation_entry(7, b"\x06")), 1),
    "orientation as bytes": (exif_block(orientation_entry(1, b"\x06")), None),
    "orientation 9": (exif_block(orientation_entry(3, b"\x09\0")), 1),
    "no TIFF": (b"Exif\0\0this is no TIFF", 1),
    "empty": (b"", 1),
    "truncated": (exif_block(orientation_entry(3, b"\x06\0"))[:20], 1),
}


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("case", EXIF_CASES)
def test_odd_exif_never_makes_an_image_bad(case: str, kind: str) -> None:
    block, orientation = EXIF_CASES[case]
    settings = {"lossless": True} if kind == "WEBP" else {}
    plain = encode(gradient(), kind, **settings)
    found = decode_image(encode(gradient(), kind, exif=block, **settings), 16)
    if orientation == 1:
        assert np.array_equal(found, decode_image(plain, 16))
    assert found.shape == (16, 16, 3)


def test_the_orientation_is_read_beside_damaged_exif_entries() -> None:
    """Pillow cannot write a negative rational, so the rotation must not write the EXIF data again."""
    resolution = struct.pack("<HHII", 0x011A, 5, 1, 38)
    block = exif_block(orientation_entry(3, b"\x03\0"), resolution) + struct.pack("<ii", -72, 1)
    turned = gradient().transpose(Image.Transpose.ROTATE_180)
    found = decode_image(encode(turned, "PNG", exif=block), 16)
    assert np.array_equal(found, decode_image(encode(gradient(), "PNG"), 16))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_tiff_is_rotated_only_once(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    transposes = {
        1: None,
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }
    transpose = transposes[orientation]
    stored = gradient() if transpose is None else gradient().transpose(transpose)
    (tmp_path / "x.tif").write_bytes(encode(stored, "TIFF", exif=exif))
    assert probe_size(tmp_path, "x.tif") == gradient().size
    found = decode_image((tmp_path / "x.tif").read_bytes(), 16)
    assert np.array_equal(found, decode_image(encode(gradient(), "PNG"), 16))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_decoded(kind: str) -> None:
    settings = {"lossless": True} if kind == "WEBP" else {}
    found = decode_image(encode(Image.new("RGB", (16, 16), RED), kind, **settings), 16).astype(int)
    assert np.abs(found - RED).max() <= 8


def test_decoding_starts_no_other_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would run Ghostscript for an EPS file, whatever its suffix."""
    marker = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {marker}\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(BadImageError, match="not an image in a format that is read"):
        decode_image(encode(Image.new("RGB", (16, 16), RED), "EPS"), 16)
    assert not marker.exists()


def test_an_error_message_contains_no_memory_address() -> None:
    with pytest.raises(BadImageError) as caught:
        decode_image(b"no image", 16)
    assert " at 0x" not in str(caught.value)


def test_an_image_above_pillows_pixel_limit_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode_image(encode(gradient(40, 40), "PNG"), 16).shape == (16, 16, 3)
    assert Image.MAX_IMAGE_PIXELS == 100, "the process-wide limit must not change"


def test_an_image_too_large_for_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_rescon.data.opening.most_pixels", lambda: 1000)
    with pytest.raises(BadImageError, match="40 x 40 pixels; this machine's memory allows"):
        decode_image(encode(gradient(40, 40), "PNG"), 16)

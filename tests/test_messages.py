"""No message contains the memory address of an object, also not in a quoted message of a library."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tune_rescon.command import print_line
from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import decode_image
from tune_rescon.data.decode import BadImageError, decode_block
from tune_rescon.errors import UserError, format_error, presentable, unknown_name_message
from tune_rescon.models import load_rescon
from tune_rescon.storage import local_file
from tune_rescon.storage.remote import RemoteError
from tune_rescon.training import load_trained
from tune_rescon.training.initial_weights import read_initial
from tune_rescon.training.weights import load_exported

pytestmark = pytest.mark.torch

#: An object with the default repr.
OBJECT: Any = object()


def assert_no_address(text: str) -> None:
    assert " at 0x" not in text, text


def _file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _pickled(folder: Path, value: object) -> Path:
    path = folder / "a.ckpt"
    torch.save(value, path)
    return path


#: Each call raises an error with a message for the user.
BAD_CALLS: dict[str, Callable[[Path], object]] = {
    "no image": lambda _: decode_image(b"no image at all", 16),
    "an empty image": lambda _: decode_image(b"", 16),
    "no checkpoint": lambda folder: load_trained(_file(folder, "a.ckpt", b"nothing")),
    "no weights": lambda folder: read_initial(str(_file(folder, "a.ckpt", b"nothing"))),
    "a list of weights": lambda folder: read_initial(str(_pickled(folder, [1]))),
    "no safetensors": lambda folder: load_exported(_file(folder, "a.safetensors", b"nothing"), where="MODEL"),
    "an object as state dict": lambda _: load_rescon(OBJECT),
    "an object in a state dict": lambda _: load_rescon({"net": OBJECT, OBJECT: 1}),
    "an object as rate": lambda _: TrialConfig(learning_rate=OBJECT),
    "an object as attention": lambda _: TrialConfig(attention=OBJECT),
    "an object as dataset": lambda _: DatasetConfig(name=OBJECT),
    "an object as limit": lambda _: DatasetConfig(limit=OBJECT),
    "a storage of no kind": lambda _: local_file("nosuch://bucket/a.ckpt").__enter__(),
    "no server": lambda _: local_file("http://127.0.0.1:9/a.ckpt").__enter__(),
}


@pytest.mark.parametrize("kind", BAD_CALLS)
def test_bad_input_errors_contain_no_memory_address(kind: str, tmp_path: Path) -> None:
    with pytest.raises((UserError, BadImageError, RemoteError)) as error:
        BAD_CALLS[kind](tmp_path)
    assert_no_address(str(error.value))


def test_skipped_images_are_reported_without_a_memory_address(tmp_path: Path) -> None:
    _file(tmp_path, "a.png", b"no image")
    (skipped,) = decode_block(tmp_path, ("a.png",), first_row=0, side=16, size=None).bad
    assert_no_address(skipped.reason)
    assert skipped.reason == (
        "not an image in a format that is read (JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, PPM, JPEG2000), or of"
        " a kind that Pillow does not read, such as floats of 64 bits"
    )


def test_quoted_objects_are_shown_without_a_memory_address(capsys: pytest.CaptureFixture[str]) -> None:
    object_repr = repr(io.BytesIO())
    assert " at 0x" in object_repr
    print_line(f"failed: {object_repr}")
    for text in (
        format_error("must be a number", got=object_repr, hint=object_repr),
        unknown_name_message("metric", object_repr, ["a"]),
        unknown_name_message("metric", OBJECT, ["a"]),
        presentable(f"HTTPConnectionPool(NewConnectionError('{object_repr}: refused'))"),
        capsys.readouterr().out,
    ):
        assert_no_address(text)
        assert "object" in text

"""No message has the memory address of an object or the password of a URL, not even in a quoted message."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import torch
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.command import print_line
from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import decode_image
from tune_rescon.data.decode import BadImageError, decode_block
from tune_rescon.errors import (
    UserError,
    format_error,
    has_password,
    hide_passwords,
    presentable,
    unknown_name_message,
    without_password,
)
from tune_rescon.models import load_rescon
from tune_rescon.storage import local_file
from tune_rescon.storage.remote import RemoteError
from tune_rescon.training import load_trained
from tune_rescon.training.initial_weights import read_initial
from tune_rescon.training.weights import load_exported

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


@pytest.mark.torch
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


WITH_PASSWORD = {
    "http://ann:s3cret@mlflow:5000": "http://ann:***@mlflow:5000",
    "HTTPS://ann:s3cret@mlflow": "HTTPS://ann:***@mlflow",
    "http://ann:12345@mlflow": "http://ann:***@mlflow",
    "http://ann:s3/c@ret@mlflow:5000/api": "http://ann:***@mlflow:5000/api",
    "http://:s3cret@mlflow": "http://:***@mlflow",
    "postgresql+psycopg://ann:s3/c:r@et@db:5432/x": "postgresql+psycopg://ann:***@db:5432/x",
    "postgresql://db/x?user=ann&password=s3cret&a=b": "postgresql://db/x?user=ann&password=***&a=b",
    "mysql://ann:s%40cret@db/x": "mysql://ann:***@db/x",
    "s3://key:s3cret@bucket/path": "s3://key:***@bucket/path",
    "https://s3cret@mlflow:5000/api": "https://***@mlflow:5000/api",
    "mssql+pyodbc:///?odbc_connect=PWD%3Ds3cret&a=b": "mssql+pyodbc:///?odbc_connect=PWD%3D***&a=b",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7BODBC+18%7D%3BPWD%3D%7Bs3%3Bcret%7D%3BUID%3Dsa&a=b": (
        "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7BODBC+18%7D%3BPWD%3D***%3BUID%3Dsa&a=b"
    ),
    "mssql+pyodbc:///?odbc_connect=DRIVER={ODBC};Pwd={s3;}}cret};UID=sa": (
        "mssql+pyodbc:///?odbc_connect=DRIVER={ODBC};Pwd=***;UID=sa"
    ),
}

WITHOUT_PASSWORD = (
    "http://localhost:5000",
    "http://localhost:5000/#/models/a@champion",
    "PWD=/home/ann",
    "set pwd=here, or password = there",
    "models:/att92@champion",
    "sqlite:////runs/a:b@c/study.db",
    "sqlite:///runs/study.db?mode=ro",
    "postgresql://ann@db/x",
    "see http://localhost:5000, or write to ann@there",
    "10:30 ann@there",
)


@pytest.mark.parametrize(("url", "expected"), WITH_PASSWORD.items())
def test_a_password_is_hidden_anywhere_in_a_url(url: str, expected: str) -> None:
    assert hide_passwords(url) == expected
    assert hide_passwords(f"no answer from '{url}' (n = 2)") == f"no answer from '{expected}' (n = 2)"
    assert has_password(url)
    assert format_error("must be a URL", got=url) == f"must be a URL, but got {expected}."
    original = without_password(url)
    assert not has_password(original)
    assert "s3cret" not in original
    assert "***" not in original


@pytest.mark.parametrize("text", WITHOUT_PASSWORD)
def test_a_text_without_a_password_is_not_changed(text: str) -> None:
    assert hide_passwords(text) == text
    assert not has_password(text)


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1), st.sampled_from(["", ":5432"])
)
def test_database_passwords_are_always_hidden(password: str, port: str) -> None:
    hidden = f"S{password}S"
    url = f"postgresql://ann:{hidden}@db{port}/studies"
    assert hide_passwords(f"at {url} now") == f"at postgresql://ann:***@db{port}/studies now"
    url_object = sqlalchemy.URL.create("postgresql", "ann", hidden, "db", database="studies")
    assert hide_passwords(url_object.render_as_string(hide_password=False)) == url_object.render_as_string()

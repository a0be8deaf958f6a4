"""Passwords in URLs: hidden in any text, and left out of what is recorded."""

from __future__ import annotations

import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.errors import format_error, has_password, hide_passwords, without_password

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

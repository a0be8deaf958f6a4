"""The first line of a command, which is printed before slow imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune_rescon.reporting.console import opening_line
from tune_rescon.spaces import load_space
from tune_rescon.storage import parse_storage
from tune_rescon.tuning import RunOptions


@pytest.mark.parametrize(
    ("overrides", "options", "expected"),
    [
        (
            [],
            RunOptions(name="s", storage=Path("/r")),
            "s: preparing the data, then starting Ray on this machine, 2 workers; MLflow at /r/mlflow.db",
        ),
        (
            ["budget.concurrent=1"],
            RunOptions(name="s", storage=Path("/r"), tracking_uri="http://m:5000"),
            "s: preparing the data, then starting Ray on this machine, 1 worker; MLflow at http://m:5000",
        ),
        (
            ["budget.concurrent=null"],
            RunOptions(name="s", storage=parse_storage("s3://b/r"), address="auto"),
            "s: preparing the data, then starting work on the Ray at auto, as many workers as fit; MLflow at s3://b/r/s",
        ),
    ],
)
def test_the_first_line_has_the_search_and_its_folder(
    overrides: list[str], options: RunOptions, expected: str
) -> None:
    assert opening_line(load_space("digits", overrides), options) == expected

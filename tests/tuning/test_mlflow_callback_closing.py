"""The message about the work that is left after a search's result is shown."""

from __future__ import annotations

import shlex
from pathlib import Path

from tune_rescon.report import report
from tune_rescon.tracking import Champion
from tune_rescon.tuning import RunOptions, sync_command
from tune_rescon.tuning.mlflow_callback import closing_message

OPTIONS = RunOptions(name="s", storage=Path("/a b/runs"), study_url="sqlite:///x?y")


def test_the_closing_message_has_a_command_that_can_be_pasted() -> None:
    words = shlex.split(sync_command(OPTIONS))
    assert words[:3] == ["python", "-m", "tune_rescon.report"]
    read = report.make_context("report", words[3:]).params
    assert (read["name"], read["storage"], read["study"], read["sync"]) == (
        "s",
        "/a b/runs",
        "sqlite:///x?y",
        True,
    )


def test_the_closing_message_names_the_registration_and_how_to_skip_it() -> None:
    words = closing_message(Champion(number=3, epoch=1, checkpoint="best.ckpt"), OPTIONS)
    assert "registering the model of trial_0003 in MLflow: about 10 s" in words
    assert words.endswith(f"Ctrl-C leaves MLflow for later: {sync_command(OPTIONS)}")
    assert closing_message(None, OPTIONS) == "Writing the report and completing MLflow"

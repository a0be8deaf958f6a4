"""The search's flags, which are part of the contract, and its messages about bad input."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import pytest

from tests.test_command_options import LOG_FLAGS
from tune_rescon.config import TrialState
from tune_rescon.search import main, search
from tune_rescon.spaces import dump_space, load_space
from tune_rescon.tuning import RunOptions, SearchLocation, SearchState, StudyResult, TrialCost, TrialRecord

#: `python -m tune_rescon.search`: a flag and the placeholder of its value ("": none, "...": repeatable).
SEARCH_FLAGS = {
    "--space": "NAME|FILE",
    "--name": "N",
    "--resume": "N",
    "--resume-or-start": "N",
    "--warm-start": "OTHER",
    "--init-from": "FILE",
    "--trials": "N",
    "--hours": "H",
    "--quick": "",
    "--quality": "good|best",
    "--concurrent": "N",
    "--seed": "S",
    "--storage": "DIR|URL",
    "--study": "URL",
    "--tracking-uri": "URI",
    "--data-root": "DIR",
    "--address": "ADDR",
    "--set": "KEY=VALUE...",
    "--dry-run": "",
    "--measure": "",
    "--tensorboard": "",
    "--plain": "",
}


def flags(command: click.Command) -> dict[str, str]:
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return {
        option.opts[0]: "" if option.is_flag else f"{option.metavar}{'...' if option.multiple else ''}"
        for option in options
        if option.opts[0] not in LOG_FLAGS
    }


def test_flags_match_the_contract() -> None:
    assert flags(search) == SEARCH_FLAGS


def test_help_names_every_flag_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert all(flag in output.out for flag in SEARCH_FLAGS)


def test_without_a_space_the_error_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    output = capsys.readouterr()
    assert "Give --space NAME|FILE, or --resume NAME" in output.err
    assert output.out == ""


def test_resume_refuses_a_space(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", "s", "--space", "digits"]) == 2
    assert "Leave out --space" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "b"], "Give one of --name and --resume-or-start."),
        (["--resume", "a"], "Give one of --resume and --resume-or-start."),
        ([], "Give --space NAME|FILE with --resume-or-start"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_resume_or_start_requires_a_space_and_no_other_name(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--resume-or-start", "a", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_warm_start_requires_a_search_of_the_storage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "space.yaml").touch()
    arguments = ["--space", "digits", "--dry-run", "--storage", str(tmp_path), "--warm-start"]
    assert main([*arguments, "third"]) == 2
    error = capsys.readouterr().err
    assert f"--warm-start: no search named 'third' in {tmp_path}." in error
    assert "Searches there: first, second." in error
    assert main([*arguments, "first"]) == 0


def test_resume_refuses_warm_start_and_init_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "space.yaml").write_text(dump_space(load_space("digits")))
    for flag in ("--warm-start", "--init-from"):
        assert main(["--resume", "s", "--storage", str(tmp_path), flag, "first"]) == 2
        error = capsys.readouterr().err
        assert f"a resumed search keeps what it began with, but got {flag} first." in error


def test_init_from_becomes_a_fixed_field(capsys: pytest.CaptureFixture[str]) -> None:
    fixed_section = "fixed={layout: cifar, image_size: 16}"
    arguments = [
        "--space",
        "digits",
        "--dry-run",
        "--plain",
        "--set",
        fixed_section,
        "--init-from",
        "a: b #1.ckpt",
    ]
    assert main(arguments) == 0
    assert "a: b #1.ckpt" in capsys.readouterr().out, "a --set of the section keeps the field"


@pytest.mark.parametrize(
    ("flag", "value", "expected_line"),
    [
        ("--trials", "7", "trials: 7"),
        ("--hours", "1.5", "hours: 1.5"),
        ("--concurrent", "1", "concurrent: 1"),
        ("--seed", "0", "seed: 0"),
        ("--seed", "5", "seed: 5"),
        ("--set", "fidelity.max=27", "max: 27"),
    ],
)
def test_a_flag_changes_the_space(
    flag: str, value: str, expected_line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--space", "digits", flag, value, "--dry-run", "--plain"]) == 0
    assert expected_line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "arguments", "trials"),
    [
        ({"SET": "budget.trials=7"}, ["--trials", "8"], 8),
        ({"SET": "budget.trials=7"}, ["--set", "budget.trials=8"], 8),
        ({"SET": "budget.trials=7", "TRIALS": "8"}, [], 7),
        ({"TRIALS": "8"}, ["--set", "budget.trials=7"], 7),
    ],
)
def test_a_typed_option_counts_before_all_variables(
    variables: dict[str, str],
    arguments: list[str],
    trials: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two options may change the same key of the space. Of those that were given alike, `--set` counts."""
    for name, value in variables.items():
        monkeypatch.setenv(f"TUNE_RESCON_SEARCH_{name}", value)
    assert main(["--space", "digits", *arguments, "--dry-run", "--plain"]) == 0
    assert f"trials: {trials}," in capsys.readouterr().out


def _result_of_early_end(folder: Path) -> StudyResult:
    trial = TrialRecord(
        number=0,
        state=TrialState.FINISHED,
        parameters={},
        metric="val_accuracy",
        maximize=True,
        values=(0.5,),
    )
    return StudyResult(
        name="s",
        space=load_space("digits"),
        folder=folder,
        metric="val_accuracy",
        maximize=True,
        trials=(trial,),
        costs={0: TrialCost(params_m=1, gmacs=1)},
        devices_per_trial=1,
        device="CPU",
        rungs=(1,),
        best=trial,
        best_config={},
        state=SearchState.FINISHED,
        tracking_uri="http://localhost:5000",
        pending_updates=0,
        failure="5 trials failed in a row.",
    )


def test_a_search_that_ended_early_exits_with_1_despite_a_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake_search(*_: object, on_result: Callable[[StudyResult], object], **__: object) -> StudyResult:
        result = _result_of_early_end(tmp_path)
        on_result(result)
        return result

    monkeypatch.setattr("tune_rescon.reporting.run.run_search", fake_search)
    assert main(["--space", "digits", "--plain", "--storage", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "5 trials failed in a row.\n" in output
    assert "Best: trial_0000" in output


@pytest.mark.parametrize("flag", ["--name", "--resume-or-start"])
@pytest.mark.parametrize("name", ["", "a b", "../s"])
def test_a_dry_run_refuses_a_wrong_name(flag: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--space", "digits", flag, name, "--dry-run", "--plain"]) == 2
    assert f"{flag}: must be letters, digits, `.`, `_` and `-`" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--study", "--address"])
def test_an_empty_option_is_not_given(flag: str) -> None:
    """A search with an empty --study did not send its record to a storage at a URL."""
    assert search.make_context("search", [flag, ""]).params[flag.removeprefix("--")] is None


def test_a_search_without_a_trial_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = replace(_result_of_early_end(tmp_path), trials=(), best=None, failure=None)
    monkeypatch.setattr("tune_rescon.reporting.run.run_search", lambda *_, **__: ended)
    assert main(["--space", "digits", "--plain", "--hours", "1e-9", "--storage", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "The search failed: no trial has begun.\n"


def test_the_resume_command_is_quoted_for_the_shell() -> None:
    from tune_rescon.reporting import resume_command

    study = "sqlite:////x y"
    options = RunOptions(name="s", storage=Path("/a b/runs"), study_url=study, data_root=Path("/d"))
    printed = shlex.split(resume_command(options))
    assert printed[:3] == ["python", "-m", "tune_rescon.search"]
    parsed = search.make_context("search", printed[3:]).params
    assert (parsed["resume"], parsed["storage"], parsed["study"]) == ("s", "/a b/runs", study)
    assert parsed["tracking_uri"] is None
    assert not parsed["tensorboard"]


def test_the_resume_command_has_absolute_paths_of_databases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tune_rescon.reporting import resume_command

    monkeypatch.chdir(tmp_path)
    options = RunOptions(name="s", tracking_uri="sqlite:///mlflow.db", study_url="sqlite:///studies.db")
    printed = shlex.split(resume_command(options))
    assert printed[printed.index("--tracking-uri") + 1] == f"sqlite:///{tmp_path}/mlflow.db"
    assert printed[printed.index("--study") + 1] == f"sqlite:///{tmp_path}/studies.db"


def test_the_resume_command_uses_a_variable_for_a_url_with_a_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tune_rescon.reporting import resume_command

    study, uri = "postgresql://ann:s3cret@db/studies", "http://ann:s3cret@mlflow:5000"
    options = RunOptions(name="s", storage=Path("/a b/runs"), study_url=study, tracking_uri=uri)
    command = resume_command(options)
    assert "s3cret" not in command
    monkeypatch.setenv("TUNE_RESCON_STUDY", study)
    monkeypatch.setenv("TUNE_RESCON_TRACKING_URI", uri)
    shell = f"python() {{ printf '%s\\n' \"$@\"; }}; {command}"
    process = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    parsed = search.make_context("search", process.stdout.splitlines()[2:]).params
    assert (parsed["storage"], parsed["study"], parsed["tracking_uri"]) == ("/a b/runs", study, uri)


@pytest.mark.parametrize("name", ["search", "report", "train"])
def test_the_study_url_can_come_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = getattr(importlib.import_module(f"tune_rescon.{name}"), name)
    monkeypatch.setenv("TUNE_RESCON_STUDY", "postgresql://ann@db/studies")
    assert command.make_context(name, []).params["study"] == "postgresql://ann@db/studies"
    assert SearchLocation(storage=Path("runs")).study_url == "postgresql://ann@db/studies"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--space", "digits", "--tracking-uri", "ftp://ann:s3cret@mlflow"],
        ["--space", "digits", "postgresql://ann:s3cret@db/x"],
        ["--resume", "postgresql://ann:s3cret@db/x"],
    ],
    ids=["tracking URI", "unexpected argument", "name"],
)
def test_no_error_shows_a_password(
    arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--storage", str(tmp_path / "runs"), "--plain"]) == 2
    output = "".join(capfd.readouterr())
    assert output
    assert "s3cret" not in output


def test_the_resume_command_keeps_the_tensorboard_flag() -> None:
    from tune_rescon.reporting import resume_command

    assert "--tensorboard" in resume_command(RunOptions(name="s", tensorboard=True)).split()


@pytest.mark.timeout(30)  # three interpreters are started
def test_the_module_exits_with_the_documented_codes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tune_rescon.search"]
    codes = [
        subprocess.run(
            command + extra_arguments, cwd=tmp_path, env=dict(os.environ), capture_output=True, check=False
        )
        for extra_arguments in (["--help"], [], ["--space", "nope"])
    ]
    assert [process.returncode for process in codes] == [0, 2, 2]
    assert b"Traceback" not in b"".join(process.stderr for process in codes)

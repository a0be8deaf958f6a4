"""The report's flags, which are part of the contract, and its messages about bad input."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import click
import pytest

from tests.test_command_options import LOG_FLAGS
from tune_rescon.report import main, report
from tune_rescon.spaces import load_space
from tune_rescon.testing import LANDSCAPES, SimulatedSearch, Simulation
from tune_rescon.tuning import SearchFolder

#: `python -m tune_rescon.report NAME`: a flag and the placeholder of its value ("": none, "...": repeatable).
REPORT_FLAGS = {
    "--storage": "DIR|URL",
    "--study": "URL",
    "--json": "",
    "--markdown": "",
    "--csv": "",
    "--html": "FILE",
    "--errors": "FILE",
    "--data-root": "DIR",
    "--sync": "",
    "--list": "",
    "--compare": "OTHER...",
}

pytestmark = pytest.mark.timeout(20)  # SQLite is slow on a busy disk


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a finished search and one whose driver was killed."""
    root = tmp_path_factory.mktemp("storage")
    landscape = LANDSCAPES["monotone"]
    for name, reports in (("a", None), ("b", 3)):
        settings = ("initial=[]", "budget.trials=5", "fidelity.max=3", "sampler.type=random")
        search = SimulatedSearch(load_space("att92", settings), folder=SearchFolder(storage=root, name=name))
        simulation = Simulation(lambda t: landscape.curve(t.number, t.parameters))
        simulation.drive(search.policy(), reports=reports)
    return root


def test_flags_match_the_contract() -> None:
    options = [parameter for parameter in report.params if isinstance(parameter, click.Option)]
    assert {
        o.opts[0]: "" if o.is_flag else f"{o.metavar}{'...' if o.multiple else ''}"
        for o in options
        if o.opts[0] not in LOG_FLAGS
    } == REPORT_FLAGS


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in REPORT_FLAGS)


def test_the_default_report_is_the_table_and_the_files(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["a", "--storage", str(storage)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("a: finished\n")
    assert "a: 5 trials" in text
    assert f"Files:  {storage / 'a'}" in text


def test_json_is_one_document(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["b", "--storage", str(storage), "--json", "--compare", "a", "--compare", "a"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["search"], document["state"], document["epochs"]) == ("b", "interrupted", 3)
    assert [other["search"] for other in document["compared"]] == ["a"]


def test_csv_has_one_row_per_trial(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a", "--storage", str(storage), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["trial"] for row in rows] == list("01234")


def test_markdown_and_html_output(storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a", "--storage", str(storage), "--markdown", "--compare", "b"]) == 0
    assert "## Compared" in capsys.readouterr().out
    assert main(["a", "--storage", str(storage), "--html", str(tmp_path / "a.html")]) == 0
    assert f"Report: {tmp_path / 'a.html'}" in capsys.readouterr().out
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_list_shows_every_search_and_its_state(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--storage", str(storage)]) == 0
    text = capsys.readouterr().out
    assert all(state in text for state in ("finished", "interrupted"))
    assert main(["--list", "--json", "--storage", str(storage)]) == 0
    rows_by_name = {search["name"]: search for search in json.loads(capsys.readouterr().out)}
    assert (rows_by_name["a"]["state"], rows_by_name["b"]["state"]) == ("finished", "interrupted")


def test_an_empty_storage_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--storage", str(tmp_path)]) == 0
    assert f"There is no search in {tmp_path} yet." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give the NAME of a search"),
        (["--list", "a"], "--list takes no NAME"),
        (["--list", "--csv"], "--list takes no NAME"),
        (["a", "--json", "--csv"], "Give one of --json and --csv."),
        (["--list", "--sync"], "Error: Give one of --list and --sync."),
        (["--list", "--errors", "a.html"], "Give one of --list and --errors."),
        (["a", "--sync", "--errors", "a.html"], "Give one of --sync and --errors."),
        (["a", "--sync", "--json"], "--sync takes a NAME alone."),
        (["nope"], "NAME: no search named 'nope'"),
        (["a", "--compare", "nope"], "--compare: no search named 'nope'"),
        (["a", "--html", "/no/such/folder/a.html"], "must be a file that can be written"),
        (["a", "--study", "nonsense"], "must be the URL of a database that can be reached"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_usage_is_one_paragraph(
    arguments: list[str], message: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--storage", str(storage)]) == 2
    errors = capsys.readouterr()
    assert message in errors.err
    assert "Traceback" not in errors.err
    assert "Reading None" not in errors.err

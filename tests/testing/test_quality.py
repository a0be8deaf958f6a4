"""The benchmark on recorded curves: its tables, its budgets and its output."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import quality
from contest.contestant import Library
from contest.peers import CONTESTANTS, Entry
from contest.recorded import load_table
from quality import Job, limits, main
from quality_summary import print_summary
from table import estimate

from tune_rescon.spaces.parameters import CategoricalParameter, FloatParameter, IntParameter

ROOT = Path(__file__).parents[2]
CURVES = sorted((ROOT / "benchmarks" / "curves").glob("*.csv.gz"))


@pytest.fixture(scope="module")
def small_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 configurations of 9 epochs. The best value is 0.9; larger values of ``x`` are slower."""
    path = tmp_path_factory.mktemp("curves") / "small.csv.gz"
    lines = ["x,rate,kind,depth,epoch_seconds," + ",".join(f"v_{epoch}" for epoch in range(1, 10))]
    for row in range(40):
        values = [f"{0.1 + 0.8 * (row / 39) * epoch / 9:.4f}" for epoch in range(1, 10)]
        values[8] = "" if row == 0 else values[8]
        lines.append(
            f"{row / 39},{10 ** (-4 * row / 39):.8f},{'ab'[row % 2]},{row % 12},{1 + row / 39},"
            + ",".join(values)
        )
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines) + "\n")
    return path


def test_parameters_follow_from_the_columns(small_table: Path) -> None:
    table = load_table(small_table)
    assert isinstance(table.parameters["x"], FloatParameter)
    assert not table.parameters["x"].log
    assert isinstance(table.parameters["rate"], FloatParameter)
    assert table.parameters["rate"].log
    assert isinstance(table.parameters["kind"], CategoricalParameter)
    assert isinstance(table.parameters["depth"], IntParameter)
    assert table.last == 9
    assert table.best == pytest.approx(0.9)


@pytest.mark.parametrize("path", CURVES, ids=lambda path: path.name)
def test_the_shipped_tables_are_read(path: Path) -> None:
    table = load_table(path)
    assert len(table.curves) == len(table.seconds) == len(table.rows) > 600
    assert table.best > table.curves[:, 0].mean()


def test_a_row_is_drawn_once(small_table: Path) -> None:
    table = load_table(small_table)
    parameters = {"x": 0.5, "rate": 0.01, "kind": "a", "depth": 5}
    rows: list[int] = []
    for _ in range(40):
        rows.append(table.nearest(parameters, rows))
    assert sorted(rows) == list(range(40))


#: A contestant of another library may fit a model before each trial, which takes seconds.
CONTESTANT_NAMES = [
    pytest.param(name, marks=[] if entry.needs is None else [pytest.mark.torch])
    for name, entry in CONTESTANTS.items()
]


@pytest.mark.parametrize("name", CONTESTANT_NAMES)
@pytest.mark.parametrize("budget", ["clock", "epochs"])
def test_every_contestant_searches(name: str, budget: str, small_table: Path) -> None:
    library = CONTESTANTS[name].needs
    if library is not None and not library.is_there:
        pytest.skip(f"{name} {library.missing}")
    job = Job(path=small_table, contestant=name, budgets=(budget,), seed=0, trainings=4, most=1000, workers=2)
    after_quarter, after_half, at_end = job.run()[budget]
    assert 0 <= at_end <= after_half <= after_quarter <= 90


@pytest.mark.parametrize(
    ("requirement", "is_there", "installed"),
    [
        ("numpy>=1", True, np.__version__),
        ("numpy<1", False, np.__version__),
        ("no-such-package>=1", False, "none"),
    ],
)
def test_a_library_is_available_only_in_matching_versions(
    requirement: str, is_there: bool, installed: str
) -> None:
    library = Library(requirement=requirement, install="something")
    assert library.is_there is is_there
    assert library.missing == (
        f"needs {requirement}, and {installed} is installed here: pip install something"
    )


def test_epoch_and_clock_budgets_agree_at_the_mean_epoch_time(small_table: Path) -> None:
    epochs, seconds = limits(load_table(small_table), 4, 1000, 2)
    assert epochs == 36
    assert seconds == pytest.approx(36 * 1.5 / 2)


def test_an_estimate_is_the_mean_and_its_standard_error() -> None:
    mean, error = estimate([1.0, 3.0])
    assert mean == 2.0
    assert error == pytest.approx(1.0)


def test_a_summary_ranks_those_that_searched_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    def regrets(*final_regrets: float) -> list[list[float]]:
        return [[9.0, 2 * end, end] for end in final_regrets]

    tables = {
        "a": {"ours": regrets(4, 5), "good": regrets(1, 2), "bad": regrets(6, 6), "once": regrets(3)},
        "b": {
            "ours": regrets(2, 2),
            "good": regrets(8, 8),
            "bad": regrets(9, 9),
            "once": regrets(1),
            "only here": regrets(1, 1),
        },
    }
    print_summary(tables, budget="clock", first="ours")
    lines = capsys.readouterr().out.split("\n")
    assert [line.split(" | ")[:3] for line in lines if line.startswith("| ") and "rank" not in line] == [
        ["| ours", "2.5", "2.5"],
        ["| once", "1.5", "1.5"],
        ["| good", "2.0", "2.0"],
        ["| bad", "4.0", "4.0"],
    ]
    assert [line for line in lines if line.startswith(("a:", "b:"))] == [
        "a: good is better than ours by 3.00 ± 0.00",
        "b: only here is not ranked, as it did not search every table",
        "b: only here is better than ours by 1.00 ± 0.00",
    ]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "quality.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.nightly
def test_the_command_prints_a_table_and_writes_json(small_table: Path, tmp_path: Path) -> None:
    names = ["ours, auto", "random, full trainings"]
    json_file = tmp_path / "regret.json"
    process = run(
        "--table",
        small_table,
        "--seeds",
        2,
        "--trainings",
        4,
        "--workers",
        2,
        "--json",
        json_file,
        "--contestants",
        *names,
    )
    assert process.returncode == 0, process.stderr
    assert "| ours, auto | 2 |" in process.stdout
    results = json.loads(json_file.read_text())
    assert [result["name"] for result in results] == names
    assert set(results[0]["regret"]) == {"0.25", "0.5", "1.0"}
    assert set(results[0]["regret"]["1.0"]) == {"mean", "se"}


def test_a_contestant_without_its_package_is_refused(
    small_table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = Library(requirement="no-such-package>=1", install="no-such-package")
    not_installed = Entry(make=CONTESTANTS["SMAC"].make, needs=library)
    monkeypatch.setattr(quality, "CONTESTANTS", {**CONTESTANTS, "SMAC": not_installed})
    monkeypatch.setattr(
        sys, "argv", ["quality.py", "--table", str(small_table), "--contestants", "ours, auto", "SMAC"]
    )
    with pytest.raises(SystemExit, match="2"):
        main()
    message = " ".join(capsys.readouterr().err.split())
    assert '--contestants "SMAC" needs no-such-package>=1, and none is installed here: pip install' in message


@pytest.mark.parametrize(
    ("text", "message"), [("a,b\n1,2\n", "a table has columns"), (None, "there is no such file")]
)
def test_a_file_that_is_not_a_table_is_refused(
    text: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "table.csv"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["quality.py", "--table", str(path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err

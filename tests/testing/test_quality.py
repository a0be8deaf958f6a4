"""The benchmark on recorded curves: what it reads, how it spends a budget, and what it prints."""

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
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def test_parameters_follow_from_the_columns(small: Path) -> None:
    table = load_table(small)
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


def test_a_row_is_drawn_once(small: Path) -> None:
    table = load_table(small)
    drawn = {"x": 0.5, "rate": 0.01, "kind": "a", "depth": 5}
    used: list[int] = []
    for _ in range(40):
        used.append(table.nearest(drawn, used))
    assert sorted(used) == list(range(40))


#: A contestant of another library may fit a model before each trial: that takes seconds.
SEARCHES = [
    pytest.param(name, marks=[] if entry.needs is None else [pytest.mark.torch])
    for name, entry in CONTESTANTS.items()
]


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("budget", ["clock", "epochs"])
def test_every_contestant_searches(name: str, budget: str, small: Path) -> None:
    needed = CONTESTANTS[name].needs
    if needed is not None and not needed.is_there:
        pytest.skip(f"{name} {needed.missing}")
    job = Job(path=small, contestant=name, budgets=(budget,), seed=0, trainings=4, most=1000, workers=2)
    quarter, half, end = job.run()[budget]
    assert 0 <= end <= half <= quarter <= 90


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


def test_epoch_and_clock_budgets_agree_at_the_mean_epoch_time(small: Path) -> None:
    epochs, seconds = limits(load_table(small), 4, 1000, 2)
    assert epochs == 36
    assert seconds == pytest.approx(36 * 1.5 / 2)


def test_an_estimate_is_the_mean_and_its_standard_error() -> None:
    mean, error = estimate([1.0, 3.0])
    assert mean == 2.0
    assert error == pytest.approx(1.0)


def test_a_summary_ranks_those_that_searched_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    def at(*ends: float) -> list[list[float]]:
        return [[9.0, 2 * end, end] for end in ends]

    tables = {
        "a": {"ours": at(4, 5), "good": at(1, 2), "bad": at(6, 6), "once": at(3)},
        "b": {"ours": at(2, 2), "good": at(8, 8), "bad": at(9, 9), "once": at(1), "only here": at(1, 1)},
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
def test_the_command_prints_a_table_and_writes_json(small: Path, tmp_path: Path) -> None:
    names = ["ours, auto", "random, full trainings"]
    written = tmp_path / "regret.json"
    ran = run(
        "--table",
        small,
        "--seeds",
        2,
        "--trainings",
        4,
        "--workers",
        2,
        "--json",
        written,
        "--contestants",
        *names,
    )
    assert ran.returncode == 0, ran.stderr
    assert "| ours, auto | 2 |" in ran.stdout
    found = json.loads(written.read_text())
    assert [one["name"] for one in found] == names
    assert set(found[0]["regret"]) == {"0.25", "0.5", "1.0"}
    assert set(found[0]["regret"]["1.0"]) == {"mean", "se"}


def test_a_contestant_without_its_package_is_refused(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = Library(requirement="no-such-package>=1", install="no-such-package")
    absent = Entry(make=CONTESTANTS["SMAC"].make, needs=needed)
    monkeypatch.setattr(quality, "CONTESTANTS", {**CONTESTANTS, "SMAC": absent})
    monkeypatch.setattr(
        sys, "argv", ["quality.py", "--table", str(small), "--contestants", "ours, auto", "SMAC"]
    )
    with pytest.raises(SystemExit, match="2"):
        main()
    said = " ".join(capsys.readouterr().err.split())
    assert '--contestants "SMAC" needs no-such-package>=1, and none is installed here: pip install' in said


@pytest.mark.parametrize(
    ("text", "said"), [("a,b\n1,2\n", "a table has columns"), (None, "there is no such file")]
)
def test_a_file_that_is_not_a_table_is_refused(text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    if text is not None:
        path.write_text(text)
    ran = run("--table", path)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr

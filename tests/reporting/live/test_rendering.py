"""The live table on terminals of many sizes: every line fits, and the most important lines stay longest."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tune_rescon.config import TrialState
from tune_rescon.reporting.live_state import RungCount, Snapshot
from tune_rescon.reporting.live_view import ASCII, BLOCKS, SearchTable, sparkline
from tune_rescon.tuning import ClusterSize, TrialRecord

MakeTrial = Callable[..., TrialRecord]

SIZES = list(itertools.product((20, 40, 60, 80, 100, 200), (4, 8, 12, 24, 60)))


@pytest.fixture
def busy(make_trial: MakeTrial) -> Snapshot:
    """64 running trials, 100 ended ones, and pending MLflow updates."""
    running = tuple(make_trial(n, 0.25, 0.5, math.nan, 0.75) for n in range(100, 164))
    return Snapshot(
        name="a-search-of-a-long-name",
        metric="val_accuracy",
        total=1000,
        last_epoch=81,
        ended={TrialState.STOPPED: 90, TrialState.FINISHED: 8, TrialState.OUT_OF_MEMORY: 2},
        running=running,
        speeds={trial.number: 1000.0 for trial in running[1:]},
        best=make_trial(7, *[0.9375] * 81, state=TrialState.FINISHED),
        rungs=(RungCount(epoch=1, reached=164, continued=60), RungCount(epoch=3, reached=60, continued=20)),
        seconds_left=7900.0,
        hours={"GPU-hours": 12.5},
        pending_updates=214,
        cluster=ClusterSize(nodes=8, gpus=64, cpus=512),
    )


def draw(snapshot: Snapshot, width: int, height: int, *, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    console = Console(file=file, force_terminal=True, color_system=None, width=width, height=height)
    console.print(SearchTable(snapshot))
    file.seek(0)
    return [line.rstrip() for line in file.read().splitlines()]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_table_fits_the_terminal(width: int, height: int, busy: Snapshot) -> None:
    lines = draw(busy, width, height)
    assert len(lines) < height, "one line is left for the cursor"
    assert all(len(line) < width for line in lines), "a line of the full width would wrap"
    assert next(filter(None, lines)).startswith("a-sea")


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_running_trial_is_shown_or_counted(width: int, height: int, busy: Snapshot) -> None:
    lines = draw(busy, width, height)
    rows = [line for line in lines if "4/81" in line]
    more = [line.split()[1] for line in lines if "more running" in line or line.strip().startswith("and ")]
    if width > 20 and height > 8:
        assert rows
    if rows:
        assert len(rows) + sum(map(int, more)) == 64


def test_a_wide_terminal_shows_every_line(busy: Snapshot) -> None:
    text = "\n".join(draw(busy, 120, 80))
    for expected in (
        "100 of 1000 trials ended, about 2 h 10 min left",
        "trial  epoch  val_accuracy  curve         images/s  parameters",
        " 0101   4/81          0.75  ▁▅ █             1,000  depth=56 learning_rate=0.1234",
        " 0100   4/81          0.75  ▁▅ █                 -  depth=56",
        "Best       trial_0007: val_accuracy 0.9375 after epoch 81, finished",
        "MLflow     214 waiting",
        "Promoted   60 of 164 after 1, 20 of 60 after 3 epochs",
        "Used       12.5 GPU-hours reserved; now 63,000 images/s on 8 nodes, 64 GPUs",
        "Completed  90 stopped, 8 finished, 2 out of memory",
    ):
        assert expected in text, text
    assert "more running" not in text


def test_a_slow_trial_has_a_speed(busy: Snapshot) -> None:
    (trial, *_) = busy.running
    slow = dataclasses.replace(busy, running=(trial,), speeds={trial.number: 0.375})
    text = "\n".join(draw(slow, 120, 80))
    assert "     0.375  depth=56" in text
    assert "; now 0.375 images/s on 8 nodes" in text


def test_a_small_terminal_shows_the_best_and_the_first_trials(busy: Snapshot) -> None:
    lines = draw(busy, 60, 12)
    assert "parameters" not in "\n".join(lines)
    assert [line.split()[0] for line in lines[2:5]] == ["0100", "0101", "0102"]
    assert lines[5].split() == ["and", "61", "more", "running"]
    assert lines[6].startswith("Best       trial_0007")


def test_a_metric_of_a_long_class_name_hides_no_trial(busy: Snapshot) -> None:
    metric = "val_f1/Animalia_Chordata_Aves_Passeriformes_Corvidae_Pica_pica"
    lines = draw(dataclasses.replace(busy, metric=metric), 60, 24)
    assert [line for line in lines if "4/81" in line]
    assert "val_f1/Animalia_Chordat…" in "\n".join(lines)


def test_an_empty_table_is_shown_before_the_first_trial() -> None:
    empty = Snapshot(
        name="s", metric="val_accuracy", total=12, last_epoch=9, ended={}, hours={"core-hours": 0.0}
    )
    lines = draw(empty, 80, 24)
    assert lines[0] == lines[2] == ""
    assert lines[1].endswith("0 of 12 trials ended")
    assert lines[3:] == ["Used  0 core-hours reserved"]


def test_one_node_and_one_device_are_singular(busy: Snapshot) -> None:
    for size, expected in (
        (ClusterSize(nodes=1, gpus=1, cpus=8), "on 1 node, 1 GPU"),
        (ClusterSize(nodes=1, gpus=0, cpus=2), "on 1 node, 2 CPUs"),
    ):
        lines = draw(dataclasses.replace(busy, cluster=size), 120, 24)
        assert any(line.endswith(expected) for line in lines), lines


def test_curves_use_ascii_without_block_characters(busy: Snapshot) -> None:
    lines = draw(busy, 80, 24, encoding="ascii")
    assert any("_= #" in line or "_~ #" in line for line in lines), lines


def test_markup_in_names_is_not_interpreted() -> None:
    snapshot = Snapshot(name="[red]s[/red]", metric="val_accuracy", total=1, last_epoch=9, ended={})
    assert draw(snapshot, 80, 24)[1].startswith("[red]s[/red]  ")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((), ""),
        ((0.5,), "▅"),
        ((0.0, 1.0), "▁█"),
        ((1.0, math.nan, 0.0), "█ ▁"),
        ((math.nan, math.inf), "  "),
        ((-1.7e308, 1.7e308), "▁█"),
        (tuple(range(16)), "▁▂▃▄▅▆▇█"),
    ],
)
def test_sparkline_draws_the_expected_characters(values: tuple[float, ...], expected: str) -> None:
    assert sparkline(values, 8) == expected


@given(st.lists(st.floats(allow_subnormal=False), max_size=200), st.integers(1, 40))
def test_sparkline_fits_its_width_for_any_values(values: list[float], width: int) -> None:
    line = sparkline(values, width, ramp=ASCII)
    assert len(line) == min(len(values), width)
    assert set(line) <= {*ASCII, " "}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=100), st.integers(1, 40))
def test_sparkline_ends_with_the_last_value(values: list[float], width: int) -> None:
    # A better value than all before it is at the top.
    values.append(2.0)
    assert sparkline(values, width)[-1] == (BLOCKS[4] if width == 1 else BLOCKS[-1])

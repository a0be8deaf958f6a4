"""The plots as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tune_rescon.reporting import write_plots
from tune_rescon.reporting.png_plots import figures
from tune_rescon.tuning import StudyResult, TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeResult = Callable[..., StudyResult]


@pytest.mark.timeout(30)  # matplotlib looks for the machine's fonts once
def test_every_plot_is_an_image_that_is_not_blank(simulated: StudyResult, tmp_path: Path) -> None:
    paths = write_plots(simulated, tmp_path / "plots")
    names = ["learning_curves", "cost", "parallel_coordinates", "importance"]
    assert [path.stem for path in paths] == names
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 500
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50


def test_dollar_signs_in_class_names_are_not_math_text(
    make_result: MakeResult, trials_of_every_state: list[TrialRecord], tmp_path: Path
) -> None:
    metric = "val_f1/a$_$b"
    trials = [
        replace(trial, metric=metric, parameters={"init_from": f"$_{trial.number}$", "depth": trial.number})
        for trial in trials_of_every_state[:2]
    ]
    assert len(write_plots(make_result(*trials, metric=metric), tmp_path)) >= 2


def test_equal_values_have_one_label(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trials = [make_trial(n, parameters={"depth": 56 + 36 * n}) for n in range(2)]
    (axes,) = dict(figures(make_result(*trials)))["parallel_coordinates"].axes
    assert [text.get_text() for text in axes.texts] == ["56", "92", "0.5"]


def test_every_state_can_be_drawn(
    make_result: MakeResult, trials_of_every_state: list[TrialRecord], tmp_path: Path
) -> None:
    paths = write_plots(make_result(*trials_of_every_state), tmp_path)
    assert [path.stem for path in paths] == ["learning_curves", "cost"]


def test_an_empty_search_has_no_plots(make_result: MakeResult, tmp_path: Path) -> None:
    assert write_plots(make_result(), tmp_path) == []

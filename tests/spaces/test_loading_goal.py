"""A space file's goal, which is read without the rest: equal to the whole file's, and checked equally."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune_rescon.errors import SpaceError
from tune_rescon.spaces import dump_space, list_spaces, load_goal, load_space


@pytest.mark.parametrize("name", list_spaces())
@pytest.mark.parametrize("description", ["as it is", "metric: none\nbudget: {}\n" * 40])
def test_a_goal_equals_that_of_the_whole_space(name: str, description: str, tmp_path: Path) -> None:
    space = load_space(name, ["dataset.path=images"] if name == "folder" else [])
    if "budget" in description:
        # A description is free text, however it is folded.
        space = space.model_copy(update={"description": description})
    path = tmp_path / "space.yaml"
    path.write_text(dump_space(space), encoding="utf-8")
    goal = load_goal(path)
    assert (goal.metric, goal.budget) == (space.metric, space.budget)
    assert load_space(path) == space


def test_a_broken_neighbour_does_not_matter(valid_yaml: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(valid_yaml.replace("fidelity:", "fidelity: [").replace("depth: 92", "depth: 1"))
    assert load_goal(path).budget.trials == 12


@pytest.mark.parametrize(
    ("old", "new", "errors"),
    [
        ("metric: {name: val_accuracy,", "metric: {name: accuracy,", ":4: metric.name: unknown metric"),
        ("metric: {", "metric: [", ":4: is not YAML"),
        ("budget: {trials: 12}", "", ":1: budget: is missing"),
        ("trials: 12", "trials: 0", ":8: budget.trials: must be at least 1"),
    ],
)
def test_faults_of_the_goal_are_reported_by_line(
    old: str, new: str, errors: str, valid_yaml: str, tmp_path: Path
) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(valid_yaml.replace(old, new))
    with pytest.raises(SpaceError) as caught:
        load_goal(path)
    assert f"{path}{errors}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "- metric\n", "version: 1\nname: [", "just words\n"])
def test_a_file_without_these_sections(text: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(SpaceError, match="must hold sections"):
        load_goal(path)

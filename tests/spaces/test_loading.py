"""Loading a file, or its goal alone, with all of its errors at once; and writing a space."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tune_rescon.errors import SpaceError
from tune_rescon.spaces import (
    Space,
    dump_space,
    list_spaces,
    load_goal,
    load_space,
    parse_space,
    preview,
    yaml_text,
)

ErrorLines = Callable[..., list[str]]
LoadChanged = Callable[..., Space]


def test_a_valid_space_is_loaded_with_defaults(load_changed: LoadChanged) -> None:
    space = load_changed({})
    assert (space.sampler.n_startup_trials, space.scheduler.reduction_factor) == (10, 3)


def test_all_errors_are_reported_in_file_order(error_lines: ErrorLines) -> None:
    errors = error_lines(
        {
            3: "dataset: {name: mnist, limit: 1}",
            5: "fidelity: {max: zero}",
            9: "gpus: 1",
            10: "fixed: {lr: 0.1, momentum: 7}",
            14: "  batch_size: {type: int, min: 16, high: 64}",
        }
    )
    assert [line.split(": ")[:2] for line in errors] == [
        ["s.yaml:3", "dataset.limit"],
        ["s.yaml:5", "fidelity.max"],
        ["s.yaml:9", "gpus"],
        ["s.yaml:10", "fixed.lr"],
        ["s.yaml:10", "fixed.momentum"],
        ["s.yaml:14", "parameters.batch_size.min"],
        ["s.yaml:14", "parameters.batch_size.low"],
    ]


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("1E-2", 0.01), (".5", 0.5), ("+3", 3.0)])
def test_numbers_are_read_as_yaml_1_2(load_changed: LoadChanged, text: str, value: float) -> None:
    assert load_changed({8: f"budget: {{trials: 1, hours: {text}}}"}).budget.hours == value


@pytest.mark.parametrize("text", ["on", "no", "12:30", "2024-01-01", "'3'", "~x"])
def test_yaml_1_1_keywords_stay_strings(load_changed: LoadChanged, text: str) -> None:
    assert load_changed({9: f"description: {text}"}).description == text.strip("'")


def test_a_leading_zero_does_not_mean_octal(load_changed: LoadChanged) -> None:
    assert load_changed({8: "budget: {trials: 010}"}).budget.trials == 10


@pytest.mark.parametrize("text", ["", "# nothing\n", "3", "- a"])
def test_a_file_without_sections_is_refused(text: str) -> None:
    with pytest.raises(SpaceError, match=r"s\.yaml:1: must hold sections"):
        parse_space(text, source="s.yaml")


def test_an_unknown_space_suggests_known_ones() -> None:
    with pytest.raises(
        SpaceError, match=r"unknown space 'att93' \(did you mean 'att92'\?\); known: att56, att92, "
    ):
        load_space("att93")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "must be readable, but got No such file or directory"),
        (lambda path: path.mkdir(), "must be readable, but got Is a directory"),
        (lambda path: path.write_bytes(b"version: \xff"), "must be UTF-8, but got invalid start byte"),
    ],
)
def test_an_unreadable_file_is_reported(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "mine.yaml"
    make(path)
    with pytest.raises(SpaceError, match=message):
        load_space(path)


def test_a_file_is_loaded_by_its_path(tmp_path: Path, valid_yaml: str) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("\ufeff" + valid_yaml, encoding="utf-8")
    assert load_space(str(path)).name == "small"


def test_errors_name_the_file_relative_to_the_working_directory(
    tmp_path: Path, valid_yaml: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(valid_yaml.replace("trials: 12", "trials: x"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpaceError, match=r"^mine\.yaml:8: budget\.trials"):
        load_space(tmp_path / "mine.yaml")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**40),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "low", "in"]), inner)
    ),
    max_leaves=4,
)


@functools.cache
def _document(text: str) -> Any:
    """Read a file once. To read it for each example would take half of the test's time."""
    return YAML(typ="safe", pure=True).load(text)


@pytest.mark.timeout(30)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_file_gives_a_space_or_an_error(valid_yaml: str, data: st.DataObject) -> None:
    document = copy.deepcopy(_document(valid_yaml))
    section, key = data.draw(st.sampled_from(list(_iter_keys(document))))
    section[key] = data.draw(_VALUES)
    text = StringIO()
    YAML(typ="safe", pure=True).dump(document, text)
    result: Space | str
    try:
        result = parse_space(text.getvalue(), source="s.yaml")
    except SpaceError as error:
        result = str(error)
    assert result.startswith("s.yaml:") if isinstance(result, str) else preview(result, 3)


def _iter_keys(section: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) for every key and index of a nested document."""
    for key in section if isinstance(section, dict) else range(len(section)):
        yield section, key
        if isinstance(section[key], dict | list):
            yield from _iter_keys(section[key])


@pytest.mark.parametrize("name", list_spaces())
@pytest.mark.parametrize("description", ["as it is", "metric: none\nbudget: {}\n" * 40])
def test_load_goal_matches_load_space(name: str, description: str, tmp_path: Path) -> None:
    space = load_space(name, ["dataset.path=images"] if name == "folder" else [])
    if "budget" in description:
        # A description may be folded in any way.
        space = space.model_copy(update={"description": description})
    path = tmp_path / "space.yaml"
    path.write_text(dump_space(space), encoding="utf-8")
    goal = load_goal(path)
    assert (goal.metric, goal.budget) == (space.metric, space.budget)
    assert load_space(path) == space


def test_load_goal_ignores_errors_in_other_sections(valid_yaml: str, tmp_path: Path) -> None:
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
def test_errors_in_the_goal_are_reported_with_their_line(
    old: str, new: str, errors: str, valid_yaml: str, tmp_path: Path
) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(valid_yaml.replace(old, new))
    with pytest.raises(SpaceError) as caught:
        load_goal(path)
    assert f"{path}{errors}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "- metric\n", "version: 1\nname: [", "just words\n"])
def test_load_goal_refuses_a_file_without_its_sections(text: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(SpaceError, match="must hold sections"):
        load_goal(path)


#: PyYAML, a dependency of MLflow, reads YAML 1.1. It has no type hints.
yaml: Any = importlib.import_module("yaml")


@pytest.mark.parametrize(
    "text", ["on", "1e-4", "null", "~", "'#'", "{x: y}", "&a", "a: b", "", "%x", "'", "ü\t"]
)
def test_ambiguous_strings_round_trip(load_changed: LoadChanged, text: str) -> None:
    space = load_changed({}).model_copy(update={"description": text})
    assert parse_space(dump_space(space), source="dumped.yaml") == space


def test_defaults_are_written_out(load_changed: LoadChanged) -> None:
    text = dump_space(load_changed({}))
    assert "sampler: {type: tpe, seed: 3, n_startup_trials: 10, repeats: false}" in text
    assert "budget: {trials: 12, concurrent: null, hours: null, epochs: null}" in text
    assert "learning_rate: {type: float, low: 0.01, high: 0.3, log: true}" in text


def test_initial_rows_and_lists_round_trip(load_changed: LoadChanged) -> None:
    rows = "  - {depth: 56, learning_rate: 0.1, step_fractions: [50]}"
    space = load_changed({14: "  step_fractions: {type: categorical, choices: [[40, 60], [50]]}", 17: rows})
    assert parse_space(dump_space(space), source="dumped.yaml") == space


AMBIGUOUS_STRINGS = [
    "off",
    "on",
    "yes",
    "No",
    "y",
    "1:30",
    "1e-3",
    "=",
    "<<",
    "~",
    "010",
    "2001-01-01",
    "1_000",
    ".5",
]


@pytest.mark.parametrize("value", [*AMBIGUOUS_STRINGS, 1e-05, 1e17, 0.5, 3, True, None, [40, 60]])
@pytest.mark.parametrize("block", [False, True])
def test_yaml_1_1_and_1_2_parsers_read_the_same_values(value: Any, block: bool) -> None:
    text = yaml_text({"config": {"compile": value}}, block=block)
    for parse in (yaml.safe_load, YAML(typ="safe").load):
        loaded = parse(text)["config"]["compile"]
        assert (loaded, type(loaded)) == (value, type(value)), parse


def test_numpy_numbers_are_written_as_plain_numbers() -> None:
    values = {"a": np.float64(0.25), "b": np.int64(3), "c": (np.float32(0.5),)}
    assert yaml.safe_load(yaml_text(values)) == {"a": 0.25, "b": 3, "c": [0.5]}


def test_a_fixed_string_round_trips_through_yaml_1_1(load_changed: LoadChanged) -> None:
    text = dump_space(load_changed({10: "fixed: {layout: cifar, compile: off}"}))
    assert yaml.safe_load(text)["fixed"]["compile"] == "off"
    assert parse_space(text, source="dumped.yaml").fixed["compile"] == "off"

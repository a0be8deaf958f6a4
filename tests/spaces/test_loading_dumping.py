"""A space file round-trips, with every default written out."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from tune_rescon.spaces import Space, dump_space, parse_space, yaml_text

LoadChanged = Callable[..., Space]

#: PyYAML, which MLflow brings, reads YAML 1.1; it has no types.
yaml: Any = importlib.import_module("yaml")


@pytest.mark.parametrize(
    "text", ["on", "1e-4", "null", "~", "'#'", "{x: y}", "&a", "a: b", "", "%x", "'", "ü\t"]
)
def test_words_that_look_like_something_else(load_changed: LoadChanged, text: str) -> None:
    space = load_changed({}).model_copy(update={"description": text})
    assert parse_space(dump_space(space), source="dumped.yaml") == space


def test_defaults_are_written_out(load_changed: LoadChanged) -> None:
    text = dump_space(load_changed({}))
    assert "sampler: {type: tpe, seed: 3, n_startup_trials: 10, repeats: false}" in text
    assert "budget: {trials: 12, concurrent: null, hours: null, epochs: null}" in text
    assert "learning_rate: {type: float, low: 0.01, high: 0.3, log: true}" in text


def test_initial_rows_and_lists_read_back(load_changed: LoadChanged) -> None:
    rows = "  - {depth: 56, learning_rate: 0.1, step_fractions: [50]}"
    space = load_changed({14: "  step_fractions: {type: categorical, choices: [[40, 60], [50]]}", 17: rows})
    assert parse_space(dump_space(space), source="dumped.yaml") == space


WORDS = ["off", "on", "yes", "No", "y", "1:30", "1e-3", "=", "<<", "~", "010", "2001-01-01", "1_000", ".5"]


@pytest.mark.parametrize("value", [*WORDS, 1e-05, 1e17, 0.5, 3, True, None, [40, 60]])
@pytest.mark.parametrize("block", [False, True])
def test_tools_for_yaml_1_1_and_for_1_2_read_the_same(value: Any, block: bool) -> None:
    text = yaml_text({"config": {"compile": value}}, block=block)
    for read in (yaml.safe_load, YAML(typ="safe").load):
        found = read(text)["config"]["compile"]
        assert (found, type(found)) == (value, type(value)), read


def test_numbers_of_other_types_are_written_as_numbers() -> None:
    values = {"a": np.float64(0.25), "b": np.int64(3), "c": (np.float32(0.5),)}
    assert yaml.safe_load(yaml_text(values)) == {"a": 0.25, "b": 3, "c": [0.5]}


def test_a_fixed_word_reads_back_in_yaml_1_1(load_changed: LoadChanged) -> None:
    text = dump_space(load_changed({10: "fixed: {layout: cifar, compile: off}"}))
    assert yaml.safe_load(text)["fixed"]["compile"] == "off"
    assert parse_space(text, source="dumped.yaml").fixed["compile"] == "off"

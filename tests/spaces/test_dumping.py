"""A space file round-trips, with every default written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tune_rescon.spaces import Space, dump_space, parse_space

Bent = Callable[..., Space]


@pytest.mark.parametrize(
    "text", ["on", "1e-4", "null", "~", "'#'", "{x: y}", "&a", "a: b", "", "%x", "'", "ü\t"]
)
def test_words_that_look_like_something_else(bent: Bent, text: str) -> None:
    space = bent({}).model_copy(update={"description": text})
    assert parse_space(dump_space(space), source="dumped.yaml") == space


def test_defaults_are_written_out(bent: Bent) -> None:
    text = dump_space(bent({}))
    assert "sampler: {type: tpe, seed: 3, n_startup_trials: 10}" in text
    assert "budget: {trials: 12, concurrent: null, hours: null}" in text
    assert "learning_rate: {type: float, low: 0.01, high: 0.3, log: true}" in text


def test_initial_rows_and_lists_read_back(bent: Bent) -> None:
    rows = "  - {depth: 56, learning_rate: 0.1, step_fractions: [50]}"
    space = bent({14: "  step_fractions: {type: categorical, choices: [[40, 60], [50]]}", 17: rows})
    assert parse_space(dump_space(space), source="dumped.yaml") == space

"""Broken rules of fields and conditions, each with its line and message."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_NO_ROWS = {16: "", 17: ""}

#: Replaced lines of the valid space, and a line of the error.
ONE_PROBLEM: list[tuple[dict[int, str], str]] = [
    # Fixed fields.
    (
        {10: "fixed: {lr: 0.1}"},
        "s.yaml:10: fixed.lr: unknown parameter 'lr'; known: added_reference, attention,",
    ),
    ({10: "fixed: {lr: 0.1}"}, "That is another tool's word: write `learning_rate`."),
    ({10: "fixed: {momentum: 1}"}, "s.yaml:10: fixed.momentum: must be in [0, 1), but got 1."),
    (
        {10: "fixed: {optimizer: adam}"},
        "s.yaml:10: fixed.optimizer: must be one of sgd, adamw, lion, rmsprop, muon, but got 'adam'.",
    ),
    ({10: "fixed: {flip: on}"}, "s.yaml:10: fixed.flip: must be true or false, but got 'on'."),
    ({10: "fixed: {width: true}"}, "s.yaml:10: fixed.width: must be a number, but got True."),
    (
        {10: "fixed: {step_fractions: [60, 40]}"},
        "s.yaml:10: fixed.step_fractions: must increase, but got (60, 40).",
    ),
    (
        {10: "fixed: {dataset: digits}"},
        "s.yaml:10: fixed.dataset: the images of every trial are named in the section",
    ),
    (
        {10: "fixed: {depth: 56}"},
        "s.yaml:12: parameters.depth: a field is fixed or searched, not both, but got depth",
    ),
    (
        {10: "fixed: {warmup_epochs: 10}"},
        "s.yaml:10: fixed.warmup_epochs: must be at most `fidelity.max` (9), but got",
    ),
    # Parameters.
    (
        _NO_ROWS | {14: "  dropout: {type: float, low: 0, high: 1}"},
        "s.yaml:14: parameters.dropout: unknown parameter 'dropout'",
    ),
    (
        {
            13: "  lr: {type: float, low: 0.01, high: 0.3, log: true}",
            17: "  - {depth: 92, lr: 0.1, batch_size: 32, drop_path: 0.0}",
        },
        "s.yaml:13: parameters.lr: unknown parameter 'lr'",
    ),
    (_NO_ROWS | {14: "  mixup: {low: 0, high: 1}"}, "s.yaml:14: parameters.mixup.type: is missing."),
    (
        _NO_ROWS | {14: "  mixup: {type: uniform, low: 0}"},
        "'int', 'float', 'categorical', but got 'uniform'. That is another",
    ),
    (
        _NO_ROWS | {14: "  mixup: 3"},
        "s.yaml:14: parameters.mixup: must be a section (`key: value` lines), but got 3.",
    ),
    (
        _NO_ROWS | {14: "  mixup: {type: float, low: 0.5, high: 0.1}"},
        "mixup.low: `low < high` must hold, but got low=0.5, high=0.1.",
    ),
    (_NO_ROWS | {14: "  mixup: {type: float, low: 0, high: 0}"}, "A single value belongs in `fixed`."),
    (
        _NO_ROWS | {14: "  mixup: {type: float, low: -1, high: 1}"},
        "s.yaml:14: parameters.mixup.low: must be in [0, inf), but got -1.0.",
    ),
    (
        _NO_ROWS | {14: "  mixup: {type: float, low: 0, high: 1, step: 0.3}"},
        "mixup.step: must divide the range `high - low`, but",
    ),
    (
        _NO_ROWS | {14: "  mixup: {type: float, low: 0, high: 1, log: true}"},
        "mixup.low: `low > 0` must hold with `log: true`, but",
    ),
    (
        _NO_ROWS | {14: "  mixup: {type: float, low: 1, high: 2, log: true, step: 0.5}"},
        "mixup.step: `log: true` excludes a step",
    ),
    (
        _NO_ROWS | {14: "  mixup: {type: float, low: 0, high: 1, log: yes}"},
        "mixup.log: must be true or false, but got 'yes'.",
    ),
    (
        _NO_ROWS | {14: "  crop_padding: {type: int, low: 0, high: 7, step: 2}"},
        "crop_padding.step: must divide the range",
    ),
    (
        _NO_ROWS | {14: "  crop_padding: {type: float, low: 0, high: 7}"},
        "crop_padding.low: must be a whole number, but got 0.0.",
    ),
    (
        _NO_ROWS | {14: "  crop_padding: {type: int, low: 0, high: 99}"},
        "crop_padding.high: must be in [0, 64], but got 99.",
    ),
    (
        _NO_ROWS | {14: "  schedule: {type: int, low: 0, high: 9}"},
        "s.yaml:14: parameters.schedule.low: must be a word, but got 0.",
    ),
    (
        _NO_ROWS | {14: "  warmup_epochs: {type: int, low: 0, high: 10}"},
        "warmup_epochs.high: must be at most `fidelity.max` (9)",
    ),
    (
        _NO_ROWS | {14: "  attention: {type: categorical, choices: []}"},
        "attention.choices: must hold at least 1 item, but got [].",
    ),
    (
        _NO_ROWS | {14: "  attention: {type: categorical, choices: mixed}"},
        "attention.choices: must be a list, but got 'mixed'.",
    ),
    (
        _NO_ROWS | {14: "  attention: {type: categorical, values: [mixed]}"},
        "That is another tool's word: write `choices`.",
    ),
    (
        _NO_ROWS | {14: "  attention: {type: categorical, choices: [mixed,\n    spatail]}"},
        "s.yaml:15: parameters.attention.choices[1]: must be one of mixed, channel, spatial, but got 'spat",
    ),
    (
        _NO_ROWS | {14: "  mixup: {type: categorical, choices: [0, 0.0]}"},
        "mixup.choices[1]: choices must differ, but got 0.0 again.",
    ),
    (
        _NO_ROWS | {14: "  mixup: {type: categorical, choices: [1, true]}"},
        "mixup.choices[1]: must be a number, but got True.",
    ),
    (
        _NO_ROWS | {14: "  flip: {type: categorical, choices: [1, true]}"},
        "flip.choices[0]: must be true or false, but got 1.",
    ),
    (
        _NO_ROWS | {14: "  dataset: {type: categorical, choices: [cifar10]}"},
        "dataset.name: must be one of the searched datasets",
    ),
    (
        _NO_ROWS | {14: "  dataset: {type: categorical, choices: [digits, mnist]}"},
        "s.yaml:14: parameters.dataset.choices[1]: unknown dataset 'mnist'",
    ),
    # Conditions.
    (
        {15: "  drop_path: {type: float, low: 0.0, high: 0.2, when: {parameter: layout, in: [cifar]}}"},
        "when.parameter: must name a categorical parameter declared above this one, but got 'layout'. Choose",
    ),
    (
        {15: "  drop_path: {type: float, low: 0, high: 1, when: {parameter: batch_size, in: [16]}}"},
        "s.yaml:15: parameters.drop_path.when.parameter: must name a categorical parameter declared above",
    ),
    (
        {
            12: "  mask: {type: categorical, choices: [local], when: {parameter: depth, in: [9]}}",
            15: "  depth: 3",
        },
        "s.yaml:15: parameters.depth: must be a section",
    ),
    (
        {15: "  drop_path: {type: float, low: 0.0, high: 0.2, when: {parameter: depth, in: [93]}}"},
        "s.yaml:15: parameters.drop_path.when.in[0]: must be one of the choices 56, 92, but got 93.",
    ),
    (
        {15: "  drop_path: {type: float, low: 0.0, high: 0.2, when: {parameter: depth, in: 92}}"},
        "s.yaml:15: parameters.drop_path.when.in: must be a list, but got 92.",
    ),
    (
        {15: "  drop_path: {type: float, low: 0, high: 1, when: {parameter: depth, equals: 92, in: [92]}}"},
        "That is another tool's word: write `in`.",
    ),
]


@pytest.mark.parametrize(("lines", "message"), ONE_PROBLEM, ids=[message[:60] for _, message in ONE_PROBLEM])
def test_a_broken_rule_is_reported_with_its_line(
    error_lines: Callable[[dict[int, str]], list[str]], lines: dict[int, str], message: str
) -> None:
    errors = error_lines(lines)
    assert message in "\n".join(errors)
    assert len({line.split(": ")[0] for line in errors}) == 1, errors

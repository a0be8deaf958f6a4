"""Broken rules between sections, rows and networks, each with its line and message."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tune_rescon.spaces import Space

_NO_ROWS = {16: "", 17: ""}
_GRID = _NO_ROWS | {6: "sampler: {type: grid}"}

_TEST_METRIC = {
    3: "dataset: {name: digits, hold_out: false}",
    4: "metric: {name: test_accuracy, mode: max}",
}

#: Without the parameters that describe a Residual Attention Network.
_NO_ATTENTION_PARAMETERS = {12: "", 15: "", 16: "", 17: ""}

#: Replaced lines of the valid space, and a line of the error.
ONE_PROBLEM: list[tuple[dict[int, str], str]] = [
    # Initial rows.
    ({16: "initial: 3", 17: ""}, "s.yaml:16: initial: must be a list, but got 3."),
    ({17: "  - 3"}, "s.yaml:17: initial[0]: must be a section (`key: value` lines), but got 3."),
    (
        {17: "  - {depth: 92, learning_rate: 0.1, batch_size: 32}"},
        "s.yaml:17: initial[0].drop_path: is missing.",
    ),
    (
        {17: "  - {depth: 56, learning_rate: 0.1, batch_size: 32, drop_path: 0.1}"},
        "s.yaml:17: initial[0].drop_path: must be left out unless depth is 92, but got 0.1.",
    ),
    (
        {17: "  - {depth: 56, learning_rate: 0.5, batch_size: 32}"},
        "s.yaml:17: initial[0].learning_rate: must be in [0.01, 0.3], but got 0.5.",
    ),
    (
        {17: "  - {depth: 56, learning_rate: 0.1, batch_size: 33}"},
        "s.yaml:17: initial[0].batch_size: must be a multiple of step 16 above 16, but got 33.",
    ),
    (
        {17: "  - {depth: 128, learning_rate: 0.1, batch_size: 32}"},
        "s.yaml:17: initial[0].depth: must be one of the choices 56, 92, but got 128.",
    ),
    (
        {17: "  - {depth: 56, learning_rate: 0.1, batch_size: 32, momentum: 0.9}"},
        "s.yaml:17: initial[0].momentum: unknown parameter 'momentum'; known: batch_size, depth, drop_path,",
    ),
    (
        {
            15: "  gradient_clip: {type: int, low: 0, high: 2}",
            17: "  - {depth: 56, learning_rate: 0.1, batch_size: 32, gradient_clip: 0.5}",
        },
        "s.yaml:17: initial[0].gradient_clip: must be a whole number, but got 0.5.",
    ),
    # Batches of multi-process trials.
    (
        {9: "resources_per_trial: {workers: 9}"},
        "s.yaml:14: parameters.batch_size.low: must be at least 18: 2 images for each of the 9 `workers`",
    ),
    # What each sampler supports.
    (_GRID | {15: ""}, "s.yaml:13: parameters.learning_rate: sampler grid needs values it can list"),
    (
        _GRID | {13: "", 15: "", 14: "  batch_size: {type: int, low: 2, high: 9999}"},
        "s.yaml:11: parameters: a grid must have at most 10000 points, but got more.",
    ),
    (
        {
            6: "sampler: {type: grid}",
            13: "",
            15: "",
            8: "budget: {trials: 8}",
            17: "  - {depth: 56, batch_size: 16}",
        },
        "s.yaml:16: initial: a grid runs every combination; `initial` must be empty, but got 1 row.",
    ),
    (
        {6: "sampler: {type: cmaes}", 15: "", 17: "  - {depth: 56, learning_rate: 0.1, batch_size: 32}"},
        "s.yaml:12: parameters.depth: sampler cmaes takes numbers only, but got a categorical.",
    ),
    (
        {
            4: "metric: {name: val_accuracy, mode: max, against: gmacs}",
            6: "sampler: {type: cmaes}",
            12: "  label_smoothing: {type: float, low: 0.0, high: 0.1}",
            15: "",
            17: "  - {label_smoothing: 0.0, learning_rate: 0.1, batch_size: 32}",
        },
        "s.yaml:6: sampler.type: sampler cmaes takes one objective, but got `metric.against: gmacs` too. Use",
    ),
    # The first rung is after the warm-up.
    (
        {10: "fixed: {warmup_epochs: 10}"},
        "s.yaml:10: fixed.warmup_epochs: must be at most `fidelity.max` (9), but got 10.",
    ),
    (
        {10: "fixed: {warmup_epochs: 2.5}"},
        "(`fixed.warmup_epochs`: 2.5), when values rank no trials, but got 1. Write `min: 3`.",
    ),
    (
        {7: "scheduler: {type: median}", 10: "fixed: {warmup_epochs: 2}"},
        "s.yaml:5: fidelity.min: must cover the warm-up (`fixed.warmup_epochs`: 2), when values rank",
    ),
    (
        {5: "fidelity: {max: 9}", 15: "  warmup_epochs: {type: float, low: 0, high: 3}", 16: "", 17: ""},
        "s.yaml:5: fidelity.min: must cover the warm-up (`parameters.warmup_epochs.high`: 3.0), when",
    ),
    (
        {15: "  warmup_epochs: {type: categorical, choices: [0, 4, 2]}", 16: "", 17: ""},
        "(`parameters.warmup_epochs.choices`: 4), when values rank no trials, but got 1. Write `min: 4",
    ),
    # The test images are for the final evaluation only.
    (
        {4: "metric: {name: test_accuracy, mode: max}"},
        "s.yaml:4: metric.name: `dataset.hold_out: false` must be set with a metric of the test images",
    ),
    (
        {3: "dataset: {name: digits, hold_out: false}"},
        "and with no other, but got hold_out false and val_accuracy.",
    ),
    (_TEST_METRIC, "s.yaml:7: scheduler.type: must be none if the test images evaluate the trials, once"),
    (
        _TEST_METRIC | {7: "scheduler: {type: none}"},
        "s.yaml:8: budget.trials: must be at most the 1 row of `initial` if the test images evaluate them",
    ),
    # Invalid networks.
    (
        {12: "  depth: {type: categorical, choices: [92, 156]}"},
        "s.yaml:12: parameters.depth.choices[1]: depth: layout cifar has the depths 56, 92, 128, 164, 236,",
    ),
    ({12: "  depth: {type: categorical, choices: [92, 156]}"}, "but got 156. The nearest is 164."),
    (
        {10: "fixed: {preset: attention5, momentum: 0.9}"},
        "s.yaml:10: fixed.preset: unknown preset 'attention5' (did you mean 'attention56'?)",
    ),
    (
        _NO_ATTENTION_PARAMETERS | {10: "fixed: {network: resnet18, momentum: 0.9}"},
        "s.yaml:10: fixed.network: network: must be timm/NAME, or MODULE:FUNCTION of your own code, but got",
    ),
    (
        _NO_ATTENTION_PARAMETERS | {10: "fixed: {network: timm/resnet18, width: 2}"},
        "s.yaml:10: fixed.width: width: `width` does not apply to the network timm/resnet18, but got width 2",
    ),
    (
        {10: "fixed: {network: timm/resnet18, momentum: 0.9}"},
        "s.yaml:12: parameters.depth.choices[1]: depth: `depth` does not apply to the network timm/resnet18",
    ),
    (
        {10: "fixed: {momentum: 0.9, pretrained: true}"},
        "s.yaml:10: fixed.pretrained: pretrained: only a network of timm has pretrained weights",
    ),
    (
        {10: "fixed: {layout: cifar, image_size: 8}"},
        "s.yaml:10: fixed.image_size: must be in [16, 1024], but got 8.",
    ),
    (
        {
            10: "fixed: {layout: imagenet}",
            14: "  image_size: {type: categorical, choices: [224, 16]}",
            17: "",
            16: "",
        },
        "s.yaml:14: parameters.image_size.choices[1]: image_size: ",
    ),
]


@pytest.mark.parametrize(("lines", "message"), ONE_PROBLEM, ids=[message[:60] for _, message in ONE_PROBLEM])
def test_a_broken_rule_is_reported_with_its_line(
    error_lines: Callable[[dict[int, str]], list[str]], lines: dict[int, str], message: str
) -> None:
    errors = error_lines(lines)
    assert message in "\n".join(errors)
    assert len({line.split(": ")[0] for line in errors}) == 1, errors


@pytest.mark.parametrize(
    "lines",
    [
        {7: "scheduler: {type: none}", 10: "fixed: {warmup_epochs: 5}"},
        {5: "fidelity: {min: 5, max: 9}", 10: "fixed: {warmup_epochs: 4.5}"},
        {5: "fidelity: {min: 9, max: 9}", 10: "fixed: {warmup_epochs: 9}"},
        {10: "fixed: {warmup_epochs: 1}"},
    ],
)
def test_warmup_within_first_rung_is_valid(load_changed: Callable[..., Space], lines: dict[int, str]) -> None:
    assert load_changed(lines)


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random", "gp"])
def test_these_samplers_take_two_objectives(load_changed: Callable[..., Space], kind: str) -> None:
    lines = {6: f"sampler: {{type: {kind}}}", 15: "", 16: "", 17: ""}
    assert load_changed(lines, ("metric.against=compute_hours",)).metric.against == "compute_hours"


def test_a_grid_takes_two_objectives(load_changed: Callable[..., Space]) -> None:
    lines = _GRID | {8: "budget: {trials: 8}", 13: "", 15: ""}
    assert load_changed(lines, ("metric.against=gmacs",)).sampler.type == "grid"


@pytest.mark.parametrize("kind", ["median", "none"])
def test_keys_of_another_scheduler_are_accepted(load_changed: Callable[..., Space], kind: str) -> None:
    line = f"scheduler: {{type: {kind}, reduction_factor: 3, variant: stop}}"
    assert load_changed({7: line}).scheduler.type == kind

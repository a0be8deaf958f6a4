"""Broken rules of the file and of each section, each with its line and message."""

from __future__ import annotations

from collections.abc import Callable

import pytest

#: Replaced lines of the valid space, and a line of the error.
ONE_PROBLEM: list[tuple[dict[int, str], str]] = [
    # The file itself.
    ({1: "version: 2"}, "s.yaml:1: version: must be 1, but got 2."),
    ({1: ""}, "s.yaml:1: version: is missing."),
    ({2: "name: a/b"}, "s.yaml:2: name: must match ^[A-Za-z0-9][A-Za-z0-9._-]*$, but got 'a/b'."),
    ({2: "name: 2024"}, "s.yaml:2: name: must be a word, but got 2024."),
    ({2: f"name: {'x' * 101}"}, "s.yaml:2: name: must be at most 100 characters long, but got 'xxx"),
    ({9: "name: twice"}, "s.yaml:9: name: is repeated; s.yaml:2 has it already."),
    ({9: "num_samples: 3"}, "s.yaml:9: num_samples: unknown key 'num_samples' (did you mean"),
    ({9: "num_samples: 3"}, "That is another tool's word: write `budget.trials`."),
    ({9: "3: 3"}, "s.yaml:9: a key must be a word, but got `3`."),
    ({9: "[a]: 3"}, "s.yaml:9: a key must be a word, but got `a list or section`."),
    (
        {8: "budget: {trials: !!int many}"},
        "s.yaml:8: budget.trials: must be a value of YAML's type int, but got 'many'.",
    ),
    (
        {8: "budget: {trials: !!bool many}"},
        "s.yaml:8: budget.trials: must be a value of YAML's type bool, but got 'many'.",
    ),
    (
        {8: f"budget: {{trials: {'9' * 5000}}}"},
        f"s.yaml:8: budget.trials: must be a value of YAML's type int, but got '{'9' * 79}...",
    ),
    (
        {8: f"budget: {{trials: 0x{'f' * 5000}}}"},
        f"s.yaml:8: budget.trials: must be a number below 1e308, but got '0x{'f' * 77}...",
    ),
    ({9: "description: &a x"}, "s.yaml:9: description: must be written out, but got the anchor `&a`."),
    (
        {9: "description: !!binary aGk="},
        "s.yaml:9: description: must be a plain value, but got the tag `!binary`.",
    ),
    ({9: "description: [x"}, "s.yaml:10: is not YAML: expected ',' or ']', but got ':'."),
    ({9: "description:\n\tx: 1"}, "s.yaml:10: is not YAML: found character '\\t' that cannot start"),
    ({9: "description: " + "[" * 20 + "]" * 20}, "s.yaml:9: is not YAML: maximum depth"),
    ({9: "description: \x01"}, "s.yaml:1: is not YAML: unacceptable character #x0001"),
    ({9: "---"}, "s.yaml:9: is not YAML: but found another document."),
    (
        {1: "%YAML 1.1\n---\nversion: 1"},
        "s.yaml:1: a space file is YAML 1.2 without directives, but got a `%` line.",
    ),
    # Single sections.
    ({3: "dataset: digits"}, "s.yaml:3: dataset: must be a section (`key: value` lines), but got 'digits'."),
    ({3: "dataset: {}"}, "s.yaml:3: dataset.name: is missing."),
    (
        {3: "dataset: {name: mnist}"},
        "s.yaml:3: dataset.name: unknown dataset 'mnist'; known: cifar10, cifar100,",
    ),
    ({3: "dataset: {name: digits, split: 0}"}, "s.yaml:3: dataset.split: unknown key 'split'"),
    (
        {3: "dataset: {name: digits, val_fraction: 1.0}"},
        "s.yaml:3: dataset.val_fraction: must be in (0, 1), but got",
    ),
    (
        {3: "dataset: {name: digits, path: x}"},
        "s.yaml:3: dataset.path: only the dataset `folder` has a path, but got",
    ),
    ({3: "dataset: {name: folder}"}, "is missing. Give it with --set dataset.path=DIR, or"),
    (
        {4: "metric: {name: val_acc, mode: max}"},
        "s.yaml:4: metric.name: unknown metric 'val_acc' (did you mean 'val",
    ),
    (
        {4: "metric: {name: epoch_seconds, mode: min}"},
        "s.yaml:4: metric.name: unknown metric 'epoch_seconds'; known: ",
    ),
    (
        {4: "metric: {name: val_accuracy, mode: max, log: [val_auc]}"},
        "s.yaml:4: metric.log[0]: unknown metric 'val_auc' (did you mean 'val_auroc'?); known: METRIC/",
    ),
    (
        {4: "metric: {name: val_kappa/cat, mode: max}"},
        "s.yaml:4: metric.name: unknown metric 'val_kappa/cat'",
    ),
    (
        {4: "metric: {name: val_f1/cat, mode: min}"},
        "s.yaml:4: metric.mode: val_f1/cat goes with mode max, but got min.",
    ),
    (
        {4: "metric: {name: val_accuracy_by_class, mode: max}"},
        "s.yaml:4: metric.name: unknown metric 'val_accuracy_by_class'",
    ),
    (
        {4: "metric: {name: val_accuracy, mode: max, log: [val_loss_by_class]}"},
        "s.yaml:4: metric.log[0]: unknown metric 'val_loss_by_class'",
    ),
    (
        {4: "metric: {name: val_accuracy, mode: max, log: [a.b:c, other:c]}"},
        "s.yaml:4: metric.log[1]: each metric must have a name that no other metric has, but got val_c.",
    ),
    (
        {4: "metric: {name: val_accuracy, mode: max, log: [mine:loss]}"},
        "s.yaml:4: metric.log[0]: each metric must have a name that no other metric has, but got val_loss.",
    ),
    (
        {4: "metric: {name: test_accuracy, mode: max, log: [val_auroc]}"},
        "s.yaml:4: metric.log: must be left out, because trials that are evaluated on test images have no",
    ),
    (
        {4: "metric: {name: val_auroc, mode: min}"},
        "s.yaml:4: metric.mode: val_auroc goes with mode max, but got min.",
    ),
    (
        {4: "metric: {name: val_loss, mode: max}"},
        "s.yaml:4: metric.mode: val_loss goes with mode min, but got max.",
    ),
    ({4: "metric: {name: val_loss, mode: minimize}"}, "That is another tool's word: write `min`."),
    (
        {4: "metric: {name: val_accuracy, mode: max, against: latency}"},
        "s.yaml:4: metric.against: must be 'gmacs' or 'compute_hours', but got 'latency'.",
    ),
    (
        {4: "metric: {name: val_accuracy, mode: max, against: flops}"},
        "but got 'flops'. That is another tool's word: write `gmacs`.",
    ),
    (
        {4: "metric: {name: val_accuracy, mode: max, second_objective: gmacs}"},
        "That is another tool's word: write `against`.",
    ),
    ({4: "metric: {name: val_loss, mode: min, goal: min}"}, "s.yaml:4: metric.goal: unknown key 'goal'"),
    (
        {5: "fidelity: {min: 9, max: 3}"},
        "s.yaml:5: fidelity.min: `min <= max` must hold, but got min=9, max=3.",
    ),
    ({5: "fidelity: {min: 0, max: 3}"}, "s.yaml:5: fidelity.min: must be at least 1, but got 0."),
    (
        {5: "fidelity: {max: 1000000000000}"},
        "s.yaml:5: fidelity.max: must be at most 100000, but got 1000000000000.",
    ),
    ({5: "fidelity: {max: 3.0}"}, "s.yaml:5: fidelity.max: must be a whole number, but got 3.0."),
    ({5: "fidelity: {max: 3, max_t: 3}"}, "known: max, min, name. That is another tool's word: write `max`."),
    ({5: "fidelity: {max: 3, grace_period: 1}"}, "That is another tool's word: write `min`."),
    ({5: "fidelity:\n  name: step\n  max: 9"}, "s.yaml:6: fidelity.name: must be 'epoch', but got 'step'."),
    (
        {6: "sampler: {type: bayes}"},
        "'grid' or 'nsga2', but got 'bayes'. That is another tool's word: write `type: tpe`",
    ),
    ({6: "sampler: {type: tpe, seed: -1}"}, "s.yaml:6: sampler.seed: must be at least 0, but got -1."),
    (
        {6: "sampler: {type: tpe, seed: true}"},
        "s.yaml:6: sampler.seed: must be a whole number, but got True.",
    ),
    ({6: "sampler: {type: gp}"}, "s.yaml:15: parameters.drop_path.when: sampler gp takes no `when`"),
    (
        {7: "scheduler: {type: hyperband}"},
        "s.yaml:7: scheduler.type: must be 'auto', 'asha', 'median' or 'none', but got 'hyperband'.",
    ),
    (
        {7: "scheduler: {variant: pause}"},
        "s.yaml:7: scheduler.variant: must be 'stop' or 'promote', but got 'pause'.",
    ),
    (
        {7: "scheduler: {type: median, variant: promote}"},
        "s.yaml:7: scheduler.variant: must be left out unless `scheduler.type` is asha, but got promote.",
    ),
    (
        {7: "scheduler: {type: none, variant: promote}"},
        "s.yaml:7: scheduler.variant: must be left out unless `scheduler.type` is asha, but got promote.",
    ),
    (
        {7: "scheduler: {type: none, reduction_factor: 4}"},
        "s.yaml:7: scheduler.reduction_factor: must be left out unless `scheduler.type` is asha, but got 4.",
    ),
    ({7: "scheduler: {promote: true}"}, "That is another tool's word: write `variant: promote`."),
    ({7: "scheduler: {type: asha, grace_period: 1}"}, "That is another tool's word: write `fidelity.min`."),
    (
        {7: "scheduler: {reduction_factor: 1}"},
        "s.yaml:7: scheduler.reduction_factor: must be at least 2, but got 1.",
    ),
    (
        {7: "scheduler: {group_by: width}"},
        "s.yaml:7: scheduler.group_by: must name a categorical parameter without",
    ),
    ({7: "scheduler: {group_by: learning_rate}"}, "but got 'learning_rate'. Choose from: depth."),
    ({8: "budget: {trials: 0}"}, "s.yaml:8: budget.trials: must be at least 1, but got 0."),
    ({8: "budget: {trials: 1e3}"}, "s.yaml:8: budget.trials: must be a whole number, but got 1000.0."),
    (
        {8: "budget: {trials: 1, hours: .inf}"},
        "s.yaml:8: budget.hours: must be a finite number, but got inf.",
    ),
    ({8: "budget: {trials: 1, hours: 0}"}, "s.yaml:8: budget.hours: must be greater than 0"),
    (
        {9: "resources_per_trial: {gpu: 1.5}"},
        "or on a share of it, but got 1.5. Write `workers: 2, gpu: 1` for a trial of several GPUs.",
    ),
    ({9: "resources_per_trial: {workers: 0}"}, "s.yaml:9: resources_per_trial.workers: must be at least 1"),
    (
        {9: "resources_per_trial: {workers: 2, gpu: auto}"},
        "gpu: must be 1, or 0, where a trial has several `workers`",
    ),
    (
        {9: "resources_per_trial: {workers: 2, gpu: 0.5}"},
        "gpu: must be 1, or 0, where a trial has several `workers`",
    ),
    ({9: "resources_per_trial: {num_workers: 2}"}, "That is another tool's word: write `workers`."),
    (
        {9: "resources_per_trial: {accelerator: L4}"},
        "accelerator: must be left out unless a trial has a `gpu`, but got 'L4'.",
    ),
    ({9: "resources_per_trial: {gpu: -1}"}, "s.yaml:9: resources_per_trial.gpu: must be at least 0"),
    ({9: "resources_per_trial: {num_gpus: 1}"}, "That is another tool's word: write `gpu`."),
]


@pytest.mark.parametrize(("lines", "message"), ONE_PROBLEM, ids=[message[:60] for _, message in ONE_PROBLEM])
def test_a_broken_rule_is_reported_with_its_line(
    error_lines: Callable[[dict[int, str]], list[str]], lines: dict[int, str], message: str
) -> None:
    errors = error_lines(lines)
    assert message in "\n".join(errors)
    assert len({line.split(": ")[0] for line in errors}) == 1, errors

"""The stopping rule of every scheduler that a space file may name, and its rungs."""

from __future__ import annotations

import pytest

from tune_rescon.spaces import list_spaces, load_space
from tune_rescon.tuning import Decision, MedianRule, SuccessiveHalving, make_stopping_rule, possible_rungs
from tune_rescon.tuning.stopping.rule import Observation


@pytest.mark.parametrize(
    ("overrides", "rungs"),
    [
        ([], (1, 3, 9)),
        (["scheduler.type=none"], (9,)),
        (["scheduler.reduction_factor=2"], (1, 2, 4, 8, 9)),
        (["fidelity.min=2"], (2, 6, 9)),
        (["fidelity.min=9"], (9,)),
    ],
)
def test_rungs_follow_from_the_scheduler_settings(overrides: list[str], rungs: tuple[int, ...]) -> None:
    assert possible_rungs(load_space("digits", overrides)) == rungs


@pytest.mark.parametrize("name", [name for name in list_spaces() if name != "folder"])
def test_the_rungs_of_every_shipped_space_end_at_its_last_epoch(name: str) -> None:
    space = load_space(name)
    rungs = possible_rungs(space)
    assert rungs[-1] == space.fidelity.max
    assert list(rungs) == sorted(set(rungs))
    assert space.scheduler.type == "none" or rungs[0] == space.fidelity.min


def test_without_a_scheduler_no_trial_is_stopped() -> None:
    ladder = make_stopping_rule(load_space("digits", ["scheduler.type=none"]))
    for number, value in enumerate((0.9, 0.8, 0.1)):
        early, last = (Observation(number=number, epoch=epoch, value=value) for epoch in (1, 9))
        assert ladder.judge(early).decision is Decision.CONTINUE
        assert ladder.judge(last).decision is Decision.FINISH


@pytest.mark.parametrize(
    ("metric", "mode", "worst"), [("val_accuracy", "max", 0.1), ("val_loss", "min", 0.9)]
)
def test_the_metrics_mode_decides_whether_larger_is_better(metric: str, mode: str, worst: float) -> None:
    ladder = make_stopping_rule(load_space("digits", [f"metric={{name: {metric}, mode: {mode}}}"]))
    for number, value in enumerate((0.5, 0.4)):
        ladder.judge(Observation(number=number, epoch=1, value=value))
    assert ladder.judge(Observation(number=2, epoch=1, value=worst)).decision is Decision.STOP


@pytest.mark.parametrize(
    ("overrides", "kind", "pauses"),
    [
        ([], SuccessiveHalving, False),
        (["scheduler.variant=promote"], SuccessiveHalving, True),
        (["scheduler.type=none"], SuccessiveHalving, False),
        (["scheduler={type: median}"], MedianRule, None),
    ],
)
def test_each_scheduler_has_its_stopping_rule(overrides: list[str], kind: type, pauses: bool | None) -> None:
    rule = make_stopping_rule(load_space("digits", overrides))
    assert type(rule) is kind
    assert getattr(rule, "pauses", None) is pauses

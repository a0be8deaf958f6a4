from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from tune_rescon.config import TrialConfig
from tune_rescon.training.optim import (
    constant,
    cosine,
    make_schedule,
    multistep,
    warmup_stable_decay,
)

SCHEDULES = ("multistep", "cosine", "warmup_stable_decay", "constant")


@st.composite
def lengths(draw: st.DrawFn) -> tuple[int, int, int]:
    """Epochs, steps per epoch, warm-up epochs: warm-up may outlast training."""
    return draw(st.integers(1, 12)), draw(st.integers(1, 30)), draw(st.integers(0, 14))


@pytest.mark.parametrize("name", SCHEDULES)
@given(length=lengths())
def test_a_multiplier_rises_while_warming_up_and_never_after(name: str, length: tuple[int, int, int]) -> None:
    epochs, steps_per_epoch, warmup_epochs = length
    config = TrialConfig(schedule=name, warmup_epochs=warmup_epochs)
    total = epochs * steps_per_epoch
    multiplier = make_schedule(config, total_steps=total, steps_per_epoch=steps_per_epoch)
    values = [multiplier(step) for step in range(total + 1)]
    warm = min(warmup_epochs * steps_per_epoch, total)
    assert all(0.0 <= value <= 1.0 for value in values)
    assert values[0] > 0 or total == 0
    assert all(later <= earlier for earlier, later in zip(values[warm:], values[warm + 1 :], strict=False))


@pytest.mark.parametrize("name", [*SCHEDULES, "cosine_restarts"])
@given(length=lengths())
def test_every_training_step_has_a_positive_multiplier(name: str, length: tuple[int, int, int]) -> None:
    epochs, steps_per_epoch, warmup_epochs = length
    config = TrialConfig(schedule=name, warmup_epochs=warmup_epochs)
    total = epochs * steps_per_epoch
    multiplier = make_schedule(config, total_steps=total, steps_per_epoch=steps_per_epoch)
    assert all(multiplier(step) > 0 for step in range(total))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (constant(10**6, 5), 1.0),
        (cosine(0, 100), 1.0),
        (cosine(100, 100), 0.0),
        (cosine(1000, 100), 0.0),
        (multistep(99, 100, 0, fractions=(99,)), 0.1),
        (multistep(98, 100, 0, fractions=(99,)), 1.0),
        (multistep(0, 100, 2, fractions=(40, 60)), 0.5),
        (warmup_stable_decay(0, 10, 0, decay_fraction=1.0), 1.0),
        (warmup_stable_decay(5, 10, 0, decay_fraction=1.0), 0.5),
    ],
)
def test_schedules_have_the_expected_boundary_values(value: float, expected: float) -> None:
    assert math.isclose(value, expected, abs_tol=1e-12)


@given(length=lengths(), cycles=st.integers(1, 6))
def test_a_restarted_cosine_is_a_cosine_in_each_cycle(length: tuple[int, int, int], cycles: int) -> None:
    epochs, steps_per_epoch, warmup_epochs = length
    warm, within = warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
    total = warm + cycles * within
    config = TrialConfig(schedule="cosine_restarts", warmup_epochs=warmup_epochs, cycles=cycles)
    multiplier = make_schedule(config, total_steps=total, steps_per_epoch=steps_per_epoch)
    values = [multiplier(step) for step in range(total + 1)]
    assert values[:warm] == [cosine(step, total, warm) for step in range(warm)]
    expected = [cosine(step, within) for step in range(within)]
    for cycle in range(cycles):
        start = warm + cycle * within
        assert values[start : start + within] == pytest.approx(expected, abs=1e-9)
    assert values[-1] == 0


def test_cosine_restarts_with_one_cycle_equal_cosine() -> None:
    restarts, single_cycle = (
        make_schedule(
            TrialConfig(schedule=name, warmup_epochs=1, cycles=1), total_steps=50, steps_per_epoch=7
        )
        for name in ("cosine_restarts", "cosine")
    )
    assert [restarts(step) for step in range(60)] == [single_cycle(step) for step in range(60)]


def test_the_papers_recipe_drops_at_64k_and_96k_of_160k() -> None:
    config = TrialConfig(schedule="multistep", step_fractions=(40, 60))
    multiplier = make_schedule(config, total_steps=160_000, steps_per_epoch=800)
    drops = [step for step in range(1, 160_000) if multiplier(step) < multiplier(step - 1)]
    assert drops == [64_000, 96_000]


def test_the_optimizer_steps_at_the_scheduled_rates() -> None:
    config = TrialConfig(schedule="cosine", warmup_epochs=1, learning_rate=0.3)
    multiplier = make_schedule(config, total_steps=12, steps_per_epoch=3)
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = LambdaLR(optimizer, multiplier)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.3 * multiplier(step) for step in range(12)])

"""Learning-rate schedules: pure functions of the step, the training's length and the warm-up's length.

Every function returns the multiplier of ``learning_rate`` for step ``step``, counted from 0: the step about
to be taken, which is what ``torch.optim.lr_scheduler.LambdaLR`` asks for. ``total_steps`` is the one length
of a training (epochs x steps per epoch); at ``step == total_steps`` nothing is left to train.

Warm-up is linear and ends at 1: step ``s`` of ``w`` runs at ``(s + 1) / w``, so the first step moves (Goyal
et al. 2017, section 2.2). The curve after it is laid over the steps that remain, except ``multistep``, whose
drops stay at the shares of the whole training that the paper names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tune_rescon.config import TrialConfig

__all__ = ["constant", "cosine", "multistep", "schedule_of", "warmup_stable_decay"]


def schedule_of(config: TrialConfig, *, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """The multiplier ``config`` asks for, as a function of the step alone.

    >>> rate = schedule_of(TrialConfig(schedule="cosine", warmup_epochs=1), total_steps=9, steps_per_epoch=1)
    >>> [rate(step) for step in (0, 1, 5, 9)]
    [1.0, 1.0, 0.5, 0.0]
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    match config.schedule:
        case "multistep":
            return lambda step: multistep(step, total_steps, warmup_steps, fractions=config.step_fractions)
        case "cosine":
            return lambda step: cosine(step, total_steps, warmup_steps)
        case "warmup_stable_decay":
            return lambda step: warmup_stable_decay(
                step, total_steps, warmup_steps, decay_fraction=config.decay_fraction
            )
        case _:
            return lambda step: constant(step, warmup_steps)


def constant(step: int, warmup_steps: int = 0) -> float:
    """1 once warm.

    >>> [constant(step, 4) for step in (0, 3, 4, 100)]
    [0.25, 1.0, 1.0, 1.0]
    """
    return _warmup(step, warmup_steps)


def multistep(step: int, total_steps: int, warmup_steps: int = 0, *, fractions: Sequence[int]) -> float:
    """Divided by 10 at each of ``fractions``, per cent of ``total_steps``.

    Wang et al. 2017, section 4.1: 160k iterations, divided at 64k and 96k.

    >>> [multistep(step, 160_000, fractions=(40, 60)) for step in (0, 63_999, 64_000, 95_999, 96_000)]
    [1.0, 1.0, 0.1, 0.1, 0.01]
    """
    drops = sum(100 * step >= fraction * total_steps for fraction in fractions)
    return float(_warmup(step, warmup_steps) / 10**drops)


def cosine(step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """Half a cosine from 1, where warm-up ends, to 0 at ``total_steps`` (Loshchilov & Hutter 2017, eq. 5).

    >>> [round(cosine(step, 110, 10), 3) for step in (0, 9, 10, 35, 60, 110)]
    [0.1, 1.0, 1.0, 0.854, 0.5, 0.0]
    """
    if step < warmup_steps:
        return _warmup(step, warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * _progress(step, warmup_steps, total_steps)))


def warmup_stable_decay(
    step: int, total_steps: int, warmup_steps: int = 0, *, decay_fraction: float = 0.2
) -> float:
    """1 until the last ``decay_fraction`` of ``total_steps``, then linearly to 0 (Hu et al. 2024, section 4).

    Where warm-up and decay overlap, the lower of the two holds.

    >>> [warmup_stable_decay(step, 100, 10, decay_fraction=0.2) for step in (0, 9, 80, 90, 100)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    decay_start = (1.0 - decay_fraction) * total_steps
    return min(_warmup(step, warmup_steps), 1.0 - _progress(step, decay_start, total_steps))


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def _progress(step: float, start: float, end: float) -> float:
    """Share of the way from ``start`` to ``end``, held to [0, 1]; 1 where there is no way to go."""
    return min(1.0, max(0.0, (step - start) / (end - start))) if end > start else 1.0

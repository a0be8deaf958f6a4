"""A search's trials, put together as a :class:`.StudyResult`: by its run, and by whoever reads its record."""

from __future__ import annotations

from pathlib import Path

from tune_rescon.errors import presentable
from tune_rescon.passwords import hide_passwords
from tune_rescon.tuning.pricing import Pricing
from tune_rescon.tuning.record.summary import TrialSummary
from tune_rescon.tuning.result import SearchState, StudyResult, best_trial
from tune_rescon.tuning.rules.ladder import ladder_levels

__all__ = ["sum_up"]


def sum_up(
    pricing: Pricing,
    trials: tuple[TrialSummary, ...],
    *,
    name: str,
    folder: Path,
    state: SearchState,
    tracking_uri: str,
    url: str | None = None,
    failure: str | None = None,
    foreign: tuple[int, ...] = (),
    space_history: tuple[str, ...] = (),
) -> StudyResult:
    """The result of a search of ``pricing.space`` whose record holds ``trials``.

    Args:
        pricing: prices their networks.
        trials: all of them, by number.
        name: the search's.
        folder: where its files are on this machine.
        state: how it stands.
        tracking_uri: MLflow; a password in it is hidden.
        url: where the folder is kept, if the storage is a URL; a password in it is hidden.
        failure: why it ended before its time.
        foreign: numbers of the study's trials that another program made.
        space_history: what resumes have changed of the space, a line each.
    """
    space = pricing.space
    best = best_trial(trials, by_mean=space.metric.of_test_images)
    config = best.config(space) if best else None
    return StudyResult(
        name=name,
        space=space,
        folder=folder,
        metric=space.metric.name,
        maximize=space.metric.mode == "max",
        trials=trials,
        costs={trial.number: pricing.cost(trial) for trial in trials},
        devices_per_trial=pricing.devices,
        device=pricing.device,
        levels=ladder_levels(space),
        best=best,
        best_config=config.to_dict() if config else {},
        state=state,
        tracking_uri=hide_passwords(tracking_uri),
        url=None if url is None else hide_passwords(url),
        against=space.metric.against,
        failure=None if failure is None else presentable(failure),
        foreign=foreign,
        space_history=space_history,
        accounts={name: facts.account for name, facts in pricing.facts.items() if facts.account},
    )

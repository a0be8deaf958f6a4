"""What a warm search keeps of the earlier one, so that a resume learns from the same trials."""

from __future__ import annotations

import math

import optuna

from tune_rescon.config import TrialState
from tune_rescon.tuning import StudyRecord, TrialSummary
from tune_rescon.tuning.proposing.warm_start import note_earlier, noted_earlier


def record() -> StudyRecord:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, direction="maximize")
    number = storage.get_study_id_from_name(study.study_name)
    return StudyRecord.on(storage, number, metric="val_accuracy")


def test_a_trials_whole_curve_is_kept() -> None:
    """Trials are compared at a rung below their last epoch."""
    earlier = TrialSummary(
        number=3,
        state=TrialState.FINISHED,
        parameters={"learning_rate": 0.1},
        metric="val_accuracy",
        maximize=True,
        values=(0.2, 0.5, 0.4),
    )
    kept = record()
    note_earlier(kept, [earlier])
    assert noted_earlier(kept) == [earlier]


def test_of_an_earlier_versions_note_the_last_value_is_known() -> None:
    kept = record()
    note = {"number": 3, "state": "finished", "parameters": {}, "metric": "val_accuracy"}
    kept.set_attribute("warm_start", [{**note, "epochs": 2, "value": 0.4, "cost": None}])
    (trial,) = noted_earlier(kept)
    assert math.isnan(trial.values[0])
    assert trial.values[1:] == (0.4,)

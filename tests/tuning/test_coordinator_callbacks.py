"""The events that callbacks get."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from typing_extensions import override

from tests.tuning.coordinating import (
    EPOCHS,
    RecordingCallback,
    Study,
    coordinator,
    curve,
    metrics,
    next_number,
)
from tune_rescon.config import TrialState
from tune_rescon.testing import simulate
from tune_rescon.tuning import (
    SearchCallback,
    TrialRecord,
    Verdict,
)
from tune_rescon.tuning.callbacks import CallbackList


def test_callbacks_get_every_event_in_order() -> None:
    callback = RecordingCallback()
    simulate(coordinator(Study(), total=1, callbacks=(callback,)), curve)
    epochs = [f"0 epoch {epoch} continue" for epoch in range(1, EPOCHS)]
    assert callback.events == [
        "0 recorded",
        "0 starts at 0",
        *epochs,
        f"0 epoch {EPOCHS} finish",
        "0 finished",
    ]


def test_callbacks_get_a_pause() -> None:
    callback = RecordingCallback()
    search = coordinator(Study(), pauses=True, callbacks=(callback,))
    search.epoch_done(next_number(search), 1, metrics(0.5), None)
    assert callback.events[-2:] == ["0 epoch 1 pause", "0 paused"]


def test_a_note_is_recorded_and_passed_to_callbacks() -> None:
    study, callback = Study(), RecordingCallback()
    search = coordinator(study, total=1, callbacks=(callback,))
    search.note(next_number(search), "beware")
    assert callback.events[-1] == "0 note beware"
    assert study.record().trial(0).notes == ("beware",)


def test_progress_is_passed_to_callbacks_while_the_trial_runs() -> None:
    callback = RecordingCallback()
    search = coordinator(Study(), total=1, callbacks=(callback,))
    number = next_number(search)
    search.progress(number, 0.25)
    search.close(number, TrialState.FAILED, error="gone")
    search.progress(number, 0.5)
    assert [line for line in callback.events if "%" in line] == ["0 at 25% of epoch 1"]


def test_a_users_callback_that_raises_is_not_called_again(progress: list[str]) -> None:
    class FaultyCallback(SearchCallback):
        calls = 0

        @override
        def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
            self.calls += 1
            raise ValueError("no connection")

    faulty, callback = FaultyCallback(), RecordingCallback()
    search = coordinator(Study(), total=2, callbacks=(CallbackList([faulty, callback], safe=True),))
    simulate(search, curve)
    assert faulty.calls == 1
    (line,) = [line for line in progress if "Faulty" in line]
    assert line == (
        "The callback FaultyCallback raised ValueError: no connection. It is not called again; the search"
        " continues."
    )
    assert sum(" epoch " in line for line in callback.events) > 2


def test_an_error_in_a_callback_of_the_search_itself_is_raised() -> None:
    class FaultyCallback(SearchCallback):
        @override
        def on_trial_start(self, trial: TrialRecord) -> None:
            raise ValueError("no connection")

    search = coordinator(Study(), total=2, callbacks=(FaultyCallback(),))
    with pytest.raises(ValueError, match="no connection"):
        search.next_trial()

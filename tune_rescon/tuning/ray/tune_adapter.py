"""Tune's searcher and scheduler as the working thread runs them: each call is a turn.

This is where the thread that may hang in Ray touches what the main thread may take away from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tune_rescon.config import TrialState
from tune_rescon.tuning.coordinator import Coordinator
from tune_rescon.tuning.ray.shutdown import DriverLock
from tune_rescon.tuning.ray.worker import TrialTask
from tune_rescon.tuning.schedulers import Decision
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "PATIENCE",
    "PATIENCE_AGAIN",
    "CoordinatorScheduler",
    "CoordinatorSearcher",
    "KeptProcesses",
    "LeavingCallback",
    "TurnTakingScheduler",
    "TurnTakingSearcher",
    "WaitingTrials",
]


#: Seconds a trial waits for the process that was asked for it before it may have another's: more than one
#: needs to start, also on a machine with twenty times too much to do, or a cluster to grow by a node.
PATIENCE: Final = 600.0

#: And one that had a process, which died or went: its machine may not come back.
PATIENCE_AGAIN: Final = 20.0


class WaitingTrials:
    """The trials that have no process yet, first in first.

    Tune asks for a process for every trial that finds none free. A scheduler may then name who gets the next
    one that is free (``TrialScheduler.choose_trial_to_run``), and Tune takes back what it had asked for that
    trial, though that process may be about to start; the next new trial finds none free, and asks anew.
    Tune's own schedulers name the oldest. Where trials are shorter than the start of a process, the slots
    that began late so never get one: of 179 processes that were asked for, 6 came to run trials.

    With nobody named, a free process goes to a trial for which none was asked. But on a cluster that has
    fewer places than the search has slots (it has yet to grow), those that wait would do so until the search
    ends; so who has waited too long is named, and soon who has lost a process.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds."""
        self._clock = clock
        self._waiting: list[tuple[float, Trial]] = []

    def add(self, trial: Trial, *, again: bool = False) -> None:
        """A new one of Tune's trials; ``again``: one of the search's that had a process before."""
        self._waiting.append((self._clock() + (PATIENCE_AGAIN if again else PATIENCE), trial))

    def overdue(self) -> Trial | None:
        """Who is to have the next process that is free, whatever was asked for it; None: nobody is named."""
        self._waiting = [(until, trial) for until, trial in self._waiting if trial.status == Trial.PENDING]
        now = self._clock()
        return next((trial for until, trial in self._waiting if now > until), None)


def node_is_gone(address: str) -> bool:
    """Whether Ray has no living node at ``address``."""
    import ray

    return not any(node["Alive"] and node["NodeManagerAddress"] == address for node in ray.nodes())


class CoordinatorScheduler(FIFOScheduler):
    """Which trial gets a free process: :class:`.WaitingTrials`. When it ends: the coordinator's decision."""

    # Buffered results would be judged late, in bulk.
    _supports_buffered_results = False

    def __init__(
        self, coordinator: Coordinator, *, node_is_gone: Callable[[str], bool] = node_is_gone
    ) -> None:
        """Wrap ``coordinator``; ``node_is_gone`` is asked of the address of a node whose trial died."""
        super().__init__()
        self._coordinator = coordinator
        self._node_is_gone = node_is_gone
        self._leaving: set[int] = set()
        self._struck: set[int] = set()
        self._waiting = WaitingTrials()

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles its parts for a restore this package does not use."""
        return {}

    def on_trial_add(self, tune_controller: object, trial: Trial) -> None:
        """Have it wait its turn."""
        del tune_controller
        number = trial.config["number"]
        self._waiting.add(trial, again=number in self._struck)
        self._struck.discard(number)

    def choose_trial_to_run(self, tune_controller: object) -> Trial | None:
        """Name who takes over the next process that is free, though another was asked for it."""
        del tune_controller
        return self._waiting.overdue()

    def on_trial_error(self, tune_controller: object, trial: Trial) -> None:
        """Say that a trial's worker died, and whether its node went with it.

        Tune tells its searcher as well, but not which node it was.
        """
        del tune_controller
        number, address = trial.config["number"], trial.node_ip
        self._struck.add(number)
        if number in self._leaving:
            self._leaving.discard(number)
            self._coordinator.worker_left(number)
            return
        self._coordinator.worker_died(
            number, node_is_gone=address is not None and self._node_is_gone(address)
        )

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> str:
        """Take one report of :func:`.run_trial`; Tune hands it over flattened."""
        del tune_controller, trial
        number = result["number"]
        if "error" in result:
            self._coordinator.close(number, TrialState(result["state"]), error=result["error"])
            return str(TrialScheduler.STOP)
        if "note" in result:
            self._coordinator.note(number, result["note"])
            if result.get("leaving"):
                self._leaving.add(number)
            return str(TrialScheduler.CONTINUE)
        prefix = "metrics/"
        metrics = {k.removeprefix(prefix): v for k, v in result.items() if k.startswith(prefix)}
        decision = self._coordinator.epoch_done(
            number, result["epoch"], metrics, result["checkpoint"], device=result.get("device")
        )
        return str(TrialScheduler.CONTINUE if decision is Decision.CONTINUE else TrialScheduler.STOP)


class CoordinatorSearcher(Searcher):
    """Hands the coordinator's trials to Tune.

    Results and deaths do not pass through here: Tune shows a searcher neither the result that stops a trial
    nor the node it ran on, so the scheduler takes them all. Tune's saving of searcher state is switched off
    by leaving it empty: the record is the state.
    """

    def __init__(self, coordinator: Coordinator, make_task: Callable[[TrialRecord], TrialTask]) -> None:
        """Wrap ``coordinator``; ``make_task`` says what a worker is told about a trial."""
        super().__init__()
        self._coordinator = coordinator
        self._make_task = make_task
        self._numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles its parts for a restore this package does not use."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Tune's config of the next trial; Tune's word that there is none, or None to be asked again."""
        trial = self._coordinator.next_trial()
        if trial is None:
            return str(Searcher.FINISHED) if self._coordinator.exhausted else None
        self._numbers[trial_id] = trial.number
        return self._make_task(trial).to_dict()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Close a trial whose function ended before its last epoch."""
        del result
        if not error:
            self._coordinator.close(self._numbers[trial_id], TrialState.FAILED, error="training ended early")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: resuming reads the record."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the record is the state."""


class KeptProcesses:
    """Has Tune keep the process of every slot as long as there are trials to come.

    Tune keeps one, and as many as wait for a place at that moment (``TuneController._actor_cache`` of ray
    2.60). As many trials as there are slots run, so none waits: of those that end within a turn of Tune's
    loop all but one lose their process, and the next trials pay for new ones. With 16 slots and trials of a
    second that was six seconds for each trial.
    """

    def __init__(self, coordinator: Coordinator, *, resources: Any, slots: int) -> None:
        """``resources``: the placement group factory that all trials share."""
        self._coordinator = coordinator
        self._resources = resources
        self._slots = slots
        self._kept = 0

    def keep(self, controller: Any) -> None:
        """Called before each round of Tune's; ``controller`` is what Tune shows its scheduler.

        Once no trial is to come the processes go, so that their machines can.
        """
        wanted = 0 if self._coordinator.exhausted else self._slots
        if wanted != self._kept:
            # What a scheduler is shown has no name for it.
            cache = controller._tune_controller._actor_cache
            cache.increase_max(self._resources, wanted - self._kept)
            self._kept = wanted


class TurnTakingSearcher(CoordinatorSearcher):
    """Asks for trials, and closes them, in turn."""

    def __init__(
        self, coordinator: Coordinator, make_task: Callable[[TrialRecord], TrialTask], turns: DriverLock
    ) -> None:
        """Take ``turns``."""
        super().__init__(coordinator, make_task)
        self._turns = turns

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """See :meth:`.CoordinatorSearcher.suggest`."""
        with self._turns.turn():
            return super().suggest(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """See :meth:`.CoordinatorSearcher.on_trial_complete`."""
        with self._turns.turn():
            super().on_trial_complete(trial_id, result, error)


class TurnTakingScheduler(CoordinatorScheduler):
    """Judges results in turn."""

    def __init__(self, coordinator: Coordinator, turns: DriverLock, processes: KeptProcesses) -> None:
        """Take ``turns``. Tune begins each round by asking its scheduler: then ``processes`` are kept."""
        super().__init__(coordinator)
        self._turns = turns
        self._processes = processes

    def choose_trial_to_run(self, tune_controller: object) -> Trial | None:
        """See :meth:`.CoordinatorScheduler.choose_trial_to_run`."""
        with self._turns.turn():
            self._processes.keep(tune_controller)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_error(self, tune_controller: object, trial: Trial) -> None:
        """See :meth:`.CoordinatorScheduler.on_trial_error`."""
        with self._turns.turn():
            super().on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> str:
        """See :meth:`.CoordinatorScheduler.on_trial_result`."""
        with self._turns.turn():
            return super().on_trial_result(tune_controller, trial, result)


class LeavingCallback(tune.Callback):
    """Ends Tune's loop when there are no turns left, also where an epoch takes an hour."""

    def __init__(self, turns: DriverLock) -> None:
        """Look at ``turns``."""
        self._turns = turns

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles its parts for a restore this package does not use."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """About ten times a second."""
        del iteration, trials, info
        self._turns.check()

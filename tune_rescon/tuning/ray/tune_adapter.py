"""Tune's searcher and scheduler, which call the coordinator.

Tune runs on a thread, which may hang in Ray. Each of its calls therefore holds :class:`.DriverLock`. The main
thread can close that lock, and so takes the coordinator and the record away from the thread.
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
from tune_rescon.tuning.stopping.rule import Decision
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "RETRY_WAIT_SECONDS",
    "TIMEOUT",
    "AbortCallback",
    "ActorReuse",
    "CoordinatorScheduler",
    "CoordinatorSearcher",
    "LockedScheduler",
    "LockedSearcher",
    "PendingTrials",
]


#: Seconds a trial waits for the worker process requested for it before it may get another trial's. A process
#: needs less to start, even on a machine with twenty times its load, and so does a cluster to add a node.
TIMEOUT: Final = 600.0

#: The same for a trial whose worker process died or was preempted, because its machine may not return.
RETRY_WAIT_SECONDS: Final = 20.0


class PendingTrials:
    """The trials without a worker process, in order of arrival.

    Tune requests a process for every trial that finds no free one. A scheduler may then name the trial that
    gets the next free process (``TrialScheduler.choose_trial_to_run``). Tune then cancels the process that it
    had requested for this trial, even if that process is about to start. The next new trial finds no free
    process and requests another one. Tune's own schedulers name the oldest trial. If trials are shorter than
    the start of a process, the slots that began late therefore never get a process: of 179 requested
    processes, 6 ran trials.

    If no trial is named, a free process goes to a trial for which no process was requested. However, if a
    cluster has fewer places than the search has slots (because the cluster has yet to grow), the waiting
    trials would wait until the search ends. Therefore a trial is named after it has waited too long
    (:data:`TIMEOUT`), and sooner if it has lost a process (:data:`RETRY_WAIT_SECONDS`).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without trials; ``clock`` returns the time in seconds."""
        self._clock = clock
        self._waiting: list[tuple[float, Trial]] = []

    def add(self, trial: Trial, *, again: bool = False) -> None:
        """Add a new Tune trial. ``again`` is True if the search's trial had a process before."""
        self._waiting.append((self._clock() + (RETRY_WAIT_SECONDS if again else TIMEOUT), trial))

    def overdue(self) -> Trial | None:
        """Return the trial to name for the next free process; None to name no trial."""
        self._waiting = [(until, trial) for until, trial in self._waiting if trial.status == Trial.PENDING]
        now = self._clock()
        return next((trial for until, trial in self._waiting if now > until), None)


def node_is_gone(address: str) -> bool:
    """Return whether Ray has no living node at ``address``."""
    import ray

    return not any(node["Alive"] and node["NodeManagerAddress"] == address for node in ray.nodes())


class CoordinatorScheduler(FIFOScheduler):
    """Tune's scheduler: stops trials by the coordinator's decisions, and assigns free worker processes.

    :class:`.PendingTrials` decides which trial gets a free process.
    """

    # Buffered results would be evaluated late and in bulk.
    _supports_buffered_results = False

    def __init__(
        self, coordinator: Coordinator, *, node_is_gone: Callable[[str], bool] = node_is_gone
    ) -> None:
        """Wrap ``coordinator``.

        Args:
            coordinator: Decides which trials run and when each one stops.
            node_is_gone: Called with the address of a node on which a trial died; returns True if Ray has no
                living node there.
        """
        super().__init__()
        self._coordinator = coordinator
        self._node_is_gone = node_is_gone
        self._preempted: set[int] = set()
        self._lost_worker: set[int] = set()
        self._waiting = PendingTrials()

    def __getstate__(self) -> dict[str, object]:
        """Return no state, because Tune pickles its parts for a restore that this package does not use."""
        return {}

    def on_trial_add(self, tune_controller: object, trial: Trial) -> None:
        """Add the trial to those that wait for a process."""
        del tune_controller
        number = trial.config["number"]
        self._waiting.add(trial, again=number in self._lost_worker)
        self._lost_worker.discard(number)

    def choose_trial_to_run(self, tune_controller: object) -> Trial | None:
        """Return the trial that gets the next free process although another was requested for it."""
        del tune_controller
        return self._waiting.overdue()

    def on_trial_error(self, tune_controller: object, trial: Trial) -> None:
        """Tell the coordinator whether a trial's worker was preempted or died, and whether its node was lost.

        Tune calls its searcher as well, but does not pass it the node.
        """
        del tune_controller
        number, address = trial.config["number"], trial.node_ip
        self._lost_worker.add(number)
        if number in self._preempted:
            self._preempted.discard(number)
            self._coordinator.worker_preempted(number)
            return
        self._coordinator.worker_failed(
            number, node_is_gone=address is not None and self._node_is_gone(address)
        )

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> str:
        """Pass one report of :func:`.run_trial` to the coordinator.

        Args:
            tune_controller: Unused.
            trial: Unused.
            result: The report, which Tune has flattened.

        Returns:
            Tune's constant for continuing or stopping the trial.
        """
        del tune_controller, trial
        number = result["number"]
        if "unusable" in result:
            self._coordinator.abort(number, result["unusable"])
            return str(TrialScheduler.STOP)
        if "error" in result:
            self._coordinator.close(number, TrialState(result["state"]), error=result["error"])
            return str(TrialScheduler.STOP)
        if "progress" in result:
            self._coordinator.progress(number, result["progress"])
            return str(TrialScheduler.CONTINUE)
        if "note" in result:
            self._coordinator.note(number, result["note"])
            if result.get("preempted"):
                self._preempted.add(number)
            return str(TrialScheduler.CONTINUE)
        prefix = "metrics/"
        metrics = {k.removeprefix(prefix): v for k, v in result.items() if k.startswith(prefix)}
        decision = self._coordinator.epoch_done(
            number, result["epoch"], metrics, result["checkpoint"], device=result.get("device")
        )
        return str(TrialScheduler.CONTINUE if decision is Decision.CONTINUE else TrialScheduler.STOP)


class CoordinatorSearcher(Searcher):
    """Tune's searcher: passes the coordinator's trials to Tune.

    The scheduler handles all results and worker deaths, because Tune passes a searcher neither the result
    that stops a trial nor the node on which the trial ran. The methods that save the searcher's state are
    empty, because the record is the state.
    """

    def __init__(self, coordinator: Coordinator, make_task: Callable[[TrialRecord], TrialTask]) -> None:
        """Wrap ``coordinator``; ``make_task`` creates a worker's description of a trial."""
        super().__init__()
        self._coordinator = coordinator
        self._make_task = make_task
        self._numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, object]:
        """Return no state, because Tune pickles its parts for a restore that this package does not use."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return Tune's config of the next trial.

        Returns None if Tune is to ask again later, and ``Searcher.FINISHED`` if no more trials follow.
        """
        trial = self._coordinator.next_trial()
        if trial is None:
            return str(Searcher.FINISHED) if self._coordinator.exhausted else None
        self._numbers[trial_id] = trial.number
        return self._make_task(trial).to_dict()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Close a trial whose function ended before its last epoch.

        Args:
            trial_id: Tune's ID of the trial.
            result: Unused.
            error: True if the trial's worker process died; the scheduler handles that.
        """
        del result
        if not error:
            self._coordinator.close(self._numbers[trial_id], TrialState.FAILED, error="training ended early")

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, because the record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, because a search resumes from the record."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing, because the record is the state."""


class ActorReuse:
    """Makes Tune keep the worker process of every slot while more trials follow.

    By default, Tune keeps one idle process plus one for each trial that waits for a place at that moment
    (``TuneController._actor_cache`` of ray 2.60). As many trials run as the search has slots, so no trial
    waits. Of the trials that end within one step of Tune's loop, all but one therefore lose their process,
    and the next trials must start new ones. With 16 slots and trials of one second, that cost six seconds for
    each trial.
    """

    def __init__(self, coordinator: Coordinator, *, resources: Any, slots: int) -> None:
        """Wrap ``coordinator``; no process is kept yet.

        Args:
            coordinator: The source of the trials.
            resources: The placement group factory that all trials share.
            slots: Number of trials that run at once.
        """
        self._coordinator = coordinator
        self._resources = resources
        self._slots = slots
        self._kept = 0

    def keep(self, controller: Any) -> None:
        """Set how many processes Tune keeps; called before each step of Tune's loop.

        Once no more trials follow, the processes are released, so that their machines can be released too.

        Args:
            controller: The controller that Tune passes to its scheduler.
        """
        wanted = 0 if self._coordinator.exhausted else self._slots
        if wanted != self._kept:
            # The controller that a scheduler gets has no public attribute for the cache.
            cache = controller._tune_controller._actor_cache
            cache.increase_max(self._resources, wanted - self._kept)
            self._kept = wanted


class LockedSearcher(CoordinatorSearcher):
    """A :class:`CoordinatorSearcher` that holds the lock for each call."""

    def __init__(
        self, coordinator: Coordinator, make_task: Callable[[TrialRecord], TrialTask], lock: DriverLock
    ) -> None:
        """Wrap ``coordinator``.

        Args:
            coordinator: Provides the trials.
            make_task: Creates a worker's description of a trial.
            lock: The lock that each call acquires.
        """
        super().__init__(coordinator, make_task)
        self._lock = lock

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """See :meth:`.CoordinatorSearcher.suggest`."""
        with self._lock.hold():
            return super().suggest(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """See :meth:`.CoordinatorSearcher.on_trial_complete`."""
        with self._lock.hold():
            super().on_trial_complete(trial_id, result, error)


class LockedScheduler(CoordinatorScheduler):
    """A :class:`CoordinatorScheduler` that holds the lock for each call."""

    def __init__(self, coordinator: Coordinator, lock: DriverLock, processes: ActorReuse) -> None:
        """Wrap ``coordinator``.

        Args:
            coordinator: Decides which trials run and when each one stops.
            lock: The lock that each call acquires.
            processes: Updated in each step of Tune's loop, which begins with a call of
                :meth:`choose_trial_to_run`.
        """
        super().__init__(coordinator)
        self._lock = lock
        self._processes = processes

    def choose_trial_to_run(self, tune_controller: object) -> Trial | None:
        """See :meth:`.CoordinatorScheduler.choose_trial_to_run`."""
        with self._lock.hold():
            self._processes.keep(tune_controller)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_error(self, tune_controller: object, trial: Trial) -> None:
        """See :meth:`.CoordinatorScheduler.on_trial_error`."""
        with self._lock.hold():
            super().on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> str:
        """See :meth:`.CoordinatorScheduler.on_trial_result`."""
        with self._lock.hold():
            return super().on_trial_result(tune_controller, trial, result)


class AbortCallback(tune.Callback):
    """Ends Tune's loop once :class:`.DriverLock` is closed, even if an epoch takes an hour."""

    def __init__(self, lock: DriverLock) -> None:
        """Store ``lock``, which each step of Tune's loop checks."""
        self._lock = lock

    def __getstate__(self) -> dict[str, object]:
        """Return no state, because Tune pickles its parts for a restore that this package does not use."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Check the lock; Tune calls this about ten times per second."""
        del iteration, trials, info
        self._lock.check()

"""Run trials with Ray Tune: its searcher and its scheduler call the coordinator.

Tune places the trials, keeps their worker processes and reports dead ones. It runs on a thread, which may
hang in Ray. Each of its calls therefore holds :class:`.DriverLock`. The main thread can close that lock, and
so takes the coordinator and the record away from the thread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tune_rescon.config import TrialConfig, TrialState, trial_name
from tune_rescon.spaces import Resources, Space
from tune_rescon.tuning.coordinator import Coordinator
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.ray.preemption import SignalHandlerMixin
from tune_rescon.tuning.ray.shutdown import DriverLock
from tune_rescon.tuning.ray.worker import TrialTask
from tune_rescon.tuning.stopping.rule import Decision
from tune_rescon.tuning.store import SearchStore
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "RETRY_WAIT_SECONDS",
    "WAIT_SECONDS",
    "ActorReuse",
    "CoordinatorScheduler",
    "CoordinatorSearcher",
    "PendingTrials",
    "execute",
    "trial_task",
]


def trial_task(
    trial: TrialRecord, *, space: Space, options: RunOptions, store: SearchStore, digests: Mapping[str, str]
) -> TrialTask:
    """Return a worker's description of a trial of a search.

    Args:
        trial: The trial.
        space: The space of the search.
        options: The options of this run.
        store: The store of the search's files.
        digests: The digest of the images and splits of each dataset, by name.
    """
    origin = trial.origin
    assert origin is not None, "a resume is refused while an unfinished trial has no configuration"
    config = TrialConfig.from_dict(origin.config)
    dataset, resources = space.dataset_config(config.dataset), space.resources_per_trial
    return TrialTask(
        number=trial.number,
        config=config,
        dataset=dataset,
        images=digests.get(dataset.name),
        epochs=space.fidelity.max,
        seed=origin.seed,
        metric=space.metric.name,
        mode=space.metric.mode,
        at=space.metric.at,
        log=space.metric.log,
        epochs_in_study=trial.epochs,
        checkpoint_dir=str(store.checkpoint_dir(trial.number)),
        checkpoint_url=store.checkpoint_url(trial.number),
        data_root=str(options.data_root.resolve()),
        cache_root=str(options.cache_root.resolve()),
        threads=resources.cpu,
        workers=resources.workers,
        device="cuda" if resources.gpus else "cpu",
    )


def execute(
    coordinator: Coordinator,
    *,
    make_task: Callable[[TrialRecord], TrialTask],
    trainable: Callable[[dict[str, Any]], None],
    resources: Resources,
    concurrent: int,
    lock: DriverLock,
) -> None:
    """Run the coordinator's trials on the connected Ray until no trials are left or the ``lock`` is closed.

    A trial gets the resources of all its processes at once, so no trial waits while it holds half of them.

    Args:
        coordinator: The source of the trials, which also decides when each trial stops.
        make_task: Creates a worker's description of a trial (:func:`trial_task`).
        trainable: The function that a worker runs.
        resources: The resources of a trial.
        concurrent: Number of trials that run at once.
        lock: The lock on the coordinator and the record.
    """
    # The first bundle is for the trial's own process, the others are for its peers (:mod:`.multi_process`).
    # Ray does not accept zeros.
    bundle = {name: amount for name, amount in resources.by_name().items() if amount}
    placement_group = tune.PlacementGroupFactory([bundle] * resources.workers)
    processes = ActorReuse(coordinator, resources=placement_group, slots=concurrent)
    # Tune's own files are temporary: the state of the search is in the record and the checkpoints.
    with tempfile.TemporaryDirectory(prefix="tune_rescon-", ignore_cleanup_errors=True) as scratch:
        # Tune adds these mixins to the class that it creates from a function.
        trainable.__mixins__ = (SignalHandlerMixin,)  # type: ignore[attr-defined]
        tuner = tune.Tuner(
            tune.with_resources(trainable, placement_group),
            tune_config=tune.TuneConfig(
                search_alg=CoordinatorSearcher(coordinator, make_task, lock),
                scheduler=CoordinatorScheduler(coordinator, lock, processes),
                num_samples=-1,
                # Without this limit, Tune requests one trial at a time (ray's _get_max_pending_trials).
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                trial_dirname_creator=_trial_dirname,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                # Without its JSON files, Tune reports at the end that it cannot fetch the metrics.
                callbacks=[JsonLoggerCallback(), AbortCallback(lock)],
                # The coordinator retries trials. Tune would retry only a running trial, not one whose process
                # dies while it is being set up (TuneController._process_trial_failure).
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        )
        tuner.fit()


def _trial_dirname(trial: Any) -> str:
    # Tune's own names contain every value of the config and are cut at 130 characters. The name has Tune's
    # trial id because a paused trial is a new Tune trial when it continues.
    return f"{trial_name(trial.config['number'])}_{trial.trial_id}"


class _Stateless:
    """Has no state to pickle, because Tune pickles its parts for a restore that this package does not use."""

    def __getstate__(self) -> dict[str, object]:
        return {}


class CoordinatorSearcher(_Stateless, Searcher):
    """Tune's searcher: passes the coordinator's trials to Tune.

    The scheduler handles all results and worker deaths, because Tune passes a searcher neither the result
    that stops a trial nor the node on which the trial ran. The methods that save the searcher's state are
    empty, because the record is the state.
    """

    def __init__(
        self, coordinator: Coordinator, make_task: Callable[[TrialRecord], TrialTask], lock: DriverLock
    ) -> None:
        """Wrap ``coordinator``; ``make_task`` creates a worker's description of a trial."""
        super().__init__()
        self._coordinator = coordinator
        self._make_task = make_task
        self._lock = lock
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return Tune's config of the next trial.

        Returns None if Tune must ask again later, and ``Searcher.FINISHED`` if no more trials follow.
        """
        with self._lock.hold():
            trial = self._coordinator.next_trial()
            if trial is None:
                return str(Searcher.FINISHED) if self._coordinator.no_more_trials else None
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
        with self._lock.hold():
            if not error:
                number = self._numbers[trial_id]
                self._coordinator.close(number, TrialState.FAILED, error="training ended early")

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, because the record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, because a search resumes from the record."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing, because the record is the state."""


def node_is_gone(address: str) -> bool:
    """Return whether Ray has no living node at ``address``."""
    return not any(node["Alive"] and node["NodeManagerAddress"] == address for node in ray.nodes())


class CoordinatorScheduler(_Stateless, FIFOScheduler):
    """Tune's scheduler: stops trials by the coordinator's decisions, and assigns free worker processes.

    :class:`.PendingTrials` decides which trial gets a free process.
    """

    # Buffered results would be evaluated late and in bulk.
    _supports_buffered_results = False

    def __init__(
        self,
        coordinator: Coordinator,
        lock: DriverLock,
        processes: ActorReuse,
        *,
        node_is_gone: Callable[[str], bool] = node_is_gone,
    ) -> None:
        """Wrap ``coordinator``.

        Args:
            coordinator: Decides which trials run and when each one stops.
            lock: The lock that each call of the coordinator acquires.
            processes: Updated in each step of Tune's loop, which begins with a call of
                :meth:`choose_trial_to_run`.
            node_is_gone: Called with the address of a node on which a trial died; returns True if Ray has no
                living node there.
        """
        super().__init__()
        self._coordinator = coordinator
        self._lock = lock
        self._processes = processes
        self._node_is_gone = node_is_gone
        self._preempted: set[int] = set()
        self._lost_worker: set[int] = set()
        self._pending = PendingTrials()

    def on_trial_add(self, tune_controller: object, trial: Trial) -> None:
        """Add the trial to those that wait for a process."""
        del tune_controller
        number = trial.config["number"]
        self._pending.add(trial, again=number in self._lost_worker)
        self._lost_worker.discard(number)

    def choose_trial_to_run(self, tune_controller: object) -> Trial | None:
        """Return the trial to start on the next free process, even if a new process is requested for it."""
        with self._lock.hold():
            self._processes.keep(tune_controller)
        return self._pending.overdue()

    def on_trial_error(self, tune_controller: object, trial: Trial) -> None:
        """Tell the coordinator whether a trial's worker was preempted or died, and whether its node was lost.

        Tune calls its searcher as well, but does not pass it the node.
        """
        del tune_controller
        number, address = trial.config["number"], trial.node_ip
        with self._lock.hold():
            self._lost_worker.add(number)
            if number in self._preempted:
                self._preempted.discard(number)
                self._coordinator.worker_preempted(number)
            else:
                is_gone = address is not None and self._node_is_gone(address)
                self._coordinator.worker_failed(number, node_is_gone=is_gone)

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
        with self._lock.hold():
            continues = self._handle_report(result)
        return str(TrialScheduler.CONTINUE if continues else TrialScheduler.STOP)

    def _handle_report(self, report: dict[str, Any]) -> bool:
        """Pass a report to the coordinator; return whether the trial continues."""
        number = report["number"]
        if "unusable" in report:
            self._coordinator.abort(number, report["unusable"])
            return False
        if "error" in report:
            self._coordinator.close(number, TrialState(report["state"]), error=report["error"])
            return False
        if "progress" in report:
            self._coordinator.progress(number, report["progress"])
            return True
        if "note" in report:
            self._coordinator.note(number, report["note"])
            if report.get("preempted"):
                self._preempted.add(number)
            return True
        prefix = "metrics/"
        metrics = {k.removeprefix(prefix): v for k, v in report.items() if k.startswith(prefix)}
        decision = self._coordinator.epoch_done(
            number, report["epoch"], metrics, report["checkpoint"], device=report.get("device")
        )
        return decision is Decision.CONTINUE


#: Seconds a trial waits for the worker process requested for it before it may get another trial's. A process
#: needs less to start, even on a machine with twenty times its load, and so does a cluster to add a node.
WAIT_SECONDS: Final = 600.0

#: The same for a trial whose worker process died or was preempted, because its machine may not return.
RETRY_WAIT_SECONDS: Final = 20.0


class PendingTrials:
    """The trials without a worker process, in order of arrival.

    It chooses which waiting trial gets a free process, without cancelling the processes that Ray is starting.

    Tune requests a process for every trial that finds no free one. A scheduler may then name the trial that
    gets the next free process (``TrialScheduler.choose_trial_to_run``). Tune then cancels the process that it
    had requested for this trial, even if that process is about to start. The next new trial finds no free
    process and requests another one. Tune's own schedulers name the oldest trial. If trials are shorter than
    the start of a process, the slots that began late therefore never get a process: of 179 requested
    processes, 6 ran trials.

    If no trial is named, a free process goes to a trial for which no process was requested. However, if a
    cluster has fewer places than the search has slots (because the cluster has yet to grow), the waiting
    trials would wait until the search ends. Therefore a trial is named after it has waited too long
    (:data:`WAIT_SECONDS`), and sooner if it has lost a process (:data:`RETRY_WAIT_SECONDS`).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without trials; ``clock`` returns the time in seconds."""
        self._clock = clock
        self._waiting: list[tuple[float, Trial]] = []

    def add(self, trial: Trial, *, again: bool = False) -> None:
        """Add a new Tune trial. ``again`` is True if the search's trial had a process before."""
        self._waiting.append((self._clock() + (RETRY_WAIT_SECONDS if again else WAIT_SECONDS), trial))

    def overdue(self) -> Trial | None:
        """Return the trial to name for the next free process; None to name no trial."""
        self._waiting = [(until, trial) for until, trial in self._waiting if trial.status == Trial.PENDING]
        now = self._clock()
        return next((trial for until, trial in self._waiting if now > until), None)


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
        """Set how many processes Tune keeps; called before each step of the loop of Tune's ``controller``.

        Once no more trials follow, the processes are released, so that their machines can be released too.
        """
        wanted = 0 if self._coordinator.no_more_trials else self._slots
        if wanted != self._kept:
            # The controller that a scheduler gets has no public attribute for the cache.
            cache = controller._tune_controller._actor_cache
            cache.increase_max(self._resources, wanted - self._kept)
            self._kept = wanted


class AbortCallback(_Stateless, tune.Callback):
    """Ends Tune's loop once :class:`.DriverLock` is closed, even if an epoch takes an hour."""

    def __init__(self, lock: DriverLock) -> None:
        """Store ``lock``, which each step of Tune's loop checks."""
        self._lock = lock

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Check the lock; Tune calls this about ten times per second."""
        del iteration, trials, info
        self._lock.check()

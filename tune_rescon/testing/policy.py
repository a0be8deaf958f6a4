"""What a search is to whoever runs its trials: the seam that the simulator drives.

:class:`tune_rescon.tuning.Coordinator` is a policy as it stands. So is a searcher and a scheduler of Ray Tune
behind :class:`.TunePolicy`, and so can be a rule of the reader's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from tune_rescon.config import TrialState
from tune_rescon.tuning import Decision

__all__ = [
    "Assignment",
    "SearchPolicy",
    "TunePolicy",
    "TuneTrial",
]


class Assignment(Protocol):
    """A trial as it is handed to a worker; :class:`tune_rescon.tuning.TrialRecord` is one."""

    @property
    def number(self) -> int:
        """Who it is; the same when it is handed out again."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Its active hyperparameters."""

    @property
    def epochs(self) -> int:
        """Epochs it has reported already."""


class SearchPolicy(Protocol):
    """Whoever proposes trials and judges their epochs. Called from one thread."""

    @property
    def exhausted(self) -> bool:
        """Whether nothing will be handed out any more."""

    def next_trial(self) -> Assignment | None:
        """The next trial for a free worker.

        None while not :attr:`exhausted` means: nothing now, ask again after the next epoch's end.
        """

    def epoch_done(
        self, number: int, epoch: int, metrics: Mapping[str, float], checkpoint: str | None
    ) -> Decision:
        """Judge an epoch (from 1) of a trial that was handed out.

        All but CONTINUE frees its worker; a PAUSED trial may be handed out again. A worker that went on from
        a checkpoint reports that epoch again, whether or not it was reported before.
        """

    def close(
        self, number: int, state: TrialState, *, checkpoint: str | None = None, error: str | None = None
    ) -> None:
        """End a trial whose code raised."""

    def worker_died(self, number: int) -> None:
        """The process that ran a trial is gone; the trial may be handed out again, or be given up."""


@dataclass(kw_only=True)
class TuneTrial:
    """What schedulers read of Tune's Trial, and the :class:`.Assignment` it stands for."""

    trial_id: str
    config: Mapping[str, Any]
    number: int
    parameters: Mapping[str, Any]
    epochs: int = 0
    last_result: dict[str, Any] = field(default_factory=dict)
    node_ip: str | None = None


class TunePolicy:
    """A :class:`.SearchPolicy` made of a Tune searcher and a Tune scheduler."""

    def __init__(
        self,
        searcher: Searcher,
        scheduler: TrialScheduler,
        *,
        num_samples: int = -1,
        read: Callable[[int, Mapping[str, Any]], Assignment] | None = None,
        write: Callable[[int, int, Mapping[str, float], str | None], Mapping[str, Any]] | None = None,
    ) -> None:
        """Wrap both.

        Args:
            searcher: makes configurations.
            scheduler: ends trials.
            num_samples: Tune's: how many configurations to ask for; -1: until the searcher says FINISHED.
            read: which trial a configuration is, given how many were made before; without it, a new one
                whose parameters are the configuration.
            write: the flat result a worker reports for ``(number, epoch, metrics, checkpoint)``; without it,
                the metrics.
        """
        self._searcher = searcher
        self._scheduler = scheduler
        self._num_samples = num_samples
        self._read = read
        self._write = write
        self._made = 0
        self._finished = False
        self._running: dict[int, TuneTrial] = {}

    @property
    def exhausted(self) -> bool:
        """Whether the searcher is done, or was asked often enough."""
        return self._finished or self._made == self._num_samples

    def next_trial(self) -> TuneTrial | None:
        """Ask the searcher, and show the scheduler what came."""
        if self.exhausted:
            return None
        trial_id = f"{self._made:08d}"
        config = self._searcher.suggest(trial_id)
        self._finished = config == Searcher.FINISHED
        if config is None or self._finished:
            return None
        trial = self._trial(trial_id, config)
        self._made += 1
        self._running[trial.number] = trial
        self._scheduler.on_trial_add(self, trial)
        return trial

    def epoch_done(
        self, number: int, epoch: int, metrics: Mapping[str, float], checkpoint: str | None
    ) -> Decision:
        """Show a result to the scheduler, and to the searcher unless it ends the trial."""
        written = self._write(number, epoch, metrics, checkpoint) if self._write else metrics
        return self.report(number, {"training_iteration": epoch, **written})

    def report(self, number: int, result: Mapping[str, Any]) -> Decision:
        """One flat result of a running trial, whatever it holds."""
        trial = self._running[number]
        trial.last_result = {"trial_id": trial.trial_id, **result}
        if self._scheduler.on_trial_result(self, trial, trial.last_result) != TrialScheduler.STOP:
            self._searcher.on_trial_result(trial.trial_id, trial.last_result)
            return Decision.CONTINUE
        trial.last_result["done"] = True
        self.end(number)
        return Decision.STOP

    def end(self, number: int) -> None:
        """The trial stopped, or its function returned: both are told its last result."""
        trial = self._running.pop(number)
        self._scheduler.on_trial_complete(self, trial, trial.last_result)
        self._searcher.on_trial_complete(trial.trial_id, result=trial.last_result)

    def close(
        self, number: int, state: TrialState, *, checkpoint: str | None = None, error: str | None = None
    ) -> None:
        """The trial's code raised; to Tune that is as good as a dead worker."""
        del state, checkpoint, error
        self.worker_died(number)

    def worker_died(self, number: int, *, on: str | None = None) -> None:
        """The trial is in error, and Tune does not retry it itself (``max_failures=0``, its default).

        ``on``: the address of the node it ran on.
        """
        trial = self._running.pop(number)
        trial.node_ip = on
        self._scheduler.on_trial_error(self, trial)
        self._searcher.on_trial_complete(trial.trial_id, error=True)

    def _trial(self, trial_id: str, config: Mapping[str, Any]) -> TuneTrial:
        read = self._read(self._made, config) if self._read else None
        return TuneTrial(
            trial_id=trial_id,
            config=config,
            number=read.number if read else self._made,
            parameters=read.parameters if read else config,
            epochs=read.epochs if read else 0,
        )

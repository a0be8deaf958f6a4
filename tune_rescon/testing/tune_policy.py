"""Ray Tune's searchers and schedulers as a policy of the simulator, without a Ray runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from tune_rescon.config import TrialState
from tune_rescon.testing.policy import Assignment
from tune_rescon.tuning import Decision

__all__ = ["TunePolicy", "TuneTrial"]


@dataclass(kw_only=True)
class TuneTrial:
    """The attributes of Tune's Trial that schedulers read, and the :class:`.Assignment` it represents."""

    trial_id: str
    config: Mapping[str, Any]
    number: int
    parameters: Mapping[str, Any]
    epochs: int = 0
    last_result: dict[str, Any] = field(default_factory=dict)
    node_ip: str | None = None


class TunePolicy:
    """A :class:`.SearchPolicy` that wraps a Tune searcher and a Tune scheduler."""

    def __init__(
        self,
        searcher: Searcher,
        scheduler: TrialScheduler,
        *,
        num_samples: int = -1,
        read: Callable[[int, Mapping[str, Any]], Assignment] | None = None,
        write: Callable[[int, int, Mapping[str, float], str | None], Mapping[str, Any]] | None = None,
    ) -> None:
        """Wrap a searcher and a scheduler.

        Args:
            searcher: suggests configurations.
            scheduler: stops trials.
            num_samples: as in Tune: the number of configurations to request; -1: until the searcher returns
                FINISHED.
            read: returns the trial of a configuration, given the number of earlier ones. Without it, every
                configuration is a new trial with the configuration as its parameters.
            write: returns the flat result that a worker reports for ``(number, epoch, metrics, checkpoint)``.
                Without it, the result is the metrics.
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
    def no_more_trials(self) -> bool:
        """True if the searcher has finished or has suggested ``num_samples`` configurations."""
        return self._finished or self._made == self._num_samples

    def next_trial(self) -> TuneTrial | None:
        """Request a configuration from the searcher, add its trial to the scheduler and return the trial."""
        if self.no_more_trials:
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
        """Pass a result to the scheduler, and to the searcher unless the result ends the trial.

        Args:
            number: the trial.
            epoch: the epoch, counted from 1.
            metrics: the metrics of the epoch.
            checkpoint: the trial's checkpoint; None if it has none.
        """
        written = self._write(number, epoch, metrics, checkpoint) if self._write else metrics
        return self.report(number, {"training_iteration": epoch, **written})

    def report(self, number: int, result: Mapping[str, Any]) -> Decision:
        """Pass one flat result of a running trial to both, whatever keys the result has."""
        trial = self._running[number]
        trial.last_result = {"trial_id": trial.trial_id, **result}
        if self._scheduler.on_trial_result(self, trial, trial.last_result) != TrialScheduler.STOP:
            self._searcher.on_trial_result(trial.trial_id, trial.last_result)
            return Decision.CONTINUE
        trial.last_result["done"] = True
        self.end(number)
        return Decision.STOP

    def end(self, number: int) -> None:
        """End a trial that stopped or whose function returned; pass its last result to both."""
        trial = self._running.pop(number)
        self._scheduler.on_trial_complete(self, trial, trial.last_result)
        self._searcher.on_trial_complete(trial.trial_id, result=trial.last_result)

    def close(self, number: int, state: TrialState, *, error: str | None = None) -> None:
        """End a trial whose code raised, which Tune handles like a dead worker.

        Args:
            number: the trial.
            state: not used.
            error: not used.
        """
        del state, error
        self.worker_failed(number)

    def worker_failed(self, number: int, *, on: str | None = None) -> None:
        """End a trial with an error. Tune does not retry the trial itself (``max_failures=0``, its default).

        ``on`` is the address of the node on which the trial ran.
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

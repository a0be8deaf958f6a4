"""Ray Tune's scheduler: shows every result to the coordinator and does as it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune_rescon.config import TrialState
from tune_rescon.tuning.coordination.coordinator import Coordinator
from tune_rescon.tuning.execution.waiting_trials import WaitingTrials
from tune_rescon.tuning.rules.stopping import Decision

__all__ = ["CoordinatorScheduler"]


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

"""Send every trial of a search to Weights & Biases, as a run of a group.

    pip install wandb
    python examples/log_to_wandb.py

With WANDB_MODE=offline in the environment the runs are written to runs/wandb, from where `wandb sync` sends
them later.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

import tune_rescon as tr
from tune_rescon.tuning import RunOptions, TrialRecord, Verdict


class WandbRuns(tr.SearchCallback):
    """One run for each trial. A trial that pauses or is interrupted continues its run."""

    def __init__(self, project: str, group: str, folder: Path) -> None:
        """Log to ``project``; the runs of a search are a ``group``; offline runs are in ``folder``."""
        self._project, self._group, self._folder = project, group, folder
        self._runs: dict[int, Any] = {}

    def on_trial_start(self, trial: TrialRecord) -> None:
        """Start or resume the run of the trial, with its hyperparameters."""
        self._runs[trial.number] = wandb.init(
            project=self._project,
            group=self._group,
            name=f"trial_{trial.number:04d}",
            id=f"{self._group}-{trial.number:04d}",
            resume="allow",
            config=dict(trial.parameters),
            dir=self._folder,
            # Trials run at the same time, so that this process has several runs at once.
            reinit="create_new",
        )

    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """Log the epoch's metrics."""
        del verdict
        self._runs[trial.number].log(dict(metrics), step=trial.epochs)

    def on_trial_end(self, trial: TrialRecord) -> None:
        """Finish the run."""
        run = self._runs.pop(trial.number, None)
        if run is not None:
            run.summary["state"] = trial.state.value
            run.finish()


def main(storage: Path = Path("runs"), *, trials: int = 2, epochs: int = 3) -> None:
    """Search on the embedded digits."""
    storage.mkdir(parents=True, exist_ok=True)
    settings = [f"trials={trials}", f"fidelity.max={epochs}", "resources_per_trial=auto"]
    space = tr.load_space("digits", settings)
    options = RunOptions(name="with-wandb", storage=storage)
    with tr.progress_shown(print):
        result = tr.run_search(space, options, callbacks=[WandbRuns("digits", options.name, storage)])
    print(result)


# Ray imports this file in its worker processes, which must not search as well.
if __name__ == "__main__":
    main()

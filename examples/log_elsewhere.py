"""Send every epoch of a search to a tool of your own, beside MLflow.

    python examples/log_elsewhere.py

The callback writes one line of JSON an epoch. Replace ``write`` by a call of your tool.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import tune_rescon as tr
from tune_rescon.tuning import RunOptions, TrialRecord, Verdict


class JsonLines(tr.SearchCallback):
    """Append a line to a file when a trial starts, after each epoch, and when a trial ends.

    The methods run in the process that called ``run_search``, one at a time, so that they need no lock.
    """

    def __init__(self, path: Path) -> None:
        """Append to ``path``."""
        self._path = path

    def on_search_start(self, trials: Sequence[TrialRecord]) -> None:
        """A resumed search already has trials, whose events are not sent again."""
        self.write(event="search", trials=len(trials))

    def on_trial_start(self, trial: TrialRecord) -> None:
        """Write the trial's hyperparameters."""
        self.write(event="start", trial=trial.number, parameters=trial.parameters)

    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """Write the metrics, and whether the trial continues."""
        self.write(
            event="epoch",
            trial=trial.number,
            epoch=trial.epochs,
            decision=verdict.decision.value,
            metrics=metrics,
        )

    def on_trial_end(self, trial: TrialRecord) -> None:
        """Write how the trial ended: finished, stopped, paused, failed or another state."""
        self.write(event="end", trial=trial.number, state=trial.state.value, value=trial.best_value)

    def write(self, **line: object) -> None:
        """Append one line."""
        with self._path.open("a", encoding="utf-8") as file:
            print(json.dumps(line, default=dict), file=file)


def main(storage: Path = Path("runs"), *, trials: int = 2, epochs: int = 3) -> None:
    """Search on the embedded digits, with the callback."""
    storage.mkdir(parents=True, exist_ok=True)
    settings = [f"trials={trials}", f"fidelity.max={epochs}", "resources_per_trial=auto"]
    space = tr.load_space("digits", settings)
    options = RunOptions(name="logged", storage=storage)
    with tr.progress_shown(print):
        result = tr.run_search(space, options, callbacks=[JsonLines(storage / "logged.jsonl")])
    print(result)


# Ray imports this file in its worker processes, which must not search as well.
if __name__ == "__main__":
    main()

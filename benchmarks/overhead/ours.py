"""A load as a search of this package."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
from typing_extensions import override

from overhead.load import Figures, Load
from tune_rescon.metric_names import METRICS
from tune_rescon.spaces import Space, load_space
from tune_rescon.tracking import Destination, MlflowWriter
from tune_rescon.tuning import RunOptions, SearchCallback, TrialRecord, run_search
from tune_rescon.tuning.ray.session import LOCAL_OBJECT_STORE, prepare_environment

__all__ = ["run"]


def run(load: Load, folder: Path) -> Figures:
    """Run it in ``folder``."""
    lag = 0.0

    class Timed(MlflowWriter):
        def close(self, timeout: float) -> int:
            nonlocal lag
            # Not the champion's export, which a search of trials that train something has.
            began = time.monotonic()
            left = super().close(timeout)
            lag = max(lag, time.monotonic() - began)
            return left

    @contextmanager
    def writer(destination: Destination, *, delay: float) -> Iterator[MlflowWriter | Silent]:
        del delay
        made = Silent() if load.tracking == "none" else Timed(destination)
        made.start()
        try:
            yield made
        finally:
            made.close(0)

    clock = Clock()
    options = RunOptions(
        name="s",
        storage=folder,
        cache_root=folder / "cache",
        tracking_uri=None if load.tracking == "none" else load.tracking,
    )
    if load.cpus is not None:
        prepare_environment(own_ray=True)
        ray.init(
            num_cpus=load.cpus,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=LOCAL_OBJECT_STORE,
        )
    with patch("tune_rescon.tuning.search.mlflow_writer", writer):
        result = run_search(_space(load), options, callbacks=[clock], trainable=_trainable(load.pace))
    assert clock.began is not None
    assert {trial.state.value for trial in result.trials} == {"finished"}
    return Figures(seconds=clock.ended - clock.began, lag=lag, trials=len(result.trials))


def _space(load: Load) -> Space:
    settings = [f"budget.trials={load.trials}", f"budget.concurrent={load.slots}"]
    settings += [f"fidelity.min={load.epochs}", f"fidelity.max={load.epochs}", "initial=[]"]
    settings += ["fixed.warmup_epochs=0"]
    if not load.judged:
        settings += ["sampler.type=random", "scheduler.type=none"]
    return load_space("digits", settings)


def _trainable(pace: float) -> Any:
    names = tuple(METRICS)

    def learn(config: dict[str, Any]) -> None:
        import time

        from ray import tune

        for epoch in range(1, config["epochs"] + 1):
            time.sleep(pace)
            metrics = dict.fromkeys(names, 1.0 - config["config"]["learning_rate"])
            tune.report({"number": config["number"], "epoch": epoch, "metrics": metrics, "checkpoint": None})

    return learn


class Silent:
    """A writer that sends nothing to MLflow."""

    uri = "none"
    pending_updates = 0

    def start(self) -> None:
        """Nothing to begin."""

    def submit(self, run_state: object) -> None:
        """Ignore the state."""

    def opened_runs(self) -> list[tuple[int, str]]:
        """None."""
        return []

    def close(self, _timeout: float) -> int:
        """Nothing is left."""
        return 0


class Clock(SearchCallback):
    """Notes when the first trial starts and the last one ends."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.ended = 0.0

    @override
    def on_trial_start(self, trial: TrialRecord) -> None:
        """The first one counts."""
        self.began = self.began or time.monotonic()

    @override
    def on_trial_end(self, trial: TrialRecord) -> None:
        """The last one counts."""
        self.ended = time.monotonic()

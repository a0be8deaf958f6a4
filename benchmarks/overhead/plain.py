"""A load as the Ray Tune script that everyone writes, though with Tune's best settings for speed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from overhead.load import METRICS, Figures, Load

__all__ = ["run"]


def run(load: Load, folder: Path) -> Figures:
    """Run it in ``folder``."""
    times = Times()
    callbacks: list[tune.Callback] = [times]
    if load.tracking != "none":
        uri = load.tracking or f"sqlite:///{folder / 'mlflow.db'}"
        callbacks.append(MLflowLoggerCallback(tracking_uri=uri, experiment_name="plain"))
    names, pace, epochs = METRICS, load.pace, load.epochs

    def learn(config: dict[str, Any]) -> None:
        for epoch in range(1, epochs + 1):
            time.sleep(pace)
            metrics = dict.fromkeys(names, 1.0 - config["learning_rate"])
            tune.report({**metrics, "epoch": epoch})

    ray.init(num_cpus=load.cpus, include_dashboard=False, log_to_driver=False)
    judges: dict[str, Any] = {}
    if load.judged:
        judges["search_alg"] = OptunaSearch(metric="val_accuracy", mode="max")
        judges["scheduler"] = ASHAScheduler(
            time_attr="epoch",
            metric="val_accuracy",
            mode="max",
            grace_period=load.epochs,
            max_t=load.epochs,
            reduction_factor=3,
        )
    results = tune.Tuner(
        tune.with_resources(learn, {"cpu": 1}),
        param_space={
            "depth": tune.choice([56, 92]),
            "learning_rate": tune.loguniform(0.03, 0.3),
            "weight_decay": tune.loguniform(1e-5, 1e-3),
            "label_smoothing": tune.quniform(0.0, 0.1, 0.05),
            "drop_path": tune.uniform(0.0, 0.1),
        },
        tune_config=tune.TuneConfig(
            num_samples=load.trials, max_concurrent_trials=load.slots, reuse_actors=True, **judges
        ),
        run_config=tune.RunConfig(storage_path=str(folder), callbacks=callbacks, verbose=0),
    ).fit()
    assert not results.errors
    return Figures(seconds=times.ended - times.began, lag=0.0, trials=len(results))


class Times(tune.Callback):
    """Notes when the first trial starts and the last one ends."""

    def __init__(self) -> None:
        self.began = 0.0
        self.ended = 0.0

    def on_trial_start(self, *_: object, **__: object) -> None:
        """The first one counts."""
        self.began = self.began or time.monotonic()

    def on_trial_complete(self, *_: object, **__: object) -> None:
        """The last one counts."""
        self.ended = time.monotonic()

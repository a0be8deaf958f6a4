"""The rivals of ``real_quality.py`` that are not schedulers of this package, over the same training.

Each is run as a process of its own, and writes the trials that it has trained::

    python benchmarks/real_rivals.py RIVAL --space digits --seconds 90 --folder FOLDER --cache FOLDER

The seconds count from the moment that Ray has started, as those of a search do. What a trial has trained
is read from its folder, so that an epoch counts if it was saved in time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from tune_rescon.data import ImageDataset, open_dataset
from tune_rescon.spaces import Space, load_space, random_points, suggest, trial_config
from tune_rescon.training import Objective, TrialProcess, epochs_in_checkpoint, train_trial
from tune_rescon.training.messages import EpochReport
from tune_rescon.tuning.resources import slots_here

RAY_ASHA = "Ray ASHAScheduler + OptunaSearch"
BEST_EIGHT = "one epoch, then the best 8"

#: Number of trials that the simple rule trains to the end.
FINALISTS = 8


class EnoughError(Exception):
    """Ends a training after the epoch that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a trial has trained."""

    epochs: int
    best: float
    """The best value of its epochs."""
    checkpoint: str
    """The network of that epoch."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Trains the configurations of a space in folders, with their data in a cache."""

    space: Space
    folder: Path
    cache: Path
    """The folder of decoded images, which the searches share."""

    @property
    def dataset(self) -> ImageDataset:
        """The images: decoded into the cache by the first call, and only opened by the others."""
        described = self.space.dataset_config(None)
        return open_dataset(described, data_root=self.cache, cache_root=self.cache)

    @property
    def trials(self) -> Path:
        """The folder of the trials' folders."""
        return self.folder / "trials"

    def train(
        self, name: str, row: Mapping[str, Any], *, on_epoch: Any = lambda _: None, until: int | None = None
    ) -> None:
        """Train a configuration to an epoch, from its checkpoint if it has one.

        Args:
            name: The name of the trial's folder.
            row: The values of the space's parameters.
            on_epoch: Called with the report of each epoch.
            until: The last epoch of this call. None for the last one of the training.
        """

        def after(report: EpochReport) -> None:
            on_epoch(report)
            if report.epoch == until:
                raise EnoughError

        space = self.space
        try:
            train_trial(
                trial_config(space, row),
                self.dataset,
                epochs=space.fidelity.max,
                seed=space.sampler.seed,
                checkpoint_dir=self.trials / name,
                on_epoch=after,
                objective=Objective(metric=space.metric.name, mode=space.metric.mode),
                process=TrialProcess(device="cpu", threads=1),
            )
        except EnoughError:
            return

    def trained(self) -> Iterator[Trained]:
        """Yield what each trial has trained, if it has saved an epoch."""
        for folder in sorted(self.trials.iterdir()):
            reports = epochs_in_checkpoint(folder)
            if reports and reports[-1].best_checkpoint is not None:
                yield Trained(
                    epochs=len(reports),
                    best=max(report.metrics[self.space.metric.name] for report in reports),
                    checkpoint=str(reports[-1].best_checkpoint),
                )


@dataclass(frozen=True, kw_only=True)
class Defined:
    """A space as a function that draws an Optuna trial's values. Ray Tune pickles it with each checkpoint."""

    space: Space

    def __call__(self, trial: Any) -> None:
        """Draw the values."""
        suggest(self.space, trial)


def ray_asha(training: Training, *, slots: int, seconds: float) -> None:
    """Search with Ray Tune's ASHAScheduler and OptunaSearch, set up as its documentation shows."""
    space = training.space
    metric, mode = space.metric.name, space.metric.mode

    def trainable(config: dict[str, Any]) -> None:
        def report(epoch: EpochReport) -> None:
            tune.report({"epoch": epoch.epoch, metric: epoch.metrics[metric]})

        training.train(tune.get_context().get_trial_id(), config, on_epoch=report)

    scheduler = ASHAScheduler(
        time_attr="epoch", max_t=space.fidelity.max, grace_period=space.fidelity.min, reduction_factor=3
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            metric=metric,
            mode=mode,
            scheduler=scheduler,
            search_alg=OptunaSearch(Defined(space=space), metric=metric, mode=mode, seed=space.sampler.seed),
            num_samples=-1,
            max_concurrent_trials=slots,
            time_budget_s=seconds,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(training.folder / "ray_results"), verbose=0),
    )
    tuner.fit()


def best_eight(training: Training, *, slots: int, seconds: float) -> None:
    """Train random configurations for one epoch each, then the best eight to the end.

    New configurations begin until the time left is what eight full trainings take, by the mean duration of
    the first epochs so far.
    """
    began = time.monotonic()
    space = training.space
    rows = random_points(space, seed=space.sampler.seed)
    last, metric = space.fidelity.max, space.metric.name

    class Worker:
        def train(self, name: str, row: Mapping[str, Any], until: int | None) -> tuple[float, float]:
            """Return the value of the last epoch of this call, and the seconds that it took."""
            begins, values = time.monotonic(), [float("nan")]
            training.train(name, row, until=until, on_epoch=lambda r: values.append(r.metrics[metric]))
            return values[-1], time.monotonic() - begins

    actor = ray.remote(num_cpus=1)(Worker)
    idle = [actor.remote() for _ in range(slots)]
    running: dict[Any, tuple[Any, str]] = {}
    drawn: dict[str, Mapping[str, Any]] = {}
    firsts: dict[str, tuple[float, float]] = {}
    finals: list[str] | None = None
    while (left := seconds - (time.monotonic() - began)) > 0:
        while idle:
            if finals is None and _screens(firsts, len(drawn), left, last=last, slots=slots):
                name = f"trial_{len(drawn):04d}"
                drawn[name] = next(rows)
                until: int | None = 1
            elif finals is None and not running:
                finite = [name for name, (value, _) in firsts.items() if value == value]
                finals = sorted(finite, key=lambda name: -firsts[name][0])[:FINALISTS]
                continue
            elif finals:
                name, until = finals.pop(0), None
            else:
                break
            worker = idle.pop()
            running[worker.train.remote(name, drawn[name], until)] = (worker, name)
        if not running:
            break
        done, _ = ray.wait(list(running), timeout=left)
        for reference in done:
            worker, name = running.pop(reference)
            value, duration = ray.get(reference)
            firsts.setdefault(name, (value, duration))
            idle.append(worker)


def _screens(
    firsts: Mapping[str, tuple[float, float]], begun: int, left: float, *, last: int, slots: int
) -> bool:
    """Return whether another configuration is to begin."""
    if begun < max(FINALISTS, slots) or not firsts:
        return True
    mean = sum(duration for _, duration in firsts.values()) / len(firsts)
    return left > FINALISTS * (last - 1) * mean / slots


RIVALS = {RAY_ASHA: ray_asha, BEST_EIGHT: best_eight}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rival", choices=list(RIVALS))
    parser.add_argument("--space", default="digits")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="gets the trials")
    parser.add_argument("--cache", type=Path, required=True, help="the decoded images")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    space, slots = slots_here(load_space(arguments.space, arguments.settings))
    training = Training(space=space, folder=arguments.folder.resolve(), cache=arguments.cache.resolve())
    training.trials.mkdir(parents=True)
    assert len(training.dataset.train), "the images are decoded before the clock starts, as by a search"
    ray.init(num_cpus=slots, include_dashboard=False, log_to_driver=False)
    try:
        RIVALS[arguments.rival](training, slots=slots, seconds=arguments.seconds)
    finally:
        ray.shutdown()
    found = [asdict(trained) for trained in training.trained()]
    (arguments.folder / "trained.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

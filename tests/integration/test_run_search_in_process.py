"""Searches whose trials run in this process: resumed, warm-started, with errors, with custom code.

What MLflow shows is in test_shown_in_mlflow.py, and tests that need Ray are in test_on_one_ray.py.
tests/testing/test_searches_in_folders.py simulates schedulers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState as OptunaState
from rich.console import Console
from ruamel.yaml import YAML

from tune_rescon.config import TrialConfig, TrialState
from tune_rescon.errors import ConfigError, NetworkError, SpaceError, StorageError
from tune_rescon.finals.changes import changes_since
from tune_rescon.models import NetworkSpec, build_from_spec, network_cost, resolve_network
from tune_rescon.reporting import SearchPresentation
from tune_rescon.reporting.dry_run import print_dry_run
from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import fail_second, learn_nothing, learn_slowly
from tune_rescon.training import TrainedNetwork
from tune_rescon.training.weights import trained_values
from tune_rescon.tuning import (
    Gauges,
    RunOptions,
    SearchCallback,
    SearchFolder,
    SearchLocation,
    StudyResult,
    read_search,
    run_search,
)

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("without_ray_and_mlflow")]

SMALL = ["budget.trials=9", "sampler.n_startup_trials=3", "budget.concurrent=1"]

LEARNING_RATE = "{learning_rate: {type: float, low: 0.01, high: 0.1}}"

GRID = (
    "parameters={depth: {type: categorical, choices: [56, 92]},"
    " mask: {type: categorical, choices: [encoder_decoder, local]}}"
)


def search(
    options: RunOptions, *overrides: str, trainable: Callable[[dict[str, Any]], None] = learn_nothing
) -> StudyResult:
    return run_search(load_space("digits", [*SMALL, *overrides]), options, trainable=trainable)


def test_an_extended_search_matches_an_uninterrupted_one(options: RunOptions) -> None:
    """Both have the same seed and run one trial at a time."""
    whole = search(options)
    half = dataclasses.replace(options, name="half")
    before = search(half, "budget.trials=4")
    resumed = search(dataclasses.replace(half, resume=True))
    # Checkpoints are not compared: only the five best trials keep theirs, and later trials may be better.
    first, after_resume = (
        [dataclasses.replace(trial, checkpoint=None) for trial in trials[:4]]
        for trials in (before.trials, resumed.trials)
    )
    assert after_resume == first
    assert len(resumed.trials) == 9
    assert [trial.parameters for trial in resumed.trials] == [trial.parameters for trial in whole.trials]
    assert [trial.values for trial in resumed.trials] == [trial.values for trial in whole.trials]


def test_a_warm_start_is_used_also_after_a_resume(options: RunOptions, progress: list[str]) -> None:
    search(options, "budget.trials=6")
    warm = dataclasses.replace(options, name="warm", warm_start="s")
    space = load_space("digits", [*SMALL, "parameters.learning_rate.high=0.2"])
    whole = run_search(space, warm, trainable=learn_nothing)
    assert any(line.startswith("used ") and " of 6 trials of s" in line for line in progress)

    short = dataclasses.replace(warm, name="again")
    few = space.model_copy(update={"budget": space.budget.model_copy(update={"trials": 4})})
    run_search(few, short, trainable=learn_nothing)
    resumed = run_search(
        space, dataclasses.replace(short, warm_start=None, resume=True), trainable=learn_nothing
    )
    assert [trial.parameters for trial in resumed.trials] == [trial.parameters for trial in whole.trials]
    cold = search(dataclasses.replace(options, name="cold"))
    assert cold.trials[-1].parameters != whole.trials[-1].parameters


class BrokenPresentation(SearchPresentation):
    def conclude(self, result: StudyResult, folder: SearchFolder) -> list[Path]:
        raise ValueError(f"no colour left for {result.name} in {folder.path}")


def test_errors_in_a_trial_and_the_report_do_not_end_the_search(
    small_space: Space, options: RunOptions, progress: list[str]
) -> None:
    results: list[tuple[StudyResult, list[str]]] = []
    result = run_search(
        small_space,
        options,
        trainable=fail_second,
        presentation=BrokenPresentation(),
        on_result=lambda result: results.append((result, list(progress))),
    )
    ((first_result, messages_before),) = results
    assert [trial.state for trial in first_result.trials] == [trial.state for trial in result.trials]
    assert first_result.best == result.best
    assert not any("report" in line for line in messages_before), "the result comes before the report"
    states = [trial.state for trial in result.trials]
    assert states[1] is TrialState.FAILED
    assert len(states) == 6
    assert TrialState.FINISHED in states
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{result.folder / 'study.db'}")
    assert study.trials[1].state is OptunaState.FAIL
    assert result.state.value == "finished"
    assert any("could not be written" in line and "no colour left" in line for line in progress)
    assert (result.folder / "best.yaml").is_file()
    assert "no colour left" in (result.folder / "search.log").read_text()


class WatchedPresentation(SearchPresentation):
    """Records whether the live view is drawn."""

    is_drawing = False

    @contextmanager
    def watching(self, snapshot: Callable[[], StudyResult], folder: SearchFolder) -> Iterator[SearchCallback]:
        self.is_drawing = True
        try:
            with super().watching(snapshot, folder) as callback:
                yield callback
        finally:
            self.is_drawing = False


def test_the_live_view_stops_if_the_search_fails_before_its_first_trial(
    small_space: Space, options: RunOptions
) -> None:
    presentation = WatchedPresentation()

    def fail(_: Gauges) -> None:
        assert presentation.is_drawing
        raise RuntimeError("no place for the gauges")

    with pytest.raises(RuntimeError, match="no place"):
        run_search(small_space, options, trainable=learn_nothing, presentation=presentation, on_start=fail)
    assert not presentation.is_drawing


def test_a_grid_runs_every_combination_once(options: RunOptions) -> None:
    space = load_space("digits", ["sampler.type=grid", "budget.trials=4", "initial=[]", GRID])
    result = run_search(space, options, trainable=learn_nothing)
    run = [(trial.parameters["depth"], trial.parameters["mask"]) for trial in result.trials]
    assert sorted(run) == sorted((depth, mask) for depth in (56, 92) for mask in ("encoder_decoder", "local"))


def test_a_resume_changes_the_space_of_later_trials_only(options: RunOptions, progress: list[str]) -> None:
    """Earlier trials are unchanged. A search whose space is exhausted ends with a message."""
    fixed = "fixed={layout: cifar, image_size: 16, width: 0.25}"
    shared = ["sampler.type=tpe", "initial=[]", fixed, "fidelity.max=1", "scheduler={type: none}"]
    first = run_search(
        load_space("digits", [*shared, GRID, "parameters.depth.choices=[56]", "budget.trials=2"]),
        options,
        trainable=learn_nothing,
    )
    assert first.best is not None
    resumed_options = dataclasses.replace(options, resume=True)
    with pytest.raises(SpaceError, match=r"fixed\.width would become 1\.0"):
        run_search(
            load_space(first.folder / "space.yaml", ["fixed.width=1.0"]),
            resumed_options,
            trainable=learn_nothing,
        )
    more = ["parameters.depth.choices=[92]", "parameters.width={type: categorical, choices: [0.25, 0.5]}"]
    changed = load_space(
        "digits", [*shared, GRID, *more, fixed.replace(", width: 0.25", ""), "budget.trials=20"]
    )
    result = run_search(changed, resumed_options, trainable=learn_nothing)
    assert result.trials[:2] == first.trials
    assert len(result.trials) == 2 + 4
    assert any("The space is exhausted" in line and "6 of 20 trials" in line for line in progress)
    assert result.space_history[0].startswith("version 2 (from trial 2): ")
    assert read_search(SearchLocation(storage=options.storage), "s").trials == result.trials
    best = YAML(typ="safe").load(result.folder / "best.yaml")
    winner = result.trials[best["trial"]]
    assert winner.origin is not None
    assert best["config"]["width"] == winner.origin.config["width"]
    assert (best["at"], best["value"]) == ("best", winner.value)


def test_recorded_costs_stay_when_a_resume_changes_the_resources(options: RunOptions) -> None:
    """The sampler, a second objective and the report use the resources that each epoch had."""
    changes = ("initial=[]", "scheduler={type: none}", "fidelity.max=1", "metric.against=compute_hours")
    learn = learn_slowly
    first = search(options, *changes, "budget.trials=2", "resources_per_trial.cpu=1", trainable=learn)
    before = [first.compute_hours(trial) for trial in first.trials]
    assert before == [trial.cost for trial in first.trials]
    resumed_options = dataclasses.replace(options, resume=True)
    result = search(
        resumed_options, *changes, "budget.trials=3", "resources_per_trial.cpu=2", trainable=learn
    )
    assert [result.compute_hours(trial) for trial in result.trials[:2]] == before
    last = result.trials[2]
    assert result.compute_hours(last) == last.cost == pytest.approx(2 * last.seconds / 3600) != 0


def test_a_budget_in_hours_ends_a_search_cleanly(options: RunOptions) -> None:
    space = load_space("digits", ["budget.trials=100000", "budget.hours=0.001"])
    result = run_search(space, options, trainable=learn_nothing)
    assert not result.interrupted
    assert 1 <= len(result.trials) < 100000
    assert all(trial.state.is_final for trial in result.trials)


def test_custom_networks_are_searched_beside_the_builtin_ones(
    options: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "from torch import nn\n"
        "def linear(num_classes, in_channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))\n"
    )
    (tmp_path / "ward.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    networks = {"network": {"type": "categorical", "choices": [None, "ward:linear"]}}
    narrow = {"type": "categorical", "choices": [0.125], "when": {"parameter": "network", "in": [None]}}
    settings = [
        f"parameters={json.dumps({**networks, 'width': narrow})}",
        *("fixed={image_size: 16}", "sampler={type: grid}", "scheduler={type: none}", "initial=[]"),
        *("budget.trials=2", "fidelity={min: 1, max: 1}", "dataset.limit=200"),
    ]
    result = run_search(load_space("digits", settings), options)
    states = [trial.state for trial in result.trials]
    assert states == [TrialState.FINISHED] * 2, [trial.error for trial in result.trials]
    by_network = {trial.parameters["network"]: result.costs[trial.number] for trial in result.trials}
    assert by_network["ward:linear"].params_m == pytest.approx((256 * 10 + 10) / 1e6)
    assert by_network["ward:linear"].gmacs == pytest.approx(2560 / 1e9)
    assert by_network[None].gmacs > by_network["ward:linear"].gmacs


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("timm/resnet81", "network: must be a network of timm"),
        ("nosuch:network", "network: the module of a network must be importable"),
    ],
)
def test_an_unknown_network_is_refused_before_the_data_is_prepared(
    network: str, message: str, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tune_rescon.tuning.search.prepare_data", lambda *_: pytest.fail("images were prepared")
    )
    space = load_space(
        "digits", [f"fixed={{network: '{network}'}}", f"parameters={LEARNING_RATE}", "initial=[]"]
    )
    with pytest.raises((NetworkError, ConfigError), match=message):
        run_search(space, options)
    assert isinstance(options.storage, Path)
    assert not (options.storage / options.name).exists()


def test_a_network_with_wrong_output_is_refused_before_the_first_trial(options: RunOptions) -> None:
    network = "tests.own_networks:wrong_logits"
    space = load_space(
        "digits", [f"fixed={{network: '{network}'}}", f"parameters={LEARNING_RATE}", "initial=[]"]
    )
    with pytest.raises(NetworkError, match=r"must map images .* to logits \(2, 10\)"):
        run_search(space, options)
    assert isinstance(options.storage, Path)
    assert not (options.storage / options.name / "study.db").exists()


def test_a_metric_that_cannot_be_imported_is_refused_at_the_start(options: RunOptions) -> None:
    space = load_space("digits", ["metric.log=[nosuch:metric]"])
    with pytest.raises(ConfigError, match=r"metric\.log: the module of a metric must be importable"):
        run_search(space, options)
    assert isinstance(options.storage, Path)
    assert not (options.storage / options.name).exists()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("{name: val_f1/11, mode: max}", r"metric\.name: unknown class '11' \(did you mean '1'"),
        ("{name: val_loss, mode: min, log: [val_auroc/x]}", r"metric\.log: unknown class 'x'; known: 0, 1, "),
    ],
)
def test_a_class_that_does_not_exist_is_refused_before_images_are_decoded(
    options: RunOptions, tmp_path: Path, metric: str, message: str
) -> None:
    options = dataclasses.replace(options, cache_root=tmp_path / "cache")
    space = load_space("digits", [f"metric={metric}"])
    with pytest.raises(ConfigError, match=message):
        run_search(space, options)
    assert not options.cache_root.exists()
    with pytest.raises(ConfigError, match=message):
        print_dry_run(space, Console(), data_root=tmp_path)


def test_a_resumed_search_reuses_the_measured_latencies(
    options: RunOptions, monkeypatch: pytest.MonkeyPatch, progress: list[str]
) -> None:
    """A network that was too slow before the resume is not trained after it."""
    limit = ("constraints={latency_ms: {max: 10}}", "initial=[]")

    def measure(spec: NetworkSpec, device: str) -> float:
        del device
        return 14.0 if network_cost(spec).parameters > 300_000 else 4.0

    monkeypatch.setattr("tune_rescon.training.probe.measure_latency", measure)
    first = search(options, "budget.trials=4", *limit)
    monkeypatch.setattr("tune_rescon.training.probe.measure_latency", lambda *_: pytest.fail("measured"))
    resumed = search(dataclasses.replace(options, resume=True), *limit)
    assert (len(first.trials), len(resumed.trials)) == (4, 9)
    assert {trial.parameters["depth"] for trial in resumed.trials} == {56}
    latencies = [line for line in progress if line.startswith("constraints: ")]
    assert [line.partition(". ")[2] for line in latencies] == ["An image takes 4 to 14 ms on cpu"] * 2


def test_each_trial_gets_the_digest_of_its_images(small_space: Space, options: RunOptions) -> None:
    """Its process may start after the images have changed, or on a machine with other images."""
    digests: list[object] = []

    def spy(config: dict[str, object]) -> None:
        digests.append(config["images"])
        learn_nothing(config)

    result = run_search(small_space, options, trainable=spy)
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{result.folder / 'study.db'}")
    assert set(digests) == {study.user_attrs["image_digests"]["digits"]}


def save_weights(path: Path, seed: int) -> None:
    """Save a network for digits."""
    config = TrialConfig(layout="cifar", depth=56, width=0.125, image_size=16)
    spec = resolve_network(config, classes=10, in_channels=1)
    about = TrainedNetwork(
        spec=spec,
        config=config,
        class_names=tuple("0123456789"),
        mean=(0.5,),
        std=(0.5,),
        dataset="0123",
        seed=seed,
        epoch=1,
        metrics={},
    )
    torch.manual_seed(seed)
    torch.save(trained_values(build_from_spec(spec), about), path)


def test_changed_initial_weights_are_refused_on_resume(
    options: RunOptions, tmp_path: Path, progress: list[str]
) -> None:
    """Otherwise trials with different initial weights would be ranked together.

    A warm start ignores such trials, and final trainings report the difference.
    """
    weights = tmp_path / "weights.ckpt"
    save_weights(weights, seed=0)
    fixed = f"fixed={{layout: cifar, depth: 56, width: 0.125, image_size: 16, init_from: {weights}}}"
    changes = ("initial=[]", fixed, f"parameters={LEARNING_RATE}")
    search(options, *changes, "budget.trials=2")
    resumed_options = dataclasses.replace(options, resume=True)
    save_weights(weights, seed=0)
    assert len(search(resumed_options, *changes, "budget.trials=3").trials) == 3
    save_weights(weights, seed=1)
    with pytest.raises(StorageError, match="must have the initial weights that its trials began with"):
        search(resumed_options, *changes, "budget.trials=4")
    location = SearchLocation(storage=options.storage)
    earlier = read_search(location, "s")
    assert len(earlier.trials) == 3
    warm = dataclasses.replace(options, name="warm", warm_start="s")
    result = search(warm, *changes, "budget.trials=1")
    assert "used 0 of 3 trials of s: 3 differ in the weights in init_from" in progress
    (message,) = changes_since(earlier, result.space, location, decode=True)
    assert message.startswith(f"The weights in {weights} are not those that the trials of s began with.")
    save_weights(weights, seed=0)
    search(dataclasses.replace(warm, name="same"), *changes, "budget.trials=1")
    assert "used 3 of 3 trials of s" in progress
    assert changes_since(earlier, result.space, location, decode=True) == []


def test_changed_user_code_is_reported_wherever_earlier_trials_count(
    options: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: list[str]
) -> None:
    """On a resume, in the report, in a warm start and before final trainings; also a change during a run."""
    monkeypatch.chdir(tmp_path)
    code = tmp_path / "users_metric_of_this_test.py"
    code.write_text("def score(scores, labels):\n    return 1.0\n")
    log = "metric.log=['users_metric_of_this_test:score']"
    search(options, log, "budget.trials=2")
    resumed_options = dataclasses.replace(options, resume=True)
    search(resumed_options, log, "budget.trials=3")
    assert not [line for line in progress if "The code of" in line]

    code.write_text("def score(scores, labels):\n    return 2.0\n")

    def change(config: dict[str, Any]) -> None:
        code.write_text("def score(scores, labels):\n    return 3.0\n")
        learn_nothing(config)

    search(resumed_options, log, "budget.trials=5", trainable=change)
    when = [line.partition(". ")[0] for line in progress if "The code of" in line]
    changed = "The code of users_metric_of_this_test:score has changed"
    assert when == [f"{changed} since its last run", f"{changed} while the trials ran"]
    location = SearchLocation(storage=options.storage)
    earlier = read_search(location, "s")
    before, during = earlier.space_history[-2:]
    assert before == "the code of users_metric_of_this_test:score changed before trial 3"
    assert during == (
        "the code of users_metric_of_this_test:score changed while the trials ran, before trial 5"
    )

    warm = dataclasses.replace(options, name="warm", warm_start="s")
    result = search(warm, log, "budget.trials=1")
    assert not [line for line in progress if "other code" in line]
    assert changes_since(earlier, result.space, location, decode=True) == []
    code.write_text("def score(scores, labels):\n    return 4.0\n")
    search(dataclasses.replace(warm, name="other"), log, "budget.trials=1")
    assert any(line.startswith("s had other code of users_metric_of_this_test:score: ") for line in progress)
    (message,) = changes_since(earlier, result.space, location, decode=True)
    assert message.startswith(f"{changed} since s. Its configurations are trained with")


def test_a_two_objective_search_warm_starts_from_a_single_objective_one(options: RunOptions) -> None:
    changes = ("initial=[]", "budget.trials=4", "scheduler={type: none}", "fidelity.max=2")
    first = search(options, *changes)
    warm = dataclasses.replace(options, name="warm", warm_start="s")
    result = search(warm, *changes, "metric.against=gmacs")
    assert len(result.trials) == 4
    study = optuna.load_study(study_name="warm", storage=f"sqlite:///{result.folder / 'study.db'}")
    costs = [trial["cost"] for trial in study.user_attrs["warm_start"]]
    assert len(costs) == 4
    assert costs == [first.costs[number].gmacs for number in range(4)]

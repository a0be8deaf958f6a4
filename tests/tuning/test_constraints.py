"""Networks that cost more than a space allows are never trained; the rest of the space is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
import pytest
import torch

from tests.tuning.coordinating import FakeCheckpoints, Study, curve
from tune_rescon.config import TrialConfig, TrialState
from tune_rescon.data import DatasetInfo, describe
from tune_rescon.errors import ConfigError, ResourceError
from tune_rescon.models import NetworkDescription, describe_network, network_cost
from tune_rescon.spaces import Space, first_rows, load_space, preview, to_optuna, trial_config
from tune_rescon.testing import simulate
from tune_rescon.training.probe import measure_latency
from tune_rescon.tuning import Coordinator, SearchPlan, SearchSampler, StudyRecord, SuccessiveHalving
from tune_rescon.tuning.constraints import check_constraints, violation_of
from tune_rescon.tuning.cost_model import CostModel

#: The digits' networks of half the width have 0.26 (depth 56) and 0.47 million parameters (depth 92).
SMALL_ONLY = "constraints={params_m: {max: 0.3}}"

LARGE_FIRST = (
    "initial=[{depth: 92, learning_rate: 0.1, weight_decay: 1e-4, label_smoothing: 0, drop_path: 0}]"
)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DatasetInfo]:
    space = load_space("digits")
    return {"digits": describe(space.dataset, data_root=tmp_path_factory.mktemp("data"))}


def model(datasets: Mapping[str, DatasetInfo], *settings: str) -> CostModel:
    return CostModel(space=load_space("digits", settings), datasets=datasets)


def sampler(costs: CostModel, **arguments: Any) -> SearchSampler:
    return SearchSampler(costs.space, violation=violation_of(costs), **arguments)


def draw(source: SearchSampler, count: int) -> list[Mapping[str, Any]]:
    proposals = [source.ask() for _ in range(count)]
    return [proposal.params for proposal in proposals if proposal is not None]


@pytest.mark.parametrize("kind", ["tpe", "random", "nsga2"])
def test_no_sampler_draws_a_network_that_is_too_large(kind: str, datasets: dict[str, DatasetInfo]) -> None:
    costs = model(datasets, SMALL_ONLY, f"sampler.type={kind}", "initial=[]")
    assert {params["depth"] for params in draw(sampler(costs), 30)} == {56}


def test_without_constraints_both_depths_are_drawn(datasets: dict[str, DatasetInfo]) -> None:
    costs = model(datasets, "initial=[]")
    assert violation_of(costs) is None
    assert check_constraints(costs) is None
    assert {params["depth"] for params in draw(sampler(costs), 30)} == {56, 92}


def test_a_rarely_permitted_network_is_found(datasets: dict[str, DatasetInfo]) -> None:
    width = "parameters.width={type: float, low: 0.0625, high: 2.0}"
    costs = model(
        datasets,
        "constraints={gmacs: {max: 0.0004}}",
        width,
        "fixed={layout: cifar, image_size: 16, batch_size: 32}",
        "initial=[]",
    )
    samples = draw(sampler(costs), 5)
    assert len(samples) == 5
    assert all(costs.space.constraints.gmacs is not None and params["width"] < 0.2 for params in samples)


def test_a_search_ends_when_all_permitted_points_have_run(datasets: dict[str, DatasetInfo]) -> None:
    choices = "{type: categorical, choices: [0.1, 0.2, 0.3]}"
    only = f"parameters={{depth: {{type: categorical, choices: [56, 92]}}, learning_rate: {choices}}}"
    costs = model(datasets, SMALL_ONLY, only, "initial=[]")
    plan = SearchPlan(total=9, violation=violation_of(costs))
    study = Study()
    rule = SuccessiveHalving(rungs=(1, 3, 9), reduction_factor=3, maximize=True)
    search = Coordinator(plan, study.record(), rule, sampler(costs), prune=FakeCheckpoints().prune).start()
    simulate(search, curve)
    assert search.space_is_exhausted
    assert sorted(trial.params["learning_rate"] for trial in study.trials) == [0.1, 0.2, 0.3]
    assert {trial.params["depth"] for trial in study.trials} == {56}


def test_a_grid_leaves_out_points_that_break_a_constraint(datasets: dict[str, DatasetInfo]) -> None:
    masks = "{type: categorical, choices: [encoder_decoder, local]}"
    grid = f"parameters={{depth: {{type: categorical, choices: [56, 92]}}, mask: {masks}}}"
    costs = model(datasets, SMALL_ONLY, grid, "sampler.type=grid", "initial=[]")
    points = [to_optuna(point) for point in first_rows(costs.space)]
    assert len(points) == 4
    samples = draw(sampler(costs, initial_points=points), 2)
    assert [(params["depth"], params["mask"]) for params in samples] == [
        (56, "encoder_decoder"),
        (56, "local"),
    ]


def test_an_enqueued_trial_that_breaks_a_constraint_is_closed(datasets: dict[str, DatasetInfo]) -> None:
    costs = model(datasets, SMALL_ONLY, "initial=[]")
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, direction="maximize")
    study.enqueue_trial({"depth": 92, "learning_rate": 0.1})
    plan = SearchPlan(total=2, violation=violation_of(costs))
    rule = SuccessiveHalving(rungs=(1, 3, 9), reduction_factor=3, maximize=True)
    record = StudyRecord.on_storage(
        storage, storage.get_study_id_from_name(study.study_name), metric="val_accuracy"
    )
    search = Coordinator(plan, record, rule, sampler(costs), prune=FakeCheckpoints().prune).start()
    trial = search.next_trial()
    assert trial is not None
    assert trial.number == 1
    assert record.trial(0).state is TrialState.FAILED
    error = record.trial(0).error
    assert error is not None
    assert error.startswith("not run: its network has 0.4")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            [SMALL_ONLY, LARGE_FIRST],
            r"initial\[0\]: its network has 0\.\d+ million parameters, and constraints\.params_m allows 0\.3",
        ),
        (
            ["constraints={params_m: {max: 0.01}, gmacs: {max: 9}}", "initial=[]"],
            r"some networks of the space must keep to the constraints, but got none of 1000 draws: in one,",
        ),
    ],
)
def test_a_search_that_could_run_nothing_is_refused(
    settings: list[str], words: str, datasets: dict[str, DatasetInfo]
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_constraints(model(datasets, *settings))


LATENCY = "constraints={latency_ms: {max: 10}}"


@pytest.fixture
def measured_networks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Fake latencies: 4 ms for depth 56, 14 ms for deeper networks. Returns the measured networks."""
    calls: list[tuple[int, str]] = []

    def measure(spec: NetworkDescription, device: str) -> float:
        deep = network_cost(spec).parameters > 300_000
        calls.append((92 if deep else 56, device))
        return 14.0 if deep else 4.0

    monkeypatch.setattr("tune_rescon.training.probe.measure_latency", measure)
    return calls


def test_a_network_is_measured_once_and_a_slow_one_never_drawn(
    datasets: dict[str, DatasetInfo], measured_networks: list[tuple[int, str]]
) -> None:
    """Drop path does not change the latency, because it is off in evaluation."""
    costs = model(datasets, LATENCY, "initial=[]")
    assert {params["depth"] for params in draw(sampler(costs), 30)} == {56}
    assert sorted(measured_networks) == [(56, "cpu"), (92, "cpu")]


def test_a_network_that_breaks_another_constraint_is_not_measured(
    datasets: dict[str, DatasetInfo], measured_networks: list[tuple[int, str]]
) -> None:
    costs = model(
        datasets, "constraints={params_m: {max: 0.3}, latency_ms: {max: 10, device: cuda}}", "initial=[]"
    )
    draw(sampler(costs), 20)
    assert measured_networks == [(56, "cuda")]


def test_a_resumed_search_reuses_the_recorded_latencies(
    datasets: dict[str, DatasetInfo],
    measured_networks: list[tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs, record = model(datasets, LATENCY, "initial=[]"), Study().record()
    configs = [trial_config(costs.space, row).to_dict() for row in preview(costs.space, 30)]
    first = violation_of(costs, record)
    assert first is not None
    before = [first(config) for config in configs]
    assert {words for words in before if words} == {
        "its network takes 14 ms for an image on cpu, and constraints.latency_ms allows 10"
    }
    assert None in before
    monkeypatch.setattr("tune_rescon.training.probe.measure_latency", lambda *_: 99.0)
    second_violation = violation_of(costs, record)
    assert second_violation is not None
    assert [second_violation(config) for config in configs] == before
    elsewhere = violation_of(costs)
    assert elsewhere is not None
    assert all(elsewhere(config) for config in configs)
    message = check_constraints(costs, record)
    assert message is not None
    assert message.endswith("the others are not trained. An image takes 4 to 14 ms on cpu")
    assert len(measured_networks) == 2


@pytest.mark.torch
def test_measuring_latency_is_cached_and_changes_no_global_state() -> None:
    small, large = (
        describe_network(TrialConfig(width=width, image_size=size), classes=10, in_channels=3)
        for width, size in ((0.125, 16), (1.0, 64))
    )
    before = (torch.get_num_threads(), torch.get_rng_state())
    fast, slow = (measure_latency(spec, "cpu") for spec in (small, large))
    assert 0 < fast < slow / 2
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert measure_latency(small, "cpu") == fast, "the latency is cached"


@pytest.mark.torch
def test_gpu_latency_without_a_gpu_is_refused(
    datasets: dict[str, DatasetInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    costs = model(datasets, "constraints={latency_ms: {max: 10, device: cuda}}", "initial=[]")
    with pytest.raises(
        ResourceError, match=r"constraints\.latency_ms\.device: must be a device of the machine"
    ):
        check_constraints(costs)


def test_the_share_of_permitted_networks_is_reported(datasets: dict[str, DatasetInfo]) -> None:
    message = check_constraints(model(datasets, SMALL_ONLY))
    assert message is not None
    share = int(message.removeprefix("constraints: ").partition("%")[0])
    assert 40 <= share <= 60
    assert message.endswith("% of the networks keep to them; the others are not trained")


def test_the_space_keeps_its_constraints(datasets: dict[str, DatasetInfo]) -> None:
    space: Space = model(datasets, SMALL_ONLY).space
    assert space.constraints.params_m is not None
    assert space.constraints.params_m.max == 0.3

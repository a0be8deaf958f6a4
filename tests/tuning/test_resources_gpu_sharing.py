"""The number of trials per GPU: by idle time and memory of the largest trial of the space."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.config import TrialConfig
from tune_rescon.data import DatasetInfo
from tune_rescon.spaces import dump_space, load_space, parse_space
from tune_rescon.training.probe import Occupancy, busy_seconds
from tune_rescon.tuning.resources import MAX_TRIALS_PER_GPU, largest_trial, trials_per_gpu, with_gpu_share

DATASET_INFO = {
    "digits": DatasetInfo(
        name="digits",
        classes=10,
        channels=1,
        image_size=8,
        train_images=1000,
        val_images=100,
        test_images=100,
        class_names=tuple("0123456789"),
    )
}


@given(st.floats(1e-4, 1), st.integers(1, 10**12), st.integers(1, 10**12))
def test_trials_that_share_a_gpu_have_time_and_memory(busy: float, used: int, total: int) -> None:
    trials = trials_per_gpu(busy=busy, used=used, total=total)
    assert 1 <= trials <= MAX_TRIALS_PER_GPU
    if trials > 1:
        assert trials * busy <= 1 + 1e-9
        assert trials * used <= total


@pytest.mark.parametrize("trials", range(1, MAX_TRIALS_PER_GPU + 1))
def test_a_gpu_that_is_busy_one_nth_of_the_time_serves_n_trials(trials: int) -> None:
    assert trials_per_gpu(busy=1 / trials, used=1, total=100) == trials


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)).map(lambda pair: tuple(sorted(pair)))))
def test_overlapping_kernels_are_counted_once(spans: list[tuple[float, float]]) -> None:
    covered = busy_seconds(spans)
    assert covered <= sum(end - start for start, end in spans) + 1e-9
    assert covered <= max((end for _, end in spans), default=0.0) + 1e-9
    assert covered >= max((end - start for start, end in spans), default=0.0) - 1e-9


def test_the_largest_trial_decides_the_share() -> None:
    space = load_space("digits", ["resources_per_trial.gpu=auto"])
    configs: list[TrialConfig] = []

    def measure(config: TrialConfig, info: DatasetInfo) -> Occupancy:
        configs.append(config)
        assert info is DATASET_INFO["digits"]
        return Occupancy(device="a GPU", busy=0.3, used=10**9, total=16 * 10**9)

    shared, message = with_gpu_share(space, DATASET_INFO, measure)
    assert [config.depth for config in configs] == [92]
    assert shared.resources_per_trial.gpu == 1 / 3
    assert message.startswith("Trials that share a GPU: 3. ")
    assert "a GPU busy for 30% of its time and takes 1.0 of 16.0 GB" in message
    loaded = parse_space(dump_space(shared), source="space.yaml")
    assert loaded.resources_per_trial == shared.resources_per_trial


def test_a_batch_that_does_not_fit_has_a_whole_gpu() -> None:
    space = load_space("digits", ["resources_per_trial.gpu=auto"])
    shared, message = with_gpu_share(space, DATASET_INFO, lambda *_: None)
    assert shared.resources_per_trial.gpu == 1.0
    assert message.startswith("One trial per GPU")


def test_the_largest_trial_is_chosen_by_batch_size_too() -> None:
    sizes = "parameters.batch_size={type: int, low: 8, high: 512}"
    space = load_space("digits", [sizes, "fixed={layout: cifar, width: 0.5}", "initial=[]"])
    config, _ = largest_trial(space, DATASET_INFO)
    assert config.batch_size == 512


@pytest.mark.torch
def test_the_largest_trial_may_be_an_external_network() -> None:
    networks = "[null, tests.own_networks:small, tests.own_networks:unused]"
    searched = f"parameters={{network: {{type: categorical, choices: {networks}}}}}"
    space = load_space("digits", [searched, "fixed={image_size: 512}", "initial=[]", "scheduler.type=none"])
    # At 512 pixels a Residual Attention Network with the layout for large images has the most MACs.
    assert largest_trial(space, DATASET_INFO)[0].network is None
    one_network = load_space(
        "digits", [searched.replace("null, ", ""), "fixed={image_size: 512}", "initial=[]"]
    )
    assert largest_trial(one_network, DATASET_INFO)[0].network == "tests.own_networks:small"


def test_an_unmeasured_trial_counts_as_a_whole_gpu() -> None:
    assert load_space("digits", ["resources_per_trial.gpu=auto"]).resources_per_trial.gpus == 1.0
    assert load_space("digits", ["resources_per_trial.gpu=0.25"]).resources_per_trial.gpus == 0.25

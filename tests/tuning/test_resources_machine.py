"""``resources_per_trial: auto``, and resources that this machine does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.own_networks import SMALL_SEARCH
from tune_rescon.config import TrialState
from tune_rescon.errors import ResourceError, SpaceError
from tune_rescon.spaces import AutoResources, Resources, dump_space, load_space, parse_space
from tune_rescon.tuning import RunOptions, run_search
from tune_rescon.tuning.resources import Nodes, choose_resources, fit_to_machine, this_machine

AUTO = "resources_per_trial=auto"


def machine(cpu: float, gpu: float = 0, gib: float = 64) -> Nodes:
    return Nodes(count=1, resources={"CPU": cpu, "GPU": gpu, "memory": gib * 2**30})


@pytest.mark.parametrize(
    ("nodes", "cpu", "gpu"),
    [
        ([machine(2)], 1, 0),
        ([machine(8)], 1, 0),
        ([machine(64)], 8, 0),
        ([machine(8, gib=8)], 2, 0),
        ([machine(4, gib=1)], 4, 0),
        ([machine(16, 1)], 4, 1),
        ([machine(16, 8)], 2, 1),
        ([machine(2, 4)], 1, 1),
        ([machine(2), machine(8, 1)], 4, 1),
        ([machine(0), machine(96, 8), machine(8, 4)], 2, 1),
        ([machine(0)], 1, 0),
    ],
)
def test_auto_resources_follow_from_the_machines(nodes: list[Nodes], cpu: int, gpu: float) -> None:
    space, message = choose_resources(load_space("digits", [AUTO]), nodes, where="this machine")
    assert space.resources_per_trial == Resources(cpu=cpu, gpu=float(gpu))
    assert f"--set 'resources_per_trial={{cpu: {cpu}, gpu: {gpu}}}'" in message
    line = message.split("--set '")[1].rstrip("'")
    assert load_space("digits", [line]).resources_per_trial == space.resources_per_trial


def test_auto_resources_round_trip_through_a_file() -> None:
    space = load_space("digits", [AUTO])
    assert isinstance(space.resources_per_trial, AutoResources)
    assert parse_space(dump_space(space), source="x.yaml") == space
    assert "resources_per_trial: auto\n" in dump_space(space)
    assert load_space("folder", ["dataset.path=x"]).resources_per_trial == space.resources_per_trial


@pytest.mark.parametrize(
    ("settings", "resources"),
    [
        (["resources_per_trial={cpu: 3}"], Resources(cpu=3)),
        (["resources_per_trial.gpu=0", "resources_per_trial.cpu=1"], Resources(cpu=1, gpu=0)),
        (["resources_per_trial.cpu=2", "resources_per_trial.gpu=auto"], Resources(cpu=2, gpu="auto")),
    ],
)
def test_explicit_resources_replace_auto(settings: list[str], resources: Resources) -> None:
    assert load_space("folder", ["dataset.path=x", *settings]).resources_per_trial == resources


def test_replacing_a_part_of_auto_is_refused() -> None:
    with pytest.raises(SpaceError, match="must be replaced as a whole, but got cpu") as caught:
        load_space("folder", ["dataset.path=x", "resources_per_trial.cpu=2"])
    assert "Give both: --set resources_per_trial.cpu=1 --set resources_per_trial.gpu=0" in str(caught.value)
    with pytest.raises(SpaceError, match="or auto, but got 'all'"):
        load_space("digits", ["resources_per_trial=all"])


@pytest.mark.parametrize(
    ("visible", "listed", "gpus"),
    [
        (None, 2, 2),
        ("", 2, 0),
        ("-1", 2, 0),
        ("1", 2, 1),
        ("0,1,2", 2, 2),
        ("0", 0, 0),
        ("NoDevFiles", 2, 0),
        ("1,-1,0", 2, 1),
    ],
)
def test_gpus_are_limited_by_cuda_visible_devices(visible: str | None, listed: int, gpus: int) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert this_machine(environment, lambda: listed).resources["GPU"] == gpus


def test_gpus_are_counted_without_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    this_node = this_machine({})
    assert this_node.resources["GPU"] == len(list(Path("/dev").glob("nvidia[0-9]*")))
    assert this_node.resources["CPU"] >= 1


@pytest.mark.parametrize(
    ("requested", "fits"),
    [
        ("{cpu: 4, gpu: 1}", ["--set resources_per_trial.cpu=2 --set resources_per_trial.gpu=0"]),
        ("{cpu: 4}", ["--set resources_per_trial.cpu=2."]),
        ("{cpu: 1, gpu: 1}", ["--set resources_per_trial.gpu=0."]),
        ("{cpu: 1, gpu: auto}", ["--set resources_per_trial.gpu=0."]),
        ("{cpu: 1, workers: 3}", ["--set resources_per_trial.workers=2"]),
    ],
)
def test_resources_that_do_not_fit_are_refused_with_settings_that_do(
    requested: str, fits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune_rescon.tuning.resources.this_machine", lambda: machine(2))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    space = load_space("digits", [f"resources_per_trial={requested}"])
    with pytest.raises(ResourceError) as caught:
        fit_to_machine(space)
    assert all(line in str(caught.value) for line in fits)
    settings = [word for word in str(caught.value).split("`")[0].split() if "=" in word]
    settings_again = [
        setting.rstrip(".") for setting in settings if setting.startswith("resources_per_trial.")
    ]
    fit_to_machine(load_space("digits", [f"resources_per_trial={requested}", *settings_again]))


def test_resources_that_do_not_fit_are_refused_before_the_search_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune_rescon.tuning.resources.this_machine", lambda: machine(2))
    started: list[object] = []
    monkeypatch.setattr("tune_rescon.tuning.search.prepare_data", lambda *_: started.append("images"))
    monkeypatch.setattr("tune_rescon.tuning.search.ray_session", lambda *_: started.append("Ray"))
    space = load_space("digits", ["resources_per_trial={cpu: 1, gpu: 1}"])
    with pytest.raises(ResourceError, match="a trial asks for 1 GPU"):
        run_search(space, RunOptions(name="s", storage=tmp_path / "runs"))
    assert started == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.torch
@pytest.mark.usefixtures("without_ray_and_mlflow")
def test_a_search_reports_what_auto_chose_and_records_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: list[str]
) -> None:
    monkeypatch.setattr("tune_rescon.tuning.resources.this_machine", lambda: machine(2))
    settings = [
        AUTO,
        "budget.trials=1",
        "fidelity.max=1",
        *SMALL_SEARCH,
        "dataset.limit=100",
    ]
    options = RunOptions(name="s", storage=tmp_path, cache_root=tmp_path / "cache")
    result = run_search(load_space("digits", settings), options)
    chosen = [line for line in progress if "resources_per_trial" in line]
    assert len(chosen) == 1
    assert chosen[0].startswith("Each trial gets 1 CPU core and no GPU, which suits this machine")
    assert result.space.resources_per_trial == Resources(cpu=1, gpu=0)
    recorded = load_space(tmp_path / "s" / "space.yaml").resources_per_trial
    assert recorded == Resources(cpu=1, gpu=0)


@pytest.mark.torch
@pytest.mark.usefixtures("without_ray_and_mlflow")
def test_a_gpu_that_torch_cannot_use_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is too old for torch's CUDA: nvidia-smi and Ray count a GPU that torch cannot use."""
    monkeypatch.setattr("tune_rescon.tuning.resources.this_machine", lambda: machine(2, 1))
    monkeypatch.setattr("tests.without_ray.RESOURCES", {"CPU": 2.0, "GPU": 1.0})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    settings = ["resources_per_trial={cpu: 1, gpu: 1}", "budget.trials=9", "fidelity.max=1"]
    settings += [*SMALL_SEARCH, "dataset.limit=100"]
    options = RunOptions(name="s", storage=tmp_path, cache_root=tmp_path / "cache")
    result = run_search(load_space("digits", settings), options)
    assert result.failure is not None
    assert result.failure.startswith('device "cuda" needs a CUDA GPU that torch can use, but got none on ')
    assert [trial.state for trial in result.trials] == [TrialState.INTERRUPTED], "the trial can be resumed"

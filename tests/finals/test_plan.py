"""The space of final trainings from a search, a preset or a published row."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from tune_rescon.config import DatasetConfig, TrialConfig, TrialState
from tune_rescon.data import describe, open_dataset
from tune_rescon.errors import ConfigError, SpaceError, StorageError
from tune_rescon.finals import (
    PUBLISHED,
    RECIPES,
    PublishedRow,
    Shares,
    TrainingPlan,
    as_trained_now,
    epochs_within,
    finals_space,
    find_recipe,
    find_rows,
    image_growth,
    limit_message,
    local_resources,
    of_dataset,
    preset_config,
    read_duration,
    row_space,
    seconds_per_epoch,
    top_configs,
    trial_configs,
)
from tune_rescon.finals.changes import changed_images, changes_since
from tune_rescon.spaces import (
    Resources,
    Space,
    dump_space,
    load_space,
    parse_space,
    to_optuna,
    trial_config,
)
from tune_rescon.testing import SimulatedSearch, Simulation, SyntheticCurve
from tune_rescon.tuning import SearchLocation, SearchState, StudyResult, TrialRecord
from tune_rescon.tuning.prepare import external_trials, largest_image_size
from tune_rescon.tuning.resources import Nodes
from tune_rescon.tuning.trial import find_origin, make_origin, trial_seed

ONE_CPU = Resources(cpu=1)


@pytest.fixture(scope="module")
def search_result() -> StudyResult:
    """A search of 12 trials, some of them stopped. The final value of a trial is its learning rate."""
    space = load_space("digits", ["sampler.type=random"])
    search = SimulatedSearch(space)
    Simulation(lambda trial: SyntheticCurve(limit=trial.parameters["learning_rate"]), workers=2).drive(
        search.policy()
    )
    return search.result(Path("runs/s"))


def make_space(configs: tuple[TrialConfig, ...], seeds: int = 1, overrides: Sequence[str] = ()) -> Space:
    return finals_space(
        "f",
        configs,
        TrainingPlan(epochs=3, seeds=seeds, resources=ONE_CPU),
        dataset=DatasetConfig(name="digits"),
        overrides=overrides,
    )


def initial_configs(space: Space) -> list[TrialConfig]:
    return [trial_config(space, row) for row in space.initial]


@pytest.mark.parametrize(
    "configs",
    [
        (
            TrialConfig(layout="rescon", depth=92, width=0.5),
            TrialConfig(network="timm/resnet18", image_size=64, drop_path=0.1),
            TrialConfig(network="clinic:small"),
        ),
        # Neither layout has the other one's depth.
        (TrialConfig(layout="cifar", depth=452), TrialConfig(layout="port448", depth=107, image_size=448)),
    ],
)
def test_networks_without_common_fields_are_trained_together(
    configs: tuple[TrialConfig, ...],
) -> None:
    space = make_space(configs, seeds=2)
    assert initial_configs(space) == [*configs, *configs]
    expected = [config for config in configs if config.network]
    assert {config.network for config in external_trials(space)} == {one.network for one in expected}
    assert largest_image_size(space) == max(config.image_size or 32 for config in configs)


def test_an_invalid_network_is_reported_once_for_all_seeds() -> None:
    configs = (TrialConfig(), TrialConfig(network="timm/resnet18", depth=92))
    with pytest.raises(SpaceError, match=r"initial\[1\]\.depth: depth: `depth` does not apply") as raised:
        make_space(configs, seeds=3)
    assert str(raised.value).count("does not apply") == 1


def test_the_best_finished_configurations_are_chosen_without_duplicates(search_result: StudyResult) -> None:
    ended = [t for t in search_result.trials if t.state is TrialState.FINISHED]
    rates = sorted((t.parameters["learning_rate"] for t in ended), reverse=True)
    found = top_configs(search_result, 2)
    assert [config.learning_rate for config in found] == rates[:2]
    assert len(top_configs(search_result, 99)) == len(set(rates))
    doubled = dataclasses.replace(search_result, trials=search_result.trials * 2)
    assert top_configs(doubled, 2) == found


def test_only_the_best_trials_need_a_known_configuration(search_result: StudyResult) -> None:
    def with_unknown(number: int) -> StudyResult:
        trials = tuple(
            dataclasses.replace(trial, origin=None, parameters={"unknown": 1})
            if trial.number == number
            else trial
            for trial in search_result.trials
        )
        return dataclasses.replace(search_result, trials=trials)

    finished = [trial for trial in search_result.trials if trial.state is TrialState.FINISHED]
    first, *_, last = sorted(finished, key=lambda trial: trial.rank_key())
    best = top_configs(search_result, 1)
    edited = with_unknown(last.number)
    assert top_configs(edited, 1) == best
    assert seconds_per_epoch(edited, best) == seconds_per_epoch(search_result, best)
    with pytest.raises(StorageError, match=f"trial {first.number} of digits, recorded before"):
        top_configs(with_unknown(first.number), 1)


def test_a_search_without_a_finished_trial_has_no_finalists(search_result: StudyResult) -> None:
    empty = dataclasses.replace(search_result, trials=search_result.trials[:0])
    with pytest.raises(StorageError, match=r"--from: a search must have a trial that reached its last epoch"):
        top_configs(empty, 3)


def test_trials_are_chosen_by_number_finished_or_not(search_result: StudyResult) -> None:
    stopped = next(t for t in search_result.trials if t.state is TrialState.STOPPED)
    finished = next(t for t in search_result.trials if t.state is TrialState.FINISHED)
    chosen = (stopped, finished)
    found = trial_configs(search_result, [stopped.number, finished.number, stopped.number])
    assert found == tuple(trial.config(search_result.space) for trial in chosen)
    assert seconds_per_epoch(search_result, found) == pytest.approx(
        sum(trial.seconds for trial in chosen) / sum(trial.epochs for trial in chosen)
    )


@pytest.mark.parametrize(("more", "device"), [(4, "CPU"), (1, "NVIDIA H200")])
def test_the_time_of_an_epoch_is_that_of_trials_with_the_devices_of_now(
    more: int, device: str, search_result: StudyResult
) -> None:
    now = search_result.space.resources_per_trial.devices
    finished = [trial for trial in search_result.trials if trial.state is TrialState.FINISHED]

    def with_devices(trial: TrialRecord, count: float, kind: str, seconds: float) -> TrialRecord:
        history = {**trial.history, "epoch_seconds": (seconds,) * trial.epochs}
        devices = (kind,) * trial.epochs
        return dataclasses.replace(
            trial, device_counts=(count,) * trial.epochs, devices=devices, history=history
        )

    trials = tuple(with_devices(trial, now * more, device, 10.0) for trial in search_result.trials)
    before = dataclasses.replace(search_result, trials=trials)
    best = top_configs(before, 2)
    assert as_trained_now(before, best) is before, "no finalist has had what a trial gets now"
    later = with_devices(finished[0], now, "CPU", 40.0)
    extended = dataclasses.replace(
        before, trials=tuple(later if trial.number == later.number else trial for trial in trials)
    )
    chosen = trial_configs(extended, [trial.number for trial in finished])
    assert seconds_per_epoch(extended, chosen) < 40.0
    assert seconds_per_epoch(as_trained_now(extended, chosen), chosen) == 40.0


@pytest.mark.parametrize(("size", "seconds"), [(None, 40.0), (32, 10.0)])
def test_the_time_of_an_epoch_grows_with_the_pixels(
    size: int | None, seconds: float, search_result: StudyResult
) -> None:
    """Without a size of their own (None), the networks of `layout: auto` see 32 pixels."""
    (trial,) = [trial for trial in search_result.trials if trial.number == 0]
    assert trial.origin is not None
    origin = dataclasses.replace(trial.origin, config={**trial.origin.config, "image_size": size})
    history = {**trial.history, "epoch_seconds": (10.0,) * trial.epochs}
    trial = dataclasses.replace(trial, origin=origin, history=history)
    result = dataclasses.replace(search_result, trials=(trial,))
    configs = trial_configs(result, [0])
    assert seconds_per_epoch(result, configs) == 10.0
    assert seconds_per_epoch(result, configs, image_size=64 if size is None else 32) == seconds


@pytest.mark.parametrize(
    ("parts", "growth"),
    [
        # Ten images of each of two classes in each part; a fifth of the training images is held out.
        (("train", "val", "test"), 2.0),
        (("train", "val"), 1.0),
        (("train", "test"), 1.25),
        (("train",), 1.0),
    ],
)
def test_finals_train_on_validation_images_if_there_are_test_images(
    tmp_path: Path, parts: tuple[str, ...], growth: float
) -> None:
    for part, name in itertools.product(parts, "ab"):
        (tmp_path / part / name).mkdir(parents=True)
        for number in range(10):
            Image.new("L", (8, 8), number).save(tmp_path / part / name / f"{number}.png")
    dataset = DatasetConfig(name="folder", path=str(tmp_path), val_fraction=0.2)
    assert image_growth(dataset, tmp_path) == growth


def test_messages_about_a_folder_with_three_parts(search_result: StudyResult, tmp_path: Path) -> None:
    """One said that at most 4 images train, where 8 do; the other left out a new part."""
    for part, name, number in itertools.product(("train", "val", "test"), "ab", range(9)):
        (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(tmp_path / part / name / f"{number}.png")
    dataset = DatasetConfig(name="folder", path=str(tmp_path), limit=4)
    plan = TrainingPlan(epochs=3, seeds=1, resources=ONE_CPU)
    space = finals_space("f", [TrialConfig()], plan, dataset=dataset)
    info = describe(space.dataset, data_root=tmp_path)
    assert (info.train_images, info.test_images) == (8, 4)
    limited = limit_message(space)
    assert "at most 4 images of each part (training, validation, test) are used" in str(limited)
    assert info.account is not None
    then = dataclasses.replace(info.account, per_class={**info.account.per_class, "test": (0, 0)})
    result = dataclasses.replace(search_result, accounts={"folder": then})
    location = SearchLocation(storage=tmp_path, data_root=tmp_path)
    changed = changed_images(result, space, location, decode=False)
    assert "train 18 then, 18 now, val 18 then, 18 now, test 0 then, 18 now" in str(changed)


def test_an_unknown_trial_number_is_refused(search_result: StudyResult) -> None:
    with pytest.raises(
        StorageError, match=r"--trial: must be .* of a trial of .*, but got 98, 99\. .* 0 to 11\."
    ):
        trial_configs(search_result, [0, 98, 99])
    with pytest.raises(StorageError, match=r"but got 0\. It has no trials yet\."):
        trial_configs(dataclasses.replace(search_result, trials=()), [0])


def test_a_trial_without_an_epoch_is_refused(search_result: StudyResult) -> None:
    empty = dataclasses.replace(search_result.trials[1], values=(), history={})
    result = dataclasses.replace(search_result, trials=(search_result.trials[0], empty))
    assert len(trial_configs(result, [0])) == 1
    with pytest.raises(
        StorageError, match=r"--trial: must be a trial with at least one epoch.* but got 1 of"
    ):
        trial_configs(result, [0, 1])


def test_finals_run_each_finalist_once_per_seed(search_result: StudyResult) -> None:
    found, dataset = of_dataset(top_configs(search_result, 3), search_result.space)
    space = finals_space("f", found, TrainingPlan(epochs=9, seeds=2, resources=ONE_CPU), dataset=dataset)
    assert initial_configs(space) == [*found, *found]
    assert space.budget.trials == 2 * len(found)
    assert (space.dataset.hold_out, space.metric.name, space.scheduler.type) == (
        False,
        "test_accuracy",
        "none",
    )
    assert parse_space(dump_space(space), source="f") == space


def test_no_final_has_the_seed_of_a_trial_of_the_search(search_result: StudyResult) -> None:
    """A final with the seed of the search's winner would repeat the training that won."""
    space = make_space(top_configs(search_result, 2), seeds=3)
    finals = {
        make_origin(space, to_optuna(row), version=1, number=number).seed
        for number, row in enumerate(space.initial)
    }
    assert space.sampler.seed == search_result.space.sampler.seed
    assert len(finals) == 6
    assert finals.isdisjoint(trial.origin.seed for trial in search_result.trials if trial.origin)


def test_finals_of_an_earlier_version_keep_their_seeds(search_result: StudyResult) -> None:
    space = make_space(top_configs(search_result, 2), seeds=3)
    origin = find_origin(space, to_optuna(space.initial[1]), 1)
    assert origin is not None
    assert origin.seed == trial_seed(0, 1)


@pytest.mark.parametrize("state", [SearchState.RUNNING, SearchState.FINISHED])
def test_a_search_that_still_runs_is_said(
    state: SearchState, search_result: StudyResult, tmp_path: Path
) -> None:
    result = dataclasses.replace(search_result, state=state)
    space = make_space(top_configs(result, 1))
    messages = changes_since(result, space, SearchLocation(storage=tmp_path), decode=False)
    assert messages == (
        ["digits still runs: a later trial of it may be better than these."] * (state == "running")
    )


def test_a_single_finalist_can_be_trained() -> None:
    config = TrialConfig(depth=92, learning_rate=0.25, schedule="multistep", step_fractions=(30, 90))
    assert initial_configs(make_space((config,), seeds=3)) == [config] * 3


def test_finalists_may_differ_in_anything() -> None:
    configs = (
        TrialConfig(depth=92, drop_path=0.1, image_size=32),
        TrialConfig(depth=56, image_size=None, step_fractions=(20, 80)),
    )
    assert initial_configs(make_space(configs)) == list(configs)


def test_finalists_keep_their_datasets() -> None:
    space = load_space("rescon_table")
    configs = tuple(TrialConfig(dataset=name) for name in ("cifar100", "cifar10"))
    assert of_dataset(configs, space)[0] == configs
    single, dataset = of_dataset(configs[:1], space)
    assert (single[0].dataset, dataset.name) == (None, "cifar100")


def test_finalists_of_a_folder_and_a_builtin_dataset_keep_the_folder() -> None:
    """The best configuration was trained on the built-in dataset, which has no path."""
    changes = [
        "dataset={name: folder, path: /pets, ignore: masks}",
        "parameters.dataset={type: categorical, choices: [folder, cifar10]}",
        "initial=[]",
    ]
    space = load_space("digits", changes)
    found = tuple(TrialConfig(dataset=name) for name in ("cifar10", "folder"))
    configs, dataset = of_dataset(found, space)
    plan = TrainingPlan(epochs=3, seeds=1, resources=ONE_CPU)
    finals = finals_space("f", configs, plan, dataset=dataset)
    assert initial_configs(finals) == list(found)
    folder = finals.dataset_config("folder")
    assert (folder.path, folder.ignore) == ("/pets", "masks")
    assert finals.dataset_config("cifar10").path is None


def test_settings_apply_to_the_finals() -> None:
    configs = (TrialConfig(),)
    assert make_space(configs, overrides=["resources_per_trial.cpu=3"]).resources_per_trial.cpu == 3
    with pytest.raises(SpaceError, match=r"budget\.trials: must be at most the 1 row"):
        make_space(configs, overrides=["budget.trials=2"])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_configures_a_preset(name: str) -> None:
    recipe = find_recipe(name)
    config = preset_config("cifar_attention56", recipe, epochs=recipe.epochs, image_size=None)
    assert config == TrialConfig.from_dict({**recipe.settings, "preset": "cifar_attention56"})
    short = preset_config("cifar_attention56", recipe, epochs=3, image_size=64)
    assert short.image_size == 64
    assert short.warmup_epochs == pytest.approx(config.warmup_epochs * 3 / recipe.epochs)
    assert initial_configs(make_space((short,))) == [short]


def test_epochs_of_the_paper_recipe_match_its_iterations() -> None:
    recipe = find_recipe("paper")
    steps = recipe.epochs * (50_000 // recipe.settings["batch_size"])
    assert steps == pytest.approx(160_000, rel=0.001)
    drops = [percent / 100 * steps for percent in recipe.settings["step_fractions"]]
    assert drops == pytest.approx([64_000, 96_000], rel=0.001)


def test_an_unknown_recipe_suggests_a_known_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'modern'"):
        find_recipe("moder")


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.name)
def test_every_published_row_gives_a_valid_space(row: PublishedRow) -> None:
    space = row_space(row, name="r", shares=Shares(schedule=0.01, images=0.01), seeds=1, resources=ONE_CPU)
    (config,) = initial_configs(space)
    assert config.preset == row.preset
    assert space.dataset.label_noise == row.label_noise
    assert space.dataset.name == row.dataset
    full = row_space(row, name="r", shares=Shares(schedule=1, images=1), seeds=1, resources=ONE_CPU)
    assert full.dataset.limit is None
    assert full.fidelity.max == find_recipe(row.recipe).epochs


def test_published_rows_have_the_published_values() -> None:
    assert len({row.name for row in PUBLISHED}) == len(PUBLISHED) == 29
    assert {row.name: row.figures["test_error"] for row in find_rows(["paper-5"])} == {
        "attention92-noise10": 5.15,
        "attention92-noise30": 5.79,
        "attention92-noise50": 7.27,
        "attention92-noise70": 15.75,
    }
    with pytest.raises(ConfigError, match="did you mean 'paper-5'"):
        find_rows(["paper5"])


@pytest.mark.parametrize("text", ["", "2", "h", "0s", "-1h", "1m2h", "two hours"])
def test_an_invalid_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget: must be a time, such as 2h"):
        read_duration(text)


def test_a_time_budget_gives_as_many_epochs_as_fit(search_result: StudyResult) -> None:
    found = top_configs(search_result, 2)
    seconds = seconds_per_epoch(search_result, found)
    assert math.isfinite(seconds)
    assert epochs_within(61 * seconds, seconds, found, trainings=6, slots=2) == 20
    with pytest.raises(ConfigError, match=r"--budget: must be enough for 1 epoch of 6 trainings"):
        epochs_within(2 * seconds, seconds, found, trainings=6, slots=2)


@pytest.mark.parametrize(("listed", "cuda", "requested"), [(0, "13.2", 0), (1, "13.2", 1), (1, None, 0)])
def test_a_local_gpu_is_requested_even_if_torch_cannot_use_it(
    listed: int, cuda: str | None, requested: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training then fails with the reason, instead of running on the CPU."""
    machine = Nodes(count=1, resources={"CPU": 2.0, "GPU": float(listed)})
    monkeypatch.setattr("tune_rescon.finals.plan.this_machine", lambda: machine)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", cuda)
    assert local_resources().gpu == requested


def test_images_changed_since_the_search_are_reported(search_result: StudyResult, tmp_path: Path) -> None:
    """A class that was added after the search is trained too, so the values are not comparable."""
    images = tmp_path / "images"
    for name in ("cat/1", "cat/2", "cat/3", "dog/1", "dog/2", "dog/3"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(images / f"{name}.png")
    dataset = DatasetConfig(name="folder", path=str(images))
    account = describe(dataset, data_root=tmp_path).account
    assert account is not None
    result = dataclasses.replace(search_result, accounts={"folder": account})
    plan = TrainingPlan(epochs=3, seeds=1, resources=ONE_CPU)
    space = finals_space("f", top_configs(search_result, 1), plan, dataset=dataset)
    location = SearchLocation(storage=tmp_path, data_root=tmp_path, cache_root=tmp_path / "cache")
    assert changed_images(result, space, location, decode=True) is None
    assert changed_images(search_result, space, location, decode=True) is None
    broken = account.without([("train", 1, "dog/1.png")])
    assert (
        changed_images(
            dataclasses.replace(result, accounts={"folder": broken}), space, location, decode=False
        )
        is None
    )
    (images / "cat/4.png").write_bytes((images / "cat/3.png").read_bytes())
    assert changed_images(result, space, location, decode=False) is not None
    (images / "cat/4.png").unlink()
    (images / "eel").mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16)).save(images / "eel" / f"{number}.png")
    message = changed_images(result, space, location, decode=True)
    assert message is not None
    assert "(2 classes then, 3 now; train 6 then, 9 now)" in message


def test_images_replaced_one_for_one_since_the_search_are_reported(
    search_result: StudyResult, tmp_path: Path
) -> None:
    """A dry run, which decodes nothing, compares their numbers only."""
    images = tmp_path / "images"
    for number, name in enumerate(("cat/1", "cat/2", "dog/1", "dog/2")):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(images / f"{name}.png")
    searched = DatasetConfig(name="folder", path=str(images), val_fraction=0.5)
    location = SearchLocation(storage=tmp_path, data_root=tmp_path, cache_root=tmp_path / "cache")
    account = describe(searched, data_root=tmp_path).account
    assert account is not None
    digest = open_dataset(searched, data_root=tmp_path, cache_root=location.cache_root).digest
    result = dataclasses.replace(
        search_result,
        space=search_result.space.model_copy(update={"dataset": searched}),
        accounts={"folder": account},
        images={"folder": digest},
    )
    plan = TrainingPlan(epochs=3, seeds=1, resources=ONE_CPU)
    space = finals_space("f", top_configs(search_result, 1), plan, dataset=searched)
    assert changed_images(result, space, location, decode=True) is None
    Image.new("RGB", (16, 16), (200, 0, 0)).save(images / "dog/2.png")
    message = changed_images(result, space, location, decode=True)
    assert message is not None
    assert "(as many as then, but not the same)" in message
    assert changed_images(result, space, location, decode=False) is None

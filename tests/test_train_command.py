"""`python -m tune_rescon.train` and `.reproduce`: their flags, and their errors."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from tests.test_command_options import LOG_FLAGS
from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.finals import FinalsPresentation, Shares, TrainingPlan, finals_space, find_rows, row_space
from tune_rescon.reproduce import main as reproduce
from tune_rescon.reproduce import reproduce as reproduce_command
from tune_rescon.search import main as search
from tune_rescon.spaces import Resources, Space, dump_space, load_space
from tune_rescon.testing import SimulatedSearch, Simulation, SyntheticCurve
from tune_rescon.train import main, train
from tune_rescon.tuning import SearchFolder, SearchLocation, read_search
from tune_rescon.tuning.prepare import with_absolute_paths

TRAIN = {
    "--from": "NAME",
    "--preset": "NAME",
    "--resume": "N",
    "--name": "N",
    "--top": "INTEGER RANGE",
    "--trial": "N",
    "--seeds": "INTEGER RANGE",
    "--epochs": "INTEGER RANGE",
    "--budget": "TIME",
    "--image-size": "P",
    "--init-from": "FILE",
    "--dataset": "TEXT",
    "--recipe": "TEXT",
    "--storage": "DIR|URL",
    "--study": "URL",
    "--tracking-uri": "URI",
    "--data-root": "DIR",
    "--address": "ADDR",
    "--concurrent": "N",
    "--seed": "S",
    "--set": "KEY=VALUE",
    "--dry-run": "",
    "--plain": "",
}

REPRODUCE = {
    "--all": "",
    "--scale": "FLOAT RANGE",
    "--data-scale": "FLOAT RANGE",
    "--seeds": "INTEGER RANGE",
    "--images": "DIR|ZIP",
    "--storage": "DIR|URL",
    "--tracking-uri": "URI",
    "--data-root": "DIR",
    "--address": "ADDR",
    "--set": "KEY=VALUE",
    "--plain": "",
}


@pytest.mark.parametrize(
    ("command", "flags"), [(train, TRAIN), (reproduce_command, REPRODUCE)], ids=["train", "reproduce"]
)
def test_commands_have_exactly_the_expected_flags(command: click.Command, flags: dict[str, str]) -> None:
    actual = {
        option.opts[0]: "" if option.is_flag else option.metavar or option.type.name.upper()
        for option in command.params
        if isinstance(option, click.Option) and option.opts[0] not in LOG_FLAGS
    }
    assert actual == flags


@pytest.fixture(scope="module", autouse=True)
def _torch() -> None:
    """Import torch outside of the tests' time limits."""
    importlib.import_module("torch")


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A storage with one started search."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "space.yaml").write_text(dump_space(load_space("digits")))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give one of --from NAME, --preset NAME and --resume NAME."),
        (["--from", "a", "--preset", "attention56"], "Give one of --from NAME, --preset NAME"),
        (["--preset", "attention56", "--budget", "2h"], "--budget goes with --from, not with --preset."),
        (["--from", "a", "--budget", "2h", "--epochs", "3"], "--budget replaces --epochs"),
        (["--from", "first", "--trial", "0", "--top", "3"], "--trial replaces --top"),
        (["--preset", "attention56", "--trial", "0"], "--trial goes with --from, not with --preset."),
        (["--resume", "first", "--trial", "0"], "--trial goes with --from, not with --resume."),
        (["--resume", "first", "--seeds", "5"], "--seeds goes with --from and --preset, not with --resume."),
        (
            ["--resume", "first", "--epochs", "5"],
            "--epochs goes with --from and --preset, not",
        ),
        (["--resume", "first", "--top", "1"], "--top goes with --from, not with --resume."),
        (["--from", "first", "--recipe", "paper"], "--recipe goes with --preset, not with --from."),
        (["--from", "first", "--dataset", "digits"], "--dataset goes with --preset, not with --from."),
        (["--from", "first", "--trial", "-1"], "Invalid value for '--trial': -1"),
        (["--from", "first", "--concurrent", "0"], "Invalid value for '--concurrent': 0"),
        (["--from", "first", "--seed", "-1"], "Invalid value for '--seed': -1"),
        (["--from", "frist"], "--from: no search named 'frist'"),
        (["--from", "frist"], "Did you mean first?"),
        (["--resume", "first"], "--resume: must name trainings that `tune_rescon.train` has started"),
        (["--preset", "attention5"], "unknown preset 'attention5' (did you mean 'attention56'?)"),
        (["--preset", "attention56", "--recipe", "papr"], "--recipe: unknown recipe 'papr' (did you mean"),
        (
            ["--preset", "attention56", "--dataset", "cifar1"],
            "unknown dataset 'cifar1' (did you mean 'cifar1",
        ),
        (["--preset", "attention56", "--set", "budget.trials=9"], "must be at most the 3 rows of `initial`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_unsupported_request_is_reported(
    storage: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--storage", str(storage), "--dry-run"]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert [path.name for path in storage.iterdir()] == ["first"]


def test_search_resumes_trainings_as_train_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the table of the test results and finals.json, they would look like a search."""
    plan = TrainingPlan(epochs=1, seeds=2, resources=Resources(cpu=1))
    space = finals_space(
        "f", [TrialConfig(preset="cifar_attention56")], plan, dataset=DatasetConfig(name="digits")
    )
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "space.yaml").write_text(dump_space(space))
    calls: list[dict[str, Any]] = []

    def run(*_: object, **given: Any) -> int:
        calls.append(given)
        return 0

    monkeypatch.setattr("tune_rescon.reporting.run_with_display", run)
    for command in (search, main):
        assert command(["--resume", "f", "--storage", str(tmp_path), "--plain"]) == 0
    by_search, by_train = calls
    assert by_search["resume"] == by_train["resume"]
    assert by_search["show_result"] is by_train["show_result"]
    assert type(by_search["presentation"]) is type(by_train["presentation"]) is FinalsPresentation


def test_the_command_that_resumes_a_search_names_its_location(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--storage", str(storage), "--study", "sqlite:////team.db"]
    assert main(["--resume", "first", *where]) == 2
    assert f"python -m tune_rescon.search --resume first {' '.join(where)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({"FROM": "frist"}, [], "--from: no search named 'frist'"),
        ({"FROM": "first", "PRESET": "attention56"}, [], "Give one of --from NAME, --preset NAME"),
        ({"FROM": "first"}, ["--preset", "attention5"], "unknown preset 'attention5'"),
        ({"RESUME": "first", "SEEDS": "5"}, ["--from", "frist"], "--from: no search named 'frist'"),
        ({"SEEDS": "5"}, ["--resume", "first"], "--resume: must name trainings that"),
        (
            {"BUDGET": "2h"},
            ["--from", "first", "--epochs", "3"],
            "--budget replaces --epochs; give one, as",
        ),
        ({"BUDGET": "2h"}, ["--preset", "attention5", "--epochs", "3"], "unknown preset 'attention5'"),
    ],
    ids=str,
)
def test_the_source_may_be_a_variable_and_the_command_line_counts_first(
    storage: Path,
    variables: dict[str, str],
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`--preset` trained the search of TUNE_RESCON_TRAIN_FROM, and that variable alone was refused."""
    for name, value in variables.items():
        monkeypatch.setenv(f"TUNE_RESCON_TRAIN_{name}", value)
    assert main([*arguments, "--storage", str(storage), "--dry-run"]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(("arguments", "epochs"), [([], 7), (["--epochs", "8"], 8)])
def test_typed_epochs_count_before_the_variable_of_set(
    arguments: list[str],
    epochs: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUNE_RESCON_TRAIN_SET", "fidelity.min=7 fidelity.max=7 resources_per_trial.cpu=1")
    assert main(["--preset", "cifar_attention56", *arguments, "--dry-run", "--plain"]) == 0
    assert f"max: {epochs}}}" in capsys.readouterr().out


def test_a_dry_run_shows_what_would_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--preset",
        "cifar_attention56",
        "--recipe",
        "paper",
        "--seeds",
        "2",
        "--init-from",
        "w.ckpt",
    ]
    assert main([*arguments, "--dry-run", "--plain", "--set", "resources_per_trial.cpu=1"]) == 0
    output = capsys.readouterr().out
    for line in (
        "name: cifar_attention56-cifar10-paper",
        "hold_out: false",
        "trials: 2",
        "max: 205",
        "init_from: w.ckpt",
        "none: every trial trains for 205 epochs",
    ):
        assert line in output


def test_a_quoted_tilde_in_the_dataset_path_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell does not expand a quoted ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png"):
        (tmp_path / "my #1" / name).parent.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "my #1" / name)
    assert main(["--preset", "cifar_attention56", "--dataset", "~/my #1", "--dry-run", "--plain"]) == 0
    output = capsys.readouterr().out
    assert f"path: {tmp_path}/my #1" in output.replace("'", "").replace('"', "")
    assert "folder: found 2 classes; images: train 2 (a 1, b 1), val 0, test 1" in output


@pytest.fixture(scope="module")
def search_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with one search of four trials whose driver ended after nine epochs."""
    root = tmp_path_factory.mktemp("storage")
    space = load_space("digits", ["initial=[]", "budget.trials=4", "sampler.type=random"])
    search = SimulatedSearch(space, folder=SearchFolder(storage=root, name="a"))
    Simulation(lambda _: SyntheticCurve(limit=0.5), workers=4).drive(search.policy(), reports=9)
    return root


def test_unfinished_trials_can_be_selected_by_number(
    search_storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No trial has finished, so that the best one cannot be trained."""
    arguments = ["--from", "a", "--storage", str(search_storage), "--seeds", "2", "--dry-run", "--plain"]
    assert main(arguments) == 2
    assert "must have a trial that reached its last epoch" in capsys.readouterr().err
    assert main([*arguments, "--trial", "3", "--trial", "1"]) == 0
    output = capsys.readouterr().out
    assert "name: a-final" in output
    assert "trial_0003, trial_0001 of the search a" in output
    trials = read_search(SearchLocation(storage=search_storage), "a").trials
    rates = re.findall(r"^- \{.*learning_rate: ([\d.e-]+)", output, re.MULTILINE)
    assert [float(rate) for rate in rates] == [trials[n].parameters["learning_rate"] for n in (3, 1, 3, 1)]


def test_the_image_limit_of_the_search_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise the finals of a search on a subset would be taken for trainings on all images."""
    space = load_space(
        "digits", ["dataset.limit=300", "budget.trials=4", "initial=[]", "sampler.type=random"]
    )
    search = SimulatedSearch(space, folder=SearchFolder(storage=tmp_path, name="a"))
    Simulation(lambda _: SyntheticCurve(limit=0.5)).drive(search.policy())
    arguments = ["--from", "a", "--storage", str(tmp_path), "--dry-run", "--plain"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "at most 300 images of each part (training, validation, test) are used" in output
    assert "all training images" not in output
    assert main([*arguments, "--set", "dataset.limit=null"]) == 0
    output = capsys.readouterr().out
    assert "limit: null" in output
    assert "images of each part" not in output


@pytest.mark.parametrize(("given", "image_size", "stored"), [(512, 128, "512"), (64, 128, "128")])
def test_another_image_size_keeps_larger_stored_squares(
    given: int, image_size: int, stored: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png", "test/a/1.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (600, 600)).save(tmp_path / "photos" / name)
    images = ["dataset.name=folder", f"dataset.path={tmp_path}/photos", f"dataset.store_size={given}"]
    trials = ["budget.trials=4", "initial=[]", "sampler.type=random"]
    space = load_space("digits", [*images, *trials])
    search = SimulatedSearch(space, folder=SearchFolder(storage=tmp_path, name="a"))
    Simulation(lambda _: SyntheticCurve(limit=0.5)).drive(search.policy())
    arguments = ["--from", "a", "--storage", str(tmp_path), "--image-size", str(image_size)]
    assert main([*arguments, "--dry-run", "--plain"]) == 0
    assert f"squares of {stored} pixels" in capsys.readouterr().out


def test_configurations_that_another_image_size_makes_the_same_count_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are trained once, so that the hours of `--budget` last for three times the epochs."""
    sizes = "parameters={image_size: {type: categorical, choices: [16, 32, 48]}}"
    changes = [sizes, "initial=[]", "sampler.type=grid", "budget.trials=3", "scheduler={type: none}"]
    space = load_space("digits", ["fixed={learning_rate: 0.1}", *changes])
    search = SimulatedSearch(space, folder=SearchFolder(storage=tmp_path, name="a"))
    Simulation(lambda _: SyntheticCurve(limit=0.5)).drive(search.policy())
    arguments = ["--from", "a", "--storage", str(tmp_path), "--seeds", "2", "--epochs", "9", "--dry-run"]
    assert main([*arguments, "--plain", "--image-size", "32"]) == 0
    output = capsys.readouterr().out
    assert "2 trainings of 9 epochs" in output
    assert "trials: 2" in output


def test_an_image_size_that_makes_another_network_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to 64 pixels `layout: auto` is the paper's network for CIFAR, then that for ImageNet."""
    changes = ["fixed.layout=auto", "initial=[]", "budget.trials=4", "sampler.type=random"]
    search = SimulatedSearch(load_space("digits", changes), folder=SearchFolder(storage=tmp_path, name="a"))
    Simulation(lambda _: SyntheticCurve(limit=0.5)).drive(search.policy())
    arguments = ["--from", "a", "--storage", str(tmp_path), "--top", "1", "--dry-run", "--plain"]
    message = "These networks have the layout imagenet, and those of the search have cifar"
    for more, is_said in (
        (["--image-size", "64"], False),
        (["--image-size", "96"], True),
        (["--image-size", "96", "--set", "layout=cifar"], False),
    ):
        assert main([*arguments, *more]) == 0
        output = capsys.readouterr().out
        assert (message in output) == is_said
        assert ("To keep the layout: `--set layout=cifar`" in output) == is_said


def test_a_trial_that_the_search_does_not_have_is_refused(
    search_storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--from", "a", "--storage", str(search_storage), "--trial", "4", "--dry-run"]) == 2
    output = capsys.readouterr().err.replace("\n", " ")
    assert "--trial: must be the number of a trial of a, but got 4. Its trials are 0 to 3." in output


def test_images_for_rows_of_two_datasets_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce(["rescon", "--images", "photos.zip"]) == 2
    assert "--images: all rows must be of one dataset" in capsys.readouterr().err


@pytest.mark.parametrize("images", ["s3://bucket/cifar.zip", "~/cifar #1"])
def test_images_of_rows_may_be_at_a_url_or_in_the_home_directory(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found: list[str | None] = []

    def run(space: Space, *_: object, **__: object) -> int:
        found.append(with_absolute_paths(space).dataset.path)
        return 0

    monkeypatch.setattr("tune_rescon.finals.check_images", lambda *_: None)  # would fetch the archive
    monkeypatch.setattr("tune_rescon.reporting.run_with_display", run)
    arguments = ["rescon-cifar10-92-32", "--images", images, "--storage", str(tmp_path / "runs"), "--plain"]
    assert reproduce(arguments) == 0
    assert found == [images.replace("~", str(tmp_path))]


def test_images_that_are_not_those_of_the_row_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their values would stand beside the published ones without a word."""
    monkeypatch.setattr("tune_rescon.reporting.run_with_display", lambda *_, **__: 0)
    folder = tmp_path / "photos"
    row = ["rescon-cifar10-92-32", "--images", str(folder), "--storage", str(tmp_path / "runs"), "--plain"]
    for number in range(10):
        for part in ("train", "test"):
            (folder / part / f"photo{number}").mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(folder / part / f"photo{number}" / "1.png")
    assert reproduce(row) == 0
    output = capsys.readouterr().out.replace("\n", " ")
    assert (
        "These images are not those of cifar10: 10 training images and not 50,000;"
        " 10 test images and not 10,000;"
        " the classes photo0, photo1, photo2, ... and not airplane, automobile, bird, ..."
    ) in output
    shutil.rmtree(folder / "train" / "photo9")
    shutil.rmtree(folder / "test" / "photo9")
    assert reproduce(row) == 2
    message = "--images: must be the images of cifar10, which have 10 classes, but got 9 classes"
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_row_beside_all_rows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All 29 rows were trained, also if `--all` came from its variable."""
    monkeypatch.setattr("tune_rescon.reporting.run_with_display", lambda *_, **__: 0)
    monkeypatch.setenv("TUNE_RESCON_REPRODUCE_ALL", "1")
    assert reproduce(["attention92-noise70", "--storage", str(tmp_path), "--plain"]) == 2
    assert "--all trains every row; give it without ROW and TABLE." in capsys.readouterr().err


def test_without_a_row_all_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce(["--plain"]) == 0
    assert "attention92-noise70" in capsys.readouterr().out
    assert reproduce(["attention92-noise71"]) == 2
    assert "did you mean 'attention92-noise" in capsys.readouterr().err


@pytest.mark.timeout(20)  # creates a study's database
def test_the_other_searches_of_the_storage_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of a storage reads all of its studies, and each row would need one."""
    monkeypatch.setattr("tune_rescon.reporting.run_with_display", lambda *_, **__: 0)
    monkeypatch.setattr("tune_rescon.tuning.list_searches", None)
    row, shares = "rescon-cifar10-92-32", Shares(schedule=0.1, images=0.1)
    name = f"reproduce-{row}{shares.suffix}"
    space = row_space(find_rows([row])[0], name=name, shares=shares, seeds=1, resources=Resources(cpu=1))
    search = SimulatedSearch(space, folder=SearchFolder(storage=tmp_path, name=name))
    Simulation(lambda _: SyntheticCurve(limit=0.9)).drive(search.policy())
    other_row = "rescon-cifar10-56-224"
    assert reproduce([row, other_row, "--scale", "0.1", "--storage", str(tmp_path), "--plain"]) == 0


@pytest.mark.timeout(20)  # creates a study's database
def test_a_trained_row_is_not_reused_with_other_images_or_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise its values would be reported for the requested images and settings."""
    row, shares = "rescon-cifar10-92-32", Shares(schedule=0.1, images=0.1)
    name = f"reproduce-{row}{shares.suffix}"
    space = row_space(find_rows([row])[0], name=name, shares=shares, seeds=2, resources=Resources(cpu=1))
    search = SimulatedSearch(space, folder=SearchFolder(storage=tmp_path, name=name))
    Simulation(lambda _: SyntheticCurve(limit=0.9)).drive(search.policy())
    arguments = [row, "--scale", "0.1", "--storage", str(tmp_path), "--plain"]
    assert reproduce(arguments) == reproduce([*arguments, "--seeds", "2"]) == 0
    capsys.readouterr()
    assert reproduce([*arguments, "--set", "fixed.nesterov=false"]) == 2
    assert "fixed.nesterov: - -> false" in capsys.readouterr().err
    assert reproduce([*arguments, "--images", "photos.zip"]) == 2
    assert "dataset.name: cifar10 -> folder" in capsys.readouterr().err

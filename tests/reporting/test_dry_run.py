"""The dry run in a separate process: its text, its duration, and the libraries that it does not import."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from tune_rescon.config import TrialConfig
from tune_rescon.errors import UserError
from tune_rescon.models import describe_network, network_cost
from tune_rescon.reporting.dry_run import (
    fit_to_hours,
    fitting_budget,
    print_dry_run,
    speed_message,
    stopping_line,
)
from tune_rescon.reporting.formatting import format_number
from tune_rescon.search import main
from tune_rescon.spaces import Space, list_spaces, load_space, preview
from tune_rescon.tuning import possible_rungs

#: Runs a dry run of each given space; prints the texts, the processor times and the imported modules.
DRIVER = """
import contextlib, io, json, sys, time

start = time.process_time()
from tune_rescon.search import main

runs = {}
for name, *settings in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["--space", name, "--dry-run", *settings])
    runs[name] = {"code": code, "text": out.getvalue(), "seconds": time.process_time() - start}
    start = time.process_time()
print(json.dumps({"runs": runs, "modules": sorted(sys.modules)}))
"""

#: A space with networks of timm, which must be built before their cost can be counted.
EXTERNAL_NETWORKS = "attention_vs_resnet"

#: Limit of the processor time of the first dry run. Measured: 1.0 to 1.3 s, imports included.
MAX_SECONDS = 5.0


@dataclass(frozen=True)
class DryRuns:
    runs: dict[str, dict[str, object]]
    modules: list[str]

    def text(self, name: str) -> str:
        return str(self.runs[name]["text"])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        for index in range(8):
            Image.new("RGB", (40, 30)).save(folder / label / f"{index}.png")
    (folder / "notes.txt").write_text("of the photographer")
    return folder


@pytest.fixture(scope="module")
def dry_runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> DryRuns:
    spaces = [
        [name] if name != "folder" else [name, "--set", f"dataset.path={images}"]
        for name in list_spaces()
        if name != EXTERNAL_NETWORKS
    ]
    spaces.sort(key=lambda space: space[0] != "digits")
    return _dry_runs(spaces, tmp_path_factory.mktemp("empty"))


def _dry_runs(spaces: list[list[str]], folder: Path) -> DryRuns:
    process = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(spaces)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=dict(os.environ),
    )
    assert process.returncode == 0, process.stderr
    return DryRuns(**json.loads(process.stdout))


@pytest.mark.parametrize("name", [name for name in list_spaces() if name != EXTERNAL_NETWORKS])
def test_every_shipped_space_is_shown_with_its_rungs_and_costs(
    name: str, dry_runs: DryRuns, images: Path
) -> None:
    check_shown(name, dry_runs, images)


@pytest.mark.torch
def test_external_networks_are_shown_with_their_cost(images: Path, tmp_path: Path) -> None:
    dry_run = _dry_runs([[EXTERNAL_NETWORKS]], tmp_path)
    check_shown(EXTERNAL_NETWORKS, dry_run, images)
    assert re.search(r"│ +attention │", dry_run.text(EXTERNAL_NETWORKS))
    assert {"torch", "timm"} <= set(dry_run.modules)
    assert not {"ray", "mlflow", "pytorch_lightning"} & set(dry_run.modules)


@pytest.mark.torch
def test_an_unknown_external_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameter = "parameters={network: {type: categorical, choices: [null, timm/resnet81]}}"
    settings = [parameter, "initial=[]", "fixed={image_size: 32}"]
    arguments = ["--space", "digits", "--data-root", str(tmp_path), "--dry-run"]
    assert main([*arguments, *(word for setting in settings for word in ("--set", setting))]) == 2
    assert "network: must be a network of timm" in " ".join(capsys.readouterr().err.split())


def check_shown(name: str, dry_runs: DryRuns, images: Path) -> None:
    assert dry_runs.runs[name]["code"] == 0
    text = dry_runs.text(name)
    space = load_space(name, [f"dataset.path={images}"] if name == "folder" else [])
    assert f"rungs (epochs): {', '.join(map(str, possible_rungs(space)))}\n" in text
    assert "worst-case PMACs" in text
    assert f"\n{space.scheduler.type}" in text
    assert ("a Pareto front: " in text) == bool(space.metric.against)
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert len(rows) == min(8, space.budget.trials)
    for row in rows:
        *_, params, gmacs, pmacs = (cell.strip() for cell in row.strip("│").split("│"))
        assert min(map(float, (params, gmacs, pmacs))) > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], "asha, stop: a trial ends at a rung where it is not among the best 1 in 3 there"),
        (
            ["scheduler.variant=promote", "scheduler.reduction_factor=2", "scheduler.group_by=depth"],
            "asha, promote: a trial waits at each rung until it is among the best 1 in 2 there of its depth",
        ),
        (["scheduler.type=median", "fidelity.min=2"], "median: from epoch 2 on a trial ends when it falls"),
        (["scheduler.type=none"], "none: every trial trains for 9 epochs"),
    ],
    ids=["asha, stop", "asha, promote", "median", "none"],
)
def test_the_scheduler_is_shown(settings: list[str], words: str) -> None:
    assert stopping_line(load_space("digits", settings)).startswith(words)


def test_the_shown_space_can_be_loaded(dry_runs: DryRuns, tmp_path: Path) -> None:
    text, _, _ = dry_runs.text("digits").partition("rungs (epochs):")
    (tmp_path / "shown.yaml").write_text(text)
    assert load_space(str(tmp_path / "shown.yaml")) == load_space("digits")


def test_the_images_of_a_folder_are_counted(dry_runs: DryRuns) -> None:
    text = dry_runs.text("folder")
    assert "folder: found 2 classes; images: train 16 (cat 8, dog 8), val 0, test 0\n" in text
    assert "folder: left out, files that are no images: 1 (notes.txt)\n" in text


def test_first_dry_run_takes_under_five_seconds(dry_runs: DryRuns) -> None:
    assert float(str(dry_runs.runs["digits"]["seconds"])) < MAX_SECONDS


@pytest.mark.parametrize("heavy", ["torch", "torchvision", "pytorch_lightning", "ray", "mlflow", "plotly"])
def test_dry_run_imports_no_heavy_library(heavy: str, dry_runs: DryRuns) -> None:
    assert heavy not in dry_runs.modules


@pytest.mark.torch
def test_measuring_shows_the_training_time_on_this_machine(tmp_path: Path) -> None:
    small = ["fixed.width=0.125", "fixed.batch_size=8", "budget.trials=4", "parameters.depth.choices=[56]"]
    two_samples = ["parameters.drop_path={type: float, low: 0, high: 0.1}", "initial=[]"]
    space = load_space("digits", [*small, *two_samples])
    console = Console(file=io.StringIO(), width=200)
    print_dry_run(space, console, data_root=tmp_path, measure=True)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count("measuring network") == 1, "one network, whatever its learning rate"
    assert "worst-case PMACs" not in text
    assert "time here" in text
    assert re.search(r"an epoch takes \d+\.\d s; 36 epochs, [12] trials at once, take at most ", text)


def test_class_names_are_shown_literally(tmp_path: Path) -> None:
    out = io.StringIO()
    space = load_space("digits", ["metric={name: 'val_f1/[/b]', mode: max, against: gmacs}"])
    with pytest.raises(UserError, match="unknown class"):
        print_dry_run(space, Console(file=out), data_root=tmp_path)
    assert "a Pareto front: val_f1/[/b] against gmacs" in out.getvalue()


def test_search_time_is_estimated_from_epochs_and_slots() -> None:
    space = load_space("digits", ["budget.trials=10", "fidelity.max=9"])
    assert speed_message(space, [2.0, 4.0], slots=3) == (
        "measured on this machine: an epoch takes 2.0 s to 4.0 s, 3.0 s in the mean of these samples;"
        # Four rounds of 27 seconds: the tenth trial runs alone.
        " 90 epochs, 3 trials at once, take at most 1 min 48 s"
    )
    budget_in_hours = load_space("digits", ["budget.hours=0.5"])
    assert speed_message(budget_in_hours, [9.0], slots=2) == (
        "measured on this machine: an epoch takes 9.0 s; 0.5 hours, 2 trials at once, are about 400 epochs"
    )


@pytest.mark.parametrize(
    ("hours", "seconds", "longest", "trials"),
    [
        # 600 s of 2 trials at once are 300 epochs of 4 s: twelve times 25.
        (1 / 6, 4.0, 25, 120),
        (8.0, 4.0, 81, 1777),
        (1 / 6, 600.0, 3, 20),
    ],
    ids=["twelve trainings", "no longer than in the space", "at least the warm-up"],
)
def test_a_fitting_budget_gives_whole_trainings(
    hours: float, seconds: float, longest: int, trials: int
) -> None:
    settings_before = [
        "budget.trials=20",
        "fixed.warmup_epochs=3",
        "fidelity.min=3",
        "scheduler.group_by=depth",
    ]
    space = load_space("att92", settings_before)
    assert space.fidelity.max == 81
    settings = fitting_budget(space, hours, epoch_seconds=seconds, slots=2)
    fitted_space = load_space("att92", [*settings_before, *settings])
    assert (fitted_space.fidelity.max, fitted_space.budget.trials) == (longest, trials)
    assert fitted_space.budget.hours == pytest.approx(hours, rel=1e-3)
    assert fitted_space.scheduler.type == "auto"
    assert fitted_space.scheduler.group_by == "depth"


def test_quick_measures_the_budget_and_explicit_settings_override_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(_space: object, samples: list[object], *_: object, **__: object) -> list[float]:
        return [2.0, 4.0, *[3.0] * (len(samples) - 2)]

    monkeypatch.setattr("tune_rescon.reporting.dry_run.measure_epochs", measure)
    arguments = ["--space", "digits", "--dry-run", "--set", "resources_per_trial={cpu: 1, gpu: 0}"]
    assert main([*arguments, "--quick", "--trials", "7", "--concurrent", "1"]) == 0
    output = capsys.readouterr().out
    assert "An epoch takes 3.0 s on this machine in the mean of 6 trials" in output
    assert re.search(r"budget: \{trials: 7, concurrent: 1, hours: 0.16", output)
    for bad_options, words in {
        ("--quick", "--quality", "best"): "Give one of --quick and --quality.",
        ("--quality", "good", "--address", "auto"): "--quality measures this machine",
        ("--quality", "better"): "'better' is not one of 'good', 'best'",
    }.items():
        assert main([*arguments, *bad_options]) == 2
        assert words in capsys.readouterr().err
    assert main(["--resume", "s", "--quick", "--dry-run"]) == 2


def test_a_network_that_keeps_to_narrow_constraints_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a sample, `--measure` would have no network to time."""
    space = load_space("digits", ["initial=[]", "constraints={params_m: {max: 100}}"])
    rare = preview(space, 700)[-1]["learning_rate"]
    monkeypatch.setattr(
        "tune_rescon.reporting.dry_run.violation_of",
        lambda _: lambda values: None if values["learning_rate"] == rare else "too large",
    )
    out = io.StringIO()
    print_dry_run(space, Console(file=out, width=200), data_root=tmp_path)
    assert format_number(rare) in out.getvalue().partition("First samples")[2]


def test_hours_are_fitted_to_networks_that_keep_to_the_constraints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--quick` must not time networks that the search does not train."""
    measured: list[float] = []

    def measure(_: Space, config: TrialConfig, __: object) -> float:
        spec = describe_network(config, classes=10, in_channels=1)
        measured.append(network_cost(spec).parameters / 1e6)
        return 0.001

    monkeypatch.setattr("tune_rescon.reporting.dry_run._step_seconds", measure)
    settings = ["initial=[]", "parameters.width={type: float, low: 0.25, high: 2.0}", "fixed={layout: cifar}"]
    narrow = load_space("digits", [*settings, "constraints={params_m: {max: 1}}"])
    fit_to_hours(narrow, 0.1, data_root=tmp_path, progress=lambda _: None)
    assert measured
    assert max(measured) <= 1

"""``--resume-or-start``: the same command finishes a search that was interrupted at any stage.

The files of a stage are a copy of a running search's storage, as after a power cut.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pytest

from tests.without_ray import search_without_ray
from tune_rescon.errors import LeaseError, SpaceError
from tune_rescon.search import main
from tune_rescon.spaces import load_space
from tune_rescon.testing import learn_nothing
from tune_rescon.tuning import RunOptions, SearchState, StudyRecord, StudyResult, run_search
from tune_rescon.tuning.driver import this_driver
from tune_rescon.tuning.lease import LeaseKeeper
from tune_rescon.tuning.ray.session import RaySession

pytestmark = [pytest.mark.server]

SPACE = ["budget.trials=2", "fidelity.max=1", "sampler.type=random", "initial=[]", "scheduler.type=none"]

#: The stages of a search in order. The files of a stage are copied after the first call of its function.
STAGES = {
    "the directory": "tune_rescon.tuning.folder.SearchFolder.create",
    "the database": "tune_rescon.tuning.study.open_database",
    "the study": "tune_rescon.tuning.study.create_study",
    "the lease": "tune_rescon.tuning.lease.LeaseKeeper.take",
    "the version of the space": "tune_rescon.tuning.search.record_version",
    "the identity": "tune_rescon.tuning.search_run.ensure_identity",
    "the images": "tune_rescon.tuning.search_run.record_images",
    "space.yaml": "tune_rescon.tuning.search_run.write_atomically",
    "the first trial": "tune_rescon.tuning.study.StudyRecord.open",
    "the first epoch": "tune_rescon.tuning.study.StudyRecord.report",
}

#: The stages at which the search has started.
AFTER_START = ("space.yaml", "the first trial", "the first epoch")

#: Above the largest process id on Linux.
NO_PROCESS = 2**22 + 1


def run(options: RunOptions, *overrides: str) -> StudyResult:
    return run_search(load_space("digits", [*SPACE, *overrides]), options, trainable=learn_nothing)


@contextmanager
def copy_at_each_stage(root: Path) -> Iterator[Callable[[str], Path]]:
    """Copy ``root/live`` at each stage within the block; yield a function that returns a stage's copy."""

    def copy_of(stage: str) -> Path:
        return root / stage.replace(" ", "_")

    def copy_after(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            done = function(*args, **kwargs)
            if not copy_of(stage).exists():
                shutil.copytree(root / "live", copy_of(stage))
            return done

        return call

    with pytest.MonkeyPatch.context() as patch:
        # The lease in the copies belongs to a process that does not exist.
        dead = dataclasses.replace(this_driver(), pid=NO_PROCESS)
        patch.setattr("tune_rescon.tuning.lease.this_driver", lambda: dead)
        for stage, name in STAGES.items():
            patch.setattr(name, copy_after(stage, resolve_name(name)))
        yield copy_of


@pytest.fixture(scope="module")
def interrupted_search(
    tmp_path_factory: pytest.TempPathFactory, cache_root: Path
) -> Callable[[str, Path, bool], RunOptions]:
    """Makes the storage of a search that was interrupted after a stage, with its own or a shared study."""
    copies: dict[bool, Callable[[str], Path]] = {}

    def options(storage: Path, shared: bool) -> RunOptions:
        return RunOptions(
            name="s",
            resume_or_start=True,
            storage=storage / "runs",
            study_url=f"sqlite:///{storage}/studies.db" if shared else None,
            data_root=storage / "data",
            cache_root=cache_root,
            takeover_seconds=5,
        )

    def make(stage: str, storage: Path, shared: bool) -> RunOptions:
        if shared not in copies:
            root = tmp_path_factory.mktemp("cut")
            (root / "live" / "runs").mkdir(parents=True)
            with search_without_ray(mlflow=False), copy_at_each_stage(root) as copy_of:
                run(options(root / "live", shared))
            copies[shared] = copy_of
        shutil.copytree(copies[shared](stage), storage, dirs_exist_ok=True)
        return options(storage, shared)

    return make


@pytest.mark.usefixtures("without_ray_and_mlflow")
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("shared", [False, True])
def test_the_same_command_finishes_a_search_cut_off_at_any_stage(
    stage: str,
    shared: bool,
    interrupted_search: Callable[[str, Path, bool], RunOptions],
    tmp_path: Path,
    progress: list[str],
) -> None:
    options = interrupted_search(stage, tmp_path, shared)
    result = run(options)
    assert result.state is SearchState.FINISHED
    assert [trial.number for trial in result.trials] == [0, 1]
    assert [len(trial.values) for trial in result.trials] == [1, 1]
    assert (result.folder / "space.yaml").is_file()
    assert ("Resuming s" if stage in AFTER_START else "Starting s") in progress


@pytest.mark.usefixtures("without_ray_and_mlflow")
def test_a_study_without_trials_adopts_the_new_space(
    interrupted_search: Callable[[str, Path, bool], RunOptions], tmp_path: Path
) -> None:
    """The driver died before the first trial, and the space file has changed since."""
    options = interrupted_search("the version of the space", tmp_path, True)
    result = run(options, "fixed.width=0.125")
    assert result.state is SearchState.FINISHED
    assert result.space.fixed["width"] == 0.125
    assert result.space_history == ()


@pytest.mark.usefixtures("without_ray_and_mlflow")
def test_a_finished_search_runs_again_only_with_a_larger_budget(
    interrupted_search: Callable[[str, Path, bool], RunOptions],
    tmp_path: Path,
    progress: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = interrupted_search("the directory", tmp_path, False)
    first = run(options)

    def refuse(address: str | None) -> RaySession:
        raise AssertionError(f"Ray was started at {address}")

    with monkeypatch.context() as patch:
        patch.setattr("tune_rescon.tuning.search.ray_session", refuse)
        results: list[StudyResult] = []
        repeated = run_search(
            load_space("digits", SPACE), options, trainable=learn_nothing, on_result=results.append
        )
        assert repeated.trials == first.trials
        assert results == [repeated]
        assert "s is finished: 2 of 2 trials have run, and nothing is left to do" in progress
        with pytest.raises(SpaceError, match=r"^--resume-or-start s: .*fidelity\.max is 1 and would be"):
            run(options, "fidelity.max=3")
    extended = run(options, "budget.trials=3")
    assert extended.trials[:2] == first.trials
    assert len(extended.trials) == 3


def test_the_command_exits_with_75_while_another_driver_holds_the_lease(
    interrupted_search: Callable[[str, Path, bool], RunOptions],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = interrupted_search("space.yaml", tmp_path, False)

    def refuse(keeper: LeaseKeeper) -> None:
        raise LeaseError(f"a search must have one driver at a time ({keeper.elapsed_seconds:.0f})")

    monkeypatch.setattr(LeaseKeeper, "take", refuse)
    pauses: list[float] = []
    ticks = itertools.count(0.0, step=options.takeover_seconds)
    clock = SimpleNamespace(monotonic=ticks.__next__, sleep=pauses.append)
    monkeypatch.setattr("tune_rescon.tuning.search_storage.time", clock)
    arguments = ["--space", "digits", "--resume-or-start", "s", "--storage", str(options.storage), "--plain"]
    assert main(arguments) == 75
    assert pauses, "the command did not wait"
    assert "Error: a search must have one driver at a time" in capsys.readouterr().err


def test_trials_of_another_storage_are_not_restarted(
    interrupted_search: Callable[[str, Path, bool], RunOptions], tmp_path: Path
) -> None:
    options = interrupted_search("the first epoch", tmp_path, True)
    elsewhere = dataclasses.replace(options, storage=tmp_path / "elsewhere")
    with search_without_ray(mlflow=False), pytest.raises(Exception, match="the --storage of its folder"):
        run(elsewhere)
    assert options.study_url is not None
    assert len(StudyRecord.load(options.study_url, "s", metric="val_accuracy")) == 1

"""``--resume-or-start``: whole searches that were cut off at a moment, and the same command again.

The files of a moment are those of a real search: a copy of its storage, as a power cut leaves it.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
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

#: The moments after which a driver may die, in their order: after this call its files are copied.
MOMENTS = {
    "the directory": "tune_rescon.tuning.folder.SearchFolder.create",
    "the database": "tune_rescon.tuning.study.open_database",
    "the study": "tune_rescon.tuning.study.create_study",
    "the lease": "tune_rescon.tuning.lease.LeaseKeeper.take",
    "the version of the space": "tune_rescon.tuning.search.record_version",
    "the identity": "tune_rescon.tuning.search_run.ensure_identity",
    "the images": "tune_rescon.tuning.search_run.record_images",
    "space.yaml": "tune_rescon.tuning.search_run.write_atomically",
    "the first trial": "tune_rescon.tuning.study.StudyRecord.open",
    "its epoch": "tune_rescon.tuning.study.StudyRecord.report",
}

#: From here on the search has begun.
BEGUN = ("space.yaml", "the first trial", "its epoch")


#: Above the largest number that Linux gives a process.
NO_PROCESS = 2**22 + 1


def run(options: RunOptions, *overrides: str) -> StudyResult:
    return run_search(load_space("digits", [*SPACE, *overrides]), options, trainable=learn_nothing)


@contextmanager
def copies(root: Path) -> Iterator[Callable[[str], Path]]:
    """Within it the first call of each moment copies ``root/live``; yields where a moment's copy is."""

    def place(moment: str) -> Path:
        return root / moment.replace(" ", "_")

    def after(moment: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            done = real(*args, **kwargs)
            if not place(moment).exists():
                shutil.copytree(root / "live", place(moment))
            return done

        return call

    with pytest.MonkeyPatch.context() as patch:
        # A process that has ended since holds the lease that is copied.
        dead = dataclasses.replace(this_driver(), pid=NO_PROCESS)
        patch.setattr("tune_rescon.tuning.lease.this_driver", lambda: dead)
        for moment, name in MOMENTS.items():
            module, _, function = name.rpartition(".")
            patch.setattr(name, after(moment, _attribute(module, function)))
        yield place


def _attribute(owner: str, name: str) -> Any:
    from pkgutil import resolve_name

    return getattr(resolve_name(owner), name)


@pytest.fixture(scope="module")
def cut(
    tmp_path_factory: pytest.TempPathFactory, cache_root: Path, empty_store: Path
) -> Callable[[str, Path, bool], RunOptions]:
    """Makes the storage of a search that was cut off after a moment; its study may be in another database."""
    made: dict[bool, Callable[[str], Path]] = {}

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

    def cut(moment: str, storage: Path, shared: bool) -> RunOptions:
        if shared not in made:
            root = tmp_path_factory.mktemp("cut")
            (root / "live" / "runs").mkdir(parents=True)
            shutil.copyfile(empty_store, root / "live" / "runs" / "mlflow.db")
            with search_without_ray(), copies(root) as place:
                run(options(root / "live", shared))
            made[shared] = place
        shutil.copytree(made[shared](moment), storage, dirs_exist_ok=True)
        return options(storage, shared)

    return cut


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("shared", [False, True])
def test_the_same_command_finishes_a_search_cut_off_at_any_stage(
    moment: str,
    shared: bool,
    cut: Callable[[str, Path, bool], RunOptions],
    tmp_path: Path,
    progress: list[str],
) -> None:
    options = cut(moment, tmp_path, shared)
    result = run(options)
    assert result.state is SearchState.FINISHED
    assert [trial.number for trial in result.trials] == [0, 1]
    assert [len(trial.values) for trial in result.trials] == [1, 1]
    assert (result.folder / "space.yaml").is_file()
    assert ("Resuming s" if moment in BEGUN else "Starting s") in progress


@pytest.mark.usefixtures("without_ray")
def test_a_study_without_trials_adopts_the_new_space(
    cut: Callable[[str, Path, bool], RunOptions], tmp_path: Path
) -> None:
    """Its driver died before the first trial, and the space file was edited since."""
    options = cut("the version of the space", tmp_path, True)
    result = run(options, "fixed.width=0.125")
    assert result.state is SearchState.FINISHED
    assert result.space.fixed["width"] == 0.125
    assert result.space_history == ()


@pytest.mark.usefixtures("without_ray")
def test_a_finished_search_runs_again_only_with_a_larger_budget(
    cut: Callable[[str, Path, bool], RunOptions],
    tmp_path: Path,
    progress: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = cut("the directory", tmp_path, False)
    first = run(options)

    def refuse(address: str | None) -> RaySession:
        raise AssertionError(f"Ray is started, {address}")

    with monkeypatch.context() as patch:
        patch.setattr("tune_rescon.tuning.search.ray_session", refuse)
        shown: list[StudyResult] = []
        again = run_search(
            load_space("digits", SPACE), options, trainable=learn_nothing, on_result=shown.append
        )
        assert again.trials == first.trials
        assert shown == [again]
        assert "s is finished: 2 of 2 trials have run, and nothing is left to do" in progress
        with pytest.raises(SpaceError, match=r"^--resume-or-start s: .*fidelity\.max is 1 and would be"):
            run(options, "fidelity.max=3")
    more = run(options, "budget.trials=3")
    assert more.trials[:2] == first.trials
    assert len(more.trials) == 3


def test_the_command_exits_with_75_while_another_driver_holds_the_lease(
    cut: Callable[[str, Path, bool], RunOptions],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = cut("space.yaml", tmp_path, False)

    def refuse(keeper: LeaseKeeper) -> None:
        raise LeaseError(f"a search must have one driver at a time ({keeper.elapsed_seconds:.0f})")

    monkeypatch.setattr(LeaseKeeper, "take", refuse)
    slept: list[float] = []
    ticks = itertools.count(0.0, step=options.takeover_seconds)
    clock = SimpleNamespace(monotonic=ticks.__next__, sleep=slept.append)
    monkeypatch.setattr("tune_rescon.tuning.search_storage.time", clock)
    words = ["--space", "digits", "--resume-or-start", "s", "--storage", str(options.storage), "--plain"]
    assert main(words) == 75
    assert slept, "it has waited"
    assert "Error: a search must have one driver at a time" in capsys.readouterr().err


def test_trials_of_another_storage_are_not_restarted(
    cut: Callable[[str, Path, bool], RunOptions], tmp_path: Path
) -> None:
    options = cut("its epoch", tmp_path, True)
    elsewhere = dataclasses.replace(options, storage=tmp_path / "elsewhere")
    with search_without_ray(), pytest.raises(Exception, match="the --storage of its folder"):
        run(elsewhere)
    assert options.study_url is not None
    assert len(StudyRecord.load(options.study_url, "s", metric="val_accuracy")) == 1

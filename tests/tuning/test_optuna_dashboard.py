"""A real `optuna-dashboard` opens our study and shows what the record contains."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import reserved_port, wait_until
from tune_rescon.config import TrialState
from tune_rescon.spaces import load_space
from tune_rescon.testing import LANDSCAPES, Assignment, SimulatedSearch, Simulation, SyntheticCurve
from tune_rescon.tuning import SearchFolder, StudyRecord, TrialRecord

pytestmark = pytest.mark.server

#: The dashboard's names of our trial states.
STATES = {
    TrialState.FINISHED: "Complete",
    TrialState.STOPPED: "Pruned",
    TrialState.FAILED: "Fail",
}


def curve(trial: Assignment) -> SyntheticCurve:
    """A curve of the landscape. The first trial, which cannot be stopped at a rung, crashes."""
    synthetic_curve = LANDSCAPES["monotone"].curve(trial.number, trial.parameters)
    return dataclasses.replace(synthetic_curve, crashes_at=2) if trial.number == 0 else synthetic_curve


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SearchFolder:
    """An ended search with one failed trial."""
    space = load_space("att92", ["initial=[]", "budget.trials=9", "fidelity.max=9", "sampler.type=random"])
    search_folder = SearchFolder(storage=tmp_path_factory.mktemp("storage"), name="first")
    Simulation(curve).drive(SimulatedSearch(space, folder=search_folder).policy())
    return search_folder


@pytest.fixture(scope="module")
def dashboard(folder: SearchFolder) -> Iterator[str]:
    """The URL of a dashboard that runs as its command."""
    with reserved_port() as port:
        program = str(Path(sys.executable).with_name("optuna-dashboard"))
        command = [program, folder.study_url, "--port", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"

        def responds() -> bool:
            assert process.poll() is None, f"it ended with code {process.returncode}"
            with suppress(OSError), urllib.request.urlopen(f"{url}/api/meta", timeout=5):
                return True
            return False

        try:
            wait_until(responds, every=0.1)
            yield url
        finally:
            process.kill()
            process.wait()


def read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)


def shown_values(shown_trial: dict[str, Any]) -> dict[str, Any]:
    """The values that the dashboard shows of a trial."""
    return {
        "number": shown_trial["number"],
        "state": shown_trial["state"],
        "values": [(point["step"], point["value"]) for point in shown_trial["intermediate_values"]],
        "parameters": {param["name"]: param["param_external_value"] for param in shown_trial["params"]},
        "ours": {attribute["key"]: attribute["value"] for attribute in shown_trial["user_attrs"]}["state"],
    }


def recorded_values(trial: TrialRecord) -> dict[str, Any]:
    """The same values from the study."""
    return {
        "number": trial.number,
        "state": STATES[trial.state],
        "values": list(enumerate(trial.values, 1)),
        "parameters": {name: str(value) for name, value in trial.parameters.items()},
        "ours": trial.state.value,
    }


def test_the_dashboard_shows_the_study(folder: SearchFolder, dashboard: str) -> None:
    record = StudyRecord.load(folder.study_url, folder.name, metric="val_accuracy")
    (study,) = read(f"{dashboard}/api/studies")["study_summaries"]
    assert (study["study_name"], study["directions"]) == (folder.name, ["maximize"])
    detail = read(f"{dashboard}/api/studies/{study['study_id']}")
    assert detail["has_intermediate_values"]
    assert len(detail["trials"]) == len(record)
    for shown, trial in zip(detail["trials"], record.trials(), strict=True):
        assert shown_values(shown) == recorded_values(trial)
    # The search has a trial in each of these states.
    assert {shown["state"] for shown in detail["trials"]} == {"Complete", "Pruned", "Fail"}
    best = max(trial.value for trial in record.trials() if trial.state is TrialState.FINISHED)
    assert {trial["values"][0] for trial in detail["best_trials"]} == {best}

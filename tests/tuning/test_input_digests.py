"""The digests of the user's code and of the images: what is recorded, refused and reported."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from pathlib import Path

import pytest

from tests.tuning.coordinating import Study
from tune_rescon.config import DatasetConfig
from tune_rescon.data import describe
from tune_rescon.errors import DataError
from tune_rescon.spaces import load_space
from tune_rescon.tuning import StudyRecord
from tune_rescon.tuning.input_digests import (
    changed_digests,
    check_same_images,
    code_digests,
    code_history,
    record_code,
    record_images,
    recorded_code,
    recorded_images,
)
from tune_rescon.tuning.prepare import PreparedData
from tune_rescon.tuning.study_attributes import record_run
from tune_rescon.tuning.trial import Proposal

NAMES = (f"users_code_{number}" for number in itertools.count())


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a module in the working directory that was not imported before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / f"{next(NAMES)}.py"


def record(trials: int = 0) -> StudyRecord:
    study_record = Study().record()
    for _ in range(trials):
        study_record.open(Proposal(params={}, distributions={}))
    return study_record


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_metric_and_a_network_have_the_digests_of_their_files(module: Path) -> None:
    module.write_text(
        "import torch\n"
        "def score(scores, labels): return 1.0\n"
        "def small(num_classes, in_channels, image_size): return torch.nn.Flatten()\n"
    )
    metric, network = f"{module.stem}:score", f"{module.stem}:small"
    log = f"metric.log=[val_auroc, '{metric}']"
    assert code_digests(load_space("digits", [log])) == {metric: digest(module)}
    changes = [log, f"fixed={{network: '{network}', image_size: 16}}", "initial=[]"]
    rate = "parameters={learning_rate: {type: float, low: 0.01, high: 0.1}}"
    digests = code_digests(load_space("digits", [*changes, rate]))
    assert digests == {metric: digest(module), network: digest(module)}
    assert code_digests(load_space("digits")) == {}


def test_the_digest_is_of_the_file_that_defines_the_function(module: Path) -> None:
    """Not of the module that imports the function, which the space names."""
    inner_module = module.with_name(f"{next(NAMES)}.py")
    inner_module.write_text("def score(scores, labels): return 1.0\n")
    module.write_text(f"from {inner_module.stem} import score\n")
    name = f"{module.stem}:score"
    assert code_digests(load_space("digits", [f"metric.log=['{name}']"])) == {name: digest(inner_module)}


def test_a_callable_object_has_the_digest_of_its_module(module: Path) -> None:
    module.write_text(
        "from functools import partial\nscore = partial(pow, 2)\nclass Cost:\n"
        "    def __call__(self, scores, labels): return 1.0\ncost = Cost()\n"
    )
    names = [f"{module.stem}:score", f"{module.stem}:cost"]
    digests = code_digests(load_space("digits", [f"metric.log={names}"]))
    assert digests == dict.fromkeys(names, digest(module))


def test_code_without_a_file_has_no_digest(module: Path) -> None:
    """A function of an extension module, and a module whose file was deleted after the import."""
    module.write_text("def score(scores, labels): return 1.0\n")
    space = load_space("digits", [f"metric.log=['math:fsum', '{module.stem}:score']"])
    assert code_digests(space).keys() == {f"{module.stem}:score"}
    module.unlink()
    assert code_digests(space) == {}


def test_a_change_of_code_is_recorded_and_reported(progress: list[str]) -> None:
    kept = record(trials=3)
    record_code(kept, {"a:f": "0", "b:g": "0"}, before_trials=True)
    record_code(kept, {"a:f": "0", "b:g": "0"}, before_trials=False)
    assert (progress, code_history(kept)) == ([], ())

    record_code(kept, {"a:f": "1", "b:g": "0"}, before_trials=True)
    (line,) = progress
    assert line.startswith("The code of a:f has changed since its last run. Trials before and after")
    assert code_history(kept) == ("the code of a:f changed before trial 3",)

    # The digest of a function is kept while the space does not name it.
    record_code(kept, {"b:g": "0"}, before_trials=True)
    record_code(kept, {"a:f": "1", "b:g": "2"}, before_trials=False)
    assert progress[1].startswith("The code of b:g has changed while the trials ran.")
    assert code_history(kept)[1:] == ("the code of b:g changed while the trials ran, before trial 3",)
    assert recorded_code(kept) == {"a:f": "1", "b:g": "2"}


def test_a_change_before_the_first_trial_is_not_reported(progress: list[str]) -> None:
    kept = record()
    record_code(kept, {"a:f": "0"}, before_trials=True)
    record_code(kept, {"a:f": "1", "b:g": "0"}, before_trials=True)
    assert (progress, code_history(kept)) == ([], ())
    assert recorded_code(kept) == {"a:f": "1", "b:g": "0"}


def test_a_record_of_an_earlier_version_has_no_code_digests(progress: list[str]) -> None:
    kept = record(trials=1)
    assert (recorded_code(kept), code_history(kept)) == ({}, ())
    record_code(kept, {"a:f": "0"}, before_trials=True)
    assert progress == []
    assert changed_digests({}, {"a:f": "0"}) == []


@pytest.fixture
def digits(tmp_path: Path) -> PreparedData:
    return PreparedData(
        infos={"digits": describe(DatasetConfig(name="digits"), data_root=tmp_path)},
        digests={"digits": "0123"},
    )


def test_other_images_under_the_same_name_are_refused(record: StudyRecord, digits: PreparedData) -> None:
    record_images(record, {"digits": "0123"})
    check_same_images(record, digits)
    with pytest.raises(DataError, match="as many as before, but not the same") as error:
        check_same_images(record, dataclasses.replace(digits, digests={"digits": "4567"}))
    assert "another --name with --warm-start" in str(error.value)


def test_a_refusal_reports_both_numbers_of_images(record: StudyRecord, digits: PreparedData) -> None:
    record_images(record, {"digits": "0123"})
    record_run(record, digits.infos, None)
    info = digits.infos["digits"]
    fewer = dataclasses.replace(info, val_images=info.val_images - 30)
    with pytest.raises(DataError, match=r"digits \(val 144 then, 114 now\)"):
        check_same_images(record, PreparedData(infos={"digits": fewer}, digests={"digits": "4567"}))


def test_images_without_a_recorded_digest_are_accepted(record: StudyRecord, digits: PreparedData) -> None:
    check_same_images(record, digits)
    record_images(record, {"cifar10": "89ab"})
    check_same_images(record, digits)
    record_images(record, {"digits": "0123"})
    assert (
        recorded_images(record) == record.attribute("image_digests") == {"cifar10": "89ab", "digits": "0123"}
    )

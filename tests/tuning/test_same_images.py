"""A resumed search has the images that its trials had, wherever they lie now."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import optuna
import pytest

from tune_rescon.config import DatasetConfig
from tune_rescon.data import describe
from tune_rescon.errors import DataError
from tune_rescon.tuning import StudyRecord
from tune_rescon.tuning.preparation import Prepared, check_same_images, note_images


@pytest.fixture
def record() -> StudyRecord:
    study = optuna.create_study()
    return StudyRecord.on(study._storage, study._study_id, metric="val_accuracy")


@pytest.fixture
def digits(tmp_path: Path) -> Prepared:
    return Prepared(facts=describe(DatasetConfig(name="digits"), data_root=tmp_path), digest="0123")


def test_other_images_under_the_same_name_are_refused(record: StudyRecord, digits: Prepared) -> None:
    note_images(record, {"digits": "0123"})
    check_same_images(record, {"digits": digits})
    with pytest.raises(DataError, match="other images in digits") as caught:
        check_same_images(record, {"digits": dataclasses.replace(digits, digest="4567")})
    assert "--name" in str(caught.value)


def test_an_older_record_and_a_new_dataset_have_nothing_to_compare(
    record: StudyRecord, digits: Prepared
) -> None:
    check_same_images(record, {"digits": digits})
    note_images(record, {"cifar10": "89ab"})
    check_same_images(record, {"digits": digits})
    note_images(record, {"digits": "0123"})
    assert record.attribute("image_digests") == {"cifar10": "89ab", "digits": "0123"}

"""A resumed search must have the same images, also at another path."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tune_rescon.config import DatasetConfig
from tune_rescon.data import describe
from tune_rescon.errors import DataError
from tune_rescon.tuning import StudyRecord
from tune_rescon.tuning.input_digests import check_same_images, record_images, recorded_images
from tune_rescon.tuning.prepare import PreparedDataset
from tune_rescon.tuning.study_attributes import record_run


@pytest.fixture
def digits(tmp_path: Path) -> PreparedDataset:
    return PreparedDataset(info=describe(DatasetConfig(name="digits"), data_root=tmp_path), digest="0123")


def test_other_images_under_the_same_name_are_refused(record: StudyRecord, digits: PreparedDataset) -> None:
    record_images(record, {"digits": "0123"})
    check_same_images(record, {"digits": digits})
    with pytest.raises(DataError, match="as many as before, but not the same") as error:
        check_same_images(record, {"digits": dataclasses.replace(digits, digest="4567")})
    assert "another --name with --warm-start" in str(error.value)


def test_a_refusal_reports_both_numbers_of_images(record: StudyRecord, digits: PreparedDataset) -> None:
    record_images(record, {"digits": "0123"})
    record_run(record, {"digits": digits.info}, None)
    fewer = dataclasses.replace(digits.info, val_images=digits.info.val_images - 30)
    with pytest.raises(DataError, match=r"digits \(val 144 then, 114 now\)"):
        check_same_images(record, {"digits": PreparedDataset(info=fewer, digest="4567")})


def test_images_without_a_recorded_digest_are_accepted(record: StudyRecord, digits: PreparedDataset) -> None:
    check_same_images(record, {"digits": digits})
    record_images(record, {"cifar10": "89ab"})
    check_same_images(record, {"digits": digits})
    record_images(record, {"digits": "0123"})
    assert (
        recorded_images(record) == record.attribute("image_digests") == {"cifar10": "89ab", "digits": "0123"}
    )

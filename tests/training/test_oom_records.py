"""Out-of-memory records: the micro-batches that follow from them, and the file of a node."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.forked import run_script
from tune_rescon.config import TrialConfig
from tune_rescon.models import NetworkSpec, resolve_network
from tune_rescon.training.device import DeviceConfig
from tune_rescon.training.memory import OomRecord, OomRecordFile, initial_micro_batches, memory_key, merged
from tune_rescon.training.microbatches import SMALLEST_MICRO_BATCH, smallest_micro_batch

RECORDS = st.builds(OomRecord, images=st.integers(8, 300), available=st.integers(1, 10) | st.just(100))


@given(images=st.integers(1, 1000), available=st.integers(1, 100), known=st.lists(RECORDS, max_size=5))
def test_the_initial_micro_batch_is_the_largest_not_known_to_fail(
    images: int, available: int, known: list[OomRecord]
) -> None:
    def runs_out_of_memory(count: int) -> bool:
        largest = -(-images // count)
        return any(record.images <= largest and record.available >= 0.95 * available for record in known)

    count = initial_micro_batches(images, available, known)
    assert images // count >= min(images, SMALLEST_MICRO_BATCH)
    assert not runs_out_of_memory(count) or images // count == smallest_micro_batch(images)
    assert all(runs_out_of_memory(2**power) for power in range(count.bit_length() - 1))
    assert count == 2 ** (count.bit_length() - 1)


@given(known=st.lists(RECORDS, max_size=8), images=st.integers(1, 400), available=st.integers(1, 100))
def test_dropping_redundant_records_changes_no_initial_micro_batch(
    known: list[OomRecord], images: int, available: int
) -> None:
    reduced: list[OomRecord] = []
    for record in known:
        reduced = merged(reduced, record)
    assert initial_micro_batches(images, available, reduced) == initial_micro_batches(
        images, available, known
    )
    assert all(
        not (first.images <= second.images and first.available >= second.available)
        for first in reduced
        for second in reduced
        if first is not second
    )


@pytest.fixture
def spec() -> NetworkSpec:
    return resolve_network(TrialConfig(layout="cifar", image_size=32), classes=10, in_channels=3)


def test_the_key_covers_network_size_precision_and_device(
    spec: NetworkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(spec: NetworkSpec, device: str = "cpu") -> str:
        return memory_key(spec, DeviceConfig(device=torch.device(device), precision="fp32"))

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    other_keys = [
        key(dataclasses.replace(spec, image_size=48)),
        key(dataclasses.replace(spec, stem_channels=spec.stem_channels + 1)),
        key(spec, "cuda:0"),
        key(spec, "cuda:1"),
        memory_key(spec, DeviceConfig(device=torch.device("cpu"), precision="bf16")),
    ]
    assert len({key(spec), *other_keys}) == 6
    assert key(spec) == key(NetworkSpec.from_dict(json.loads(json.dumps(spec.to_dict()))))


def test_a_file_keeps_records_by_key(tmp_path: Path) -> None:
    file = OomRecordFile(tmp_path / "node" / "found.json")
    assert file.known("a") == []
    file.add("a", OomRecord(images=64, available=10))
    file.add("a", OomRecord(images=32, available=5))
    file.add("b", OomRecord(images=16, available=10))
    assert OomRecordFile(tmp_path / "node" / "found.json").known("a") == [
        OomRecord(images=32, available=5),
        OomRecord(images=64, available=10),
    ]
    assert file.known("b") == [OomRecord(images=16, available=10)]
    assert {path.name for path in (tmp_path / "node").iterdir()} == {"found.json", "found.json.lock"}


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"a": 3}', '{"a": [{"images": 3}]}', '{"a": ["x"]}', "\0"]
)
def test_a_damaged_file_has_no_records_and_is_replaced(tmp_path: Path, damage: str) -> None:
    file = OomRecordFile(tmp_path / "found.json")
    (tmp_path / "found.json").write_text(damage)
    assert file.known("a") == []
    file.add("a", OomRecord(images=64, available=10))
    assert file.known("a") == [OomRecord(images=64, available=10)]


def test_an_unwritable_file_is_reported_and_otherwise_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "occupied").write_text("")
    file = OomRecordFile(tmp_path / "occupied" / "found.json")
    file.add("a", OomRecord(images=64, available=10))
    assert file.known("a") == []
    assert "could not be recorded" in caplog.text


@pytest.mark.torch
def test_concurrent_processes_lose_no_record(tmp_path: Path) -> None:
    # Closing a pipe starts all writers at once.
    program = """
import os, sys
from pathlib import Path
from tune_rescon.training.memory import OomRecord, OomRecordFile
waits, begins = os.pipe()
writers = []
for mine in range(3):
    if not (writer := os.fork()):
        os.close(begins)
        os.read(waits, 1)
        file = OomRecordFile(Path(sys.argv[1]))
        for number in range(20):
            file.add(f"{mine} {number}", OomRecord(images=64, available=number))
            assert file.known(f"{mine} {number}") == [OomRecord(images=64, available=number)]
        sys.exit(0)
    writers.append(writer)
os.close(begins)
sys.exit(any([os.waitpid(writer, 0)[1] for writer in writers]))
"""
    process = run_script(program, str(tmp_path / "found.json"))
    assert process.returncode == 0, process.stderr
    assert len(json.loads((tmp_path / "found.json").read_text())) == 60

from __future__ import annotations

import pytest
import torch

from tune_rescon.errors import ResourceError
from tune_rescon.training.device import DeviceConfig, Precision, choose_precision, place

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("requested", "device_type", "bf16", "expected"),
    [
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "tf32"),
        ("auto", "cpu", False, "fp32"),
        ("auto", "cpu", True, "fp32"),
        ("fp32", "cuda", True, "fp32"),
        ("tf32", "cuda", True, "tf32"),
        ("tf32", "cpu", False, "fp32"),
        ("bf16", "cuda", False, "bf16"),
        ("bf16", "cpu", False, "bf16"),
    ],
)
def test_precision(requested: str, device_type: str, bf16: bool, expected: str) -> None:
    assert choose_precision(requested, device_type=device_type, bf16=bf16) == expected


def test_an_unknown_device_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ResourceError, match=r"unknown device 'cdua' \(did you mean 'cuda'\?\)"):
        place("cdua", precision="auto")


def test_cuda_without_a_gpu_is_an_error_and_auto_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="needs a CUDA GPU"):
        place("cuda", precision="auto")
    assert place("auto", precision="auto") == DeviceConfig(device=CPU, precision="fp32")


@pytest.mark.parametrize(("precision", "matmul"), [("fp32", "highest"), ("tf32", "high"), ("bf16", "high")])
def test_the_processes_switches_are_held_and_given_back(precision: Precision, matmul: str) -> None:
    def switches() -> tuple[object, ...]:
        cudnn = torch.backends.cudnn
        return (
            torch.get_float32_matmul_precision(),
            torch.get_num_threads(),
            cudnn.allow_tf32,
            cudnn.benchmark,
        )

    before = switches()
    placement = DeviceConfig(device=CPU, precision=precision)
    with placement.active(threads=1):
        assert switches() == (matmul, 1, precision != "fp32", False)
    assert switches() == before


def test_bf16_computes_in_bf16_and_fp32_in_fp32() -> None:
    layer = torch.nn.Linear(4, 4)
    expected: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
    for precision, dtype in expected.items():
        with DeviceConfig(device=CPU, precision=precision).autocast():
            assert layer(torch.zeros(1, 4)).dtype is dtype


def test_networks_and_images_are_channels_last() -> None:
    placement = DeviceConfig(device=CPU, precision="fp32")
    network = placement.network(torch.nn.Conv2d(8, 8, 3))
    images_BCHW = placement.images(torch.zeros(2, 8, 5, 5))
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    assert images_BCHW.is_contiguous(memory_format=torch.channels_last)

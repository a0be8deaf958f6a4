"""Precision, the device's settings, unusable GPUs, and the C library's heap."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import pytest
import torch

from tests.training.forked import run_script
from tune_rescon.errors import ResourceError
from tune_rescon.training.device import (
    DeviceConfig,
    Precision,
    check_cuda,
    choose_precision,
    device_name,
    freed_memory_kept,
    oldest_driver,
    resolve_device,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("requested", "device_type", "has", "expected"),
    [
        ("auto", "cuda", {"bf16", "fp16"}, "bf16"),
        ("auto", "cuda", {"bf16"}, "bf16"),
        ("auto", "cuda", {"fp16"}, "fp16"),
        ("auto", "cuda", set(), "tf32"),
        ("auto", "cpu", set(), "fp32"),
        ("auto", "cpu", {"bf16"}, "fp32"),
        ("fp32", "cuda", {"bf16", "fp16"}, "fp32"),
        ("tf32", "cuda", {"bf16"}, "tf32"),
        ("tf32", "cpu", set(), "fp32"),
        ("bf16", "cuda", set(), "bf16"),
        ("bf16", "cpu", set(), "bf16"),
        ("fp16", "cuda", {"bf16"}, "fp16"),
        ("fp16", "cpu", {"fp16"}, "fp32"),
    ],
)
def test_precision_follows_the_device(requested: str, device_type: str, has: set[str], expected: str) -> None:
    chosen = choose_precision(requested, device_type=device_type, bf16="bf16" in has, fp16="fp16" in has)
    assert chosen == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((6, 1), "tf32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((9, 0), "bf16")]
)
def test_auto_precision_follows_the_compute_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    """Pascal, Volta, Turing, Hopper."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: capability >= (8, 0))
    config = resolve_device("auto", precision="auto")
    assert (config.device, config.precision) == (torch.device("cuda"), expected)
    assert resolve_device("cpu", precision="auto").precision == "fp32"


def test_an_unknown_device_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ResourceError, match=r"unknown device 'cdua' \(did you mean 'cuda'\?\)"):
        resolve_device("cdua", precision="auto")


def test_cuda_without_a_gpu_raises_and_auto_falls_back_to_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="needs a CUDA GPU"):
        resolve_device("cuda", precision="auto")
    assert resolve_device("auto", precision="auto") == DeviceConfig(device=CPU, precision="fp32")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch reports no GPU, with a reason, as on a machine with an old driver."""

    def current_device() -> int:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 12080). Please update."
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", current_device)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("cuda", "driver", "words"),
    [
        ("13.2", "570.86.15", "needs NVIDIA's driver 580 or newer; the driver here is 570.86.15. Update it"),
        (
            "12.8",
            "470.223.02",
            "built for CUDA 12.8, which needs NVIDIA's driver 525 or newer; the driver here",
        ),
        ("13.2", "580.95.05", "580 or newer, and 580.95.05 is here: look at CUDA_VISIBLE_DEVICES"),
        ("13.2", None, "580 or newer; no driver was found. Install it"),
        (None, "580.95.05", "is built without CUDA"),
        ("99.0", "580.95.05", "is built for CUDA 99.0: update NVIDIA's driver"),
    ],
)
def test_an_unusable_gpu_is_reported_with_its_cause_and_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str | None, driver: str | None, words: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr("tune_rescon.training.device.oldest_driver", lambda: oldest_driver(cuda))
    version = tmp_path / "version"
    if driver is not None:
        version.write_text(
            f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {driver}  Release Build\n"
        )
    with pytest.raises(ResourceError) as error:
        check_cuda(version)
    text = str(error.value)
    assert "needs a CUDA GPU that torch can use, but got none on " in text
    assert "(The NVIDIA driver on your system is too old (found version 12080))" in text
    assert words in text
    assert text.endswith("Without a GPU, ask for none: resources_per_trial.gpu=0.")


@pytest.mark.usefixtures("no_gpu")
def test_the_name_of_an_unusable_gpu_is_a_resource_error() -> None:
    with pytest.raises(ResourceError, match="needs a CUDA GPU that torch can use"):
        device_name("cuda")


@pytest.mark.parametrize(("precision", "matmul"), [("fp32", "highest"), ("tf32", "high"), ("bf16", "high")])
def test_global_torch_settings_are_set_and_restored(precision: Precision, matmul: str) -> None:
    def global_settings() -> tuple[object, ...]:
        cudnn = torch.backends.cudnn
        return (
            torch.get_float32_matmul_precision(),
            torch.get_num_threads(),
            cudnn.allow_tf32,
            cudnn.benchmark,
        )

    before = global_settings()
    placement = DeviceConfig(device=CPU, precision=precision)
    with placement.active(threads=1):
        assert global_settings() == (matmul, 1, precision != "fp32", False)
    assert global_settings() == before


def test_bf16_computes_in_bf16_and_fp32_in_fp32() -> None:
    layer = torch.nn.Linear(4, 4)
    expected: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
    for precision, dtype in expected.items():
        with DeviceConfig(device=CPU, precision=precision).autocast():
            assert layer(torch.zeros(1, 4)).dtype is dtype


def test_networks_and_images_are_channels_last() -> None:
    placement = DeviceConfig(device=CPU, precision="fp32")
    network = placement.move_network(torch.nn.Conv2d(8, 8, 3))
    images_BCHW = placement.move_images(torch.zeros(2, 8, 5, 5))
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    assert images_BCHW.is_contiguous(memory_format=torch.channels_last)


#: Allocates and frees blocks of the size of feature maps and counts the pages that the kernel cleared. Runs
#: in a separate process, because the state of the heap decides where a block comes from.
PROGRAM = """
import resource
from tune_rescon.training.device import freed_memory_kept

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        x = b"x" * size
        del x
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages = 40 * 2**20 // resource.getpagesize()
print(faults(40 * 2**20) / pages)
with freed_memory_kept():
    faults(40 * 2**20)
    print(faults(40 * 2**20) / pages)
print(faults(80 * 2**20) / pages / 2)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such switch")
def test_large_blocks_reuse_freed_pages_within_the_context() -> None:
    process = run_script(PROGRAM)
    assert process.returncode == 0, process.stderr
    before, within, after = map(float, process.stdout.split())
    assert before >= 3
    assert within < 0.1
    # Larger than the retained memory: the kernel provides it each time.
    assert after >= 3


def test_a_c_library_without_the_switch_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with freed_memory_kept():
        pass

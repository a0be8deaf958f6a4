"""The fused batch norm with ReLU against torch's: interpreted on a CPU, compiled for a GPU, run on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training import norm_errors
from tune_rescon.models import build_network
from tune_rescon.models.normalisation import BatchNormReLU
from tune_rescon.training import fusing
from tune_rescon.training.fusing import fuse_norms
from tune_rescon.training.placement import Placement

pytest.importorskip("triton", reason="Triton is not made for this system")

pytestmark = pytest.mark.torch

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

#: Of a step's results, relative; bf16 keeps eight bits of what is written, the rest is fp32.
BOUNDS = {"bfloat16": 4e-3, "float16": 5e-4, "float32": 1e-6}

SMALL = [
    ((4, 16, 5, 7), "float32"),  # one block of 16 columns, a ragged tile
    ((8, 64, 16, 16), "bfloat16"),  # several spans
    ((3, 70, 9, 9), "float32"),  # a ragged block of columns
    ((2, 130, 3, 5), "float16"),
    ((64, 3, 32, 32), "bfloat16"),  # 4 columns, of which 3 are there
]

LARGE = [
    ((128, 64, 32, 32), "bfloat16"),
    ((128, 1024, 8, 8), "bfloat16"),
    ((8, 256, 56, 56), "float32"),
    ((5, 100, 31, 33), "bfloat16"),
    ((2, 2048, 4, 4), "float16"),
]


@pytest.fixture(scope="module")
def interpreted() -> list[dict[str, float]]:
    run = subprocess.run(
        [sys.executable, "-m", "tests.training.norm_errors", json.dumps(SMALL)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found: list[dict[str, float]] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", range(len(SMALL)), ids=[f"{shape}-{dtype}" for shape, dtype in SMALL])
def test_the_kernels_do_what_torch_does(interpreted: list[dict[str, float]], case: int) -> None:
    bound = BOUNDS[SMALL[case][1]]
    assert {name: error for name, error in interpreted[case].items() if not error < bound} == {}


@NEEDS_GPU
@pytest.mark.parametrize(("shape", "dtype"), SMALL + LARGE)
def test_they_do_so_on_a_gpu(shape: norm_errors.Shape, dtype: str) -> None:
    found = norm_errors.errors(shape, getattr(torch, dtype), "cuda")
    assert {name: error for name, error in found.items() if not error < BOUNDS[dtype]} == {}


def test_they_compile_for_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The interpreter takes what the compiler refuses; this needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tune_rescon.training import norm_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = {"ROWS": 64, "COLUMNS": 64, "AT_ONCE": 64}
    kinds = {"batches": "*i64", "eps": "fp32", "momentum": "fp32"}
    kinds |= dict.fromkeys(("n", "k", "span", "spans"), "i32")
    kinds |= dict.fromkeys(("x", "y", "dx", "dy"), "*bf16") | dict.fromkeys(sizes, "constexpr")
    for name in ("_sum_map", "_normalise", "_sum_gradients", "_differentiate"):
        kernel = getattr(norm_kernels, name)
        compiled = triton.compile(
            ASTSource(
                fn=kernel,
                signature={argument: kinds.get(argument, "*fp32") for argument in kernel.arg_names},
                constexprs={argument: sizes[argument] for argument in kernel.arg_names if argument in sizes},
            ),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": 8, "enable_fp_fusion": True},
        )
        assert compiled.asm["cubin"], name


def _a_step(network: nn.Module, images_BCHW: Tensor) -> Tensor:
    network.zero_grad()
    network(images_BCHW).square().mean().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return torch.cat([gradient.flatten() for gradient in gradients])


@NEEDS_GPU
def test_a_network_on_a_gpu_has_them_in_training_only() -> None:
    placement = Placement(device=torch.device("cuda"), precision="fp32")
    torch.manual_seed(0)
    network = placement.network(build_network("rescon_attention92_32", classes=10))
    images_BCHW = placement.images(torch.randn(8, 3, 32, 32))
    with placement.active():
        apart = _a_step(network, images_BCHW)
        fuse_norms(network, placement)
        together = _a_step(network, images_BCHW)
        assert not torch.equal(together, apart), "other kernels round otherwise"
        assert (together - apart).norm() / apart.norm() < 1e-2
        network.eval()
        y_BK = network(images_BCHW)
        for module in network.modules():
            if isinstance(module, BatchNormReLU):
                module.fused = None
        assert torch.equal(network(images_BCHW), y_BK)


def test_without_a_gpu_all_stays_as_it_is() -> None:
    network = build_network("cifar_attention56", classes=10)
    fuse_norms(network, Placement(device=torch.device("cpu"), precision="fp32"))
    assert {module.fused for module in network.modules() if isinstance(module, BatchNormReLU)} == {None}


def test_where_they_cannot_run_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """On a CPU Triton finds no driver."""
    fusing.fusing_trouble.cache_clear()
    try:
        troubles = [fusing.fusing_trouble(torch.device("cpu"), torch.bfloat16) for _ in range(2)]
    finally:
        fusing.fusing_trouble.cache_clear()
    assert troubles[0]
    assert troubles[0] == troubles[1]
    assert caplog.messages == [f"batch norm and ReLU run one after the other: {troubles[0]}"]

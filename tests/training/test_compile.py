"""torch.compile of a network's units: its results, its side effects, and training without a compiler."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import reset_code
from torch._dynamo.utils import counters

from tests.training.conftest import Train
from tune_rescon.config import TrialConfig
from tune_rescon.data import ImageDataset
from tune_rescon.models import build_from_spec, resolve_network
from tune_rescon.training.checkpoint import read_checkpoint
from tune_rescon.training.compile import (
    compile_units,
    compiler_problem,
    doubled,
    raised_recompile_limit,
    uncompiled,
)
from tune_rescon.training.device import resolve_device

#: Compilation takes most of a minute and is off by default.
nightly = pytest.mark.nightly

pytestmark = [
    pytest.mark.torch,
    # Dynamo reads the gradient of every input. It hides the warning, but not from an "error" filter.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

CPU = torch.device("cpu")
IMAGES_BCHW = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))

#: Units of six shapes; a new one costs seconds.
FIELDS: dict[str, Any] = {
    "layout": "cifar",
    "depth": 56,
    "width": 0.25,
    "image_size": 16,
    "mask": "local",
    "batch_size": 32,
    "learning_rate": 1e-3,
    "crop_padding": 1,
}
SHAPES = 6


def _network() -> nn.Module:
    torch.manual_seed(0)
    network = build_from_spec(resolve_network(TrialConfig(**FIELDS), classes=4, in_channels=3))
    return network.to(memory_format=torch.channels_last)


def _logits_and_gradients(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Logits and gradients of a step."""
    logits_BK = network(IMAGES_BCHW.to(memory_format=torch.channels_last))
    gradients = torch.autograd.grad(logits_BK.square().sum(), list(network.parameters()))
    return logits_BK.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def _graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new Inductor cache for this file. The first compilation of torch's headers takes seconds."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def compiled(cpp_compiler: None) -> Iterator[nn.Module]:
    """A compiled network after its first step."""
    del cpp_compiler  # requested for its skip
    network = _network()
    compile_units(network)
    # Compiled code depends on the process's settings, so they are those of a trial. Torch's own limit is 8
    # versions, which larger networks exceed.
    settings = resolve_device("cpu", precision="auto").active(threads=1)
    with settings, torch._dynamo.config.patch(recompile_limit=2), raised_recompile_limit(network):
        _logits_and_gradients(network)
        yield network


@nightly
def test_a_compiled_network_computes_the_same(compiled: nn.Module) -> None:
    (logits_BK, gradient), (expected_BK, expected) = (
        _logits_and_gradients(compiled),
        _logits_and_gradients(_network()),
    )
    torch.testing.assert_close(logits_BK, expected_BK, rtol=1e-4, atol=1e-4)
    # An activation close to 0 passes its gradient in only one of the two networks.
    assert (gradient - expected).norm() < 0.15 * expected.norm()


@nightly
@pytest.mark.usefixtures("compiled")
def test_the_next_network_of_its_shapes_is_compiled_already() -> None:
    graphs = _graphs()
    assert graphs >= SHAPES
    second_network = _network()
    compile_units(second_network)
    _logits_and_gradients(second_network)
    assert _graphs() == graphs


@nightly
def test_compiling_does_not_change_names_copies_and_exports(compiled: nn.Module) -> None:
    plain = _network()
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in compiled.named_modules()] == [name for name, _ in plain.named_modules()]
    graphs = _graphs()
    average = copy.deepcopy(compiled).eval()
    images_BCHW = torch.randn(3, 3, 16, 16)  # a size not compiled for
    expected_BK = average(images_BCHW)
    exported = torch.export.export(average, (images_BCHW,)).module()
    torch.testing.assert_close(exported(images_BCHW), expected_BK)
    assert _graphs() == graphs


@nightly
def test_an_epochs_end_compiles_nothing(compiled: nn.Module) -> None:
    graphs = _graphs()
    compiled.eval()
    try:
        with torch.no_grad(), uncompiled():
            compiled(IMAGES_BCHW[:3])
    finally:
        compiled.train()
    assert _graphs() == graphs


@pytest.fixture
def no_compiler() -> Iterator[None]:
    compiler_problem.cache_clear()
    reset_code(doubled.__code__)  # code that this process has compiled needs no compiler
    inductor: Any = torch._inductor.config
    with inductor.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        yield
    compiler_problem.cache_clear()


#: A process that compiles a unit and prints how many of its graphs the cache had.
COMPILE_UNIT = """
import sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from tune_rescon.training.compile import compile_units, use_compile_cache
from tune_rescon.models.network import PreActivationUnit
from tune_rescon.models.spec import UnitSpec

use_compile_cache(Path(sys.argv[1]))
torch.set_num_threads(1)
spec = UnitSpec(in_channels=4, channels=4, middle=4, stride=1, groups=1, preactivation=True)
unit = PreActivationUnit(spec)
compile_units(unit)
unit(torch.ones(2, 4, 4, 4)).sum().backward()
print(counters["aot_autograd"]["autograd_cache_hit"], counters["aot_autograd"]["autograd_cache_miss"])
"""


@nightly
@pytest.mark.usefixtures("cpp_compiler")
def test_the_next_process_reuses_the_compile_cache(cache: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    command = [sys.executable, "-c", COMPILE_UNIT, str(cache)]
    files = set(cache.rglob("*"))
    cold, warm = (
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
        for _ in range(2)
    )
    assert cold == ["0", "1"]
    assert warm == ["1", "0"]
    assert set(cache.rglob("*")) > files


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_a_trial_reports_it_and_trains(train: Train) -> None:
    messages: list[str] = []
    reports = train(TrialConfig(**(FIELDS | {"compile": "on"})), on_message=messages.append)
    expected = train(TrialConfig(**FIELDS))
    assert [report.metrics["train_loss"] for report in reports] == [
        report.metrics["train_loss"] for report in expected
    ]
    [message] = messages
    assert message.startswith("torch.compile cannot be used here (")
    assert message.endswith("); training continues without it")


@nightly
@pytest.mark.usefixtures("compiled")
def test_a_compiled_trial_matches_an_uncompiled_one_after_one_step(
    digits: ImageDataset, train: Train, tmp_path: Path
) -> None:
    """One step only: over several steps these networks amplify rounding errors."""
    part = digits.train
    batch = dataclasses.replace(part, rows_N=part.rows_N[:32], labels_N=part.labels_N[:32])
    one_batch = dataclasses.replace(digits, train=batch)

    def trained(name: str, **fields: Any) -> tuple[Mapping[str, float], Tensor]:
        config = TrialConfig(**(FIELDS | {"precise_bn_batches": 1, "learning_rate": 0.02} | fields))
        [report] = train(config, tmp_path / name, dataset=one_batch, epochs=1)
        state: dict[str, Tensor] = read_checkpoint(tmp_path / name / "last.ckpt")["state_dict"]
        weights = [value.flatten() for key, value in state.items() if key.endswith(("weight", "bias"))]
        return report.metrics, torch.cat(weights)

    assert compiler_problem(CPU) is None, "the check compiles too, so it comes before the count"
    graphs = _graphs()
    compiled, after = trained("compiled", compile="on")
    assert _graphs() == graphs, "its shapes were compiled already, and its validations must not be"
    plain, expected = trained("plain")
    _, before = trained("untrained", learning_rate=1e-12)
    assert compiled["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-4)
    assert compiled["val_loss"] == pytest.approx(plain["val_loss"], rel=5e-2)
    # The tolerance is that of the gradient above.
    assert (after - expected).norm() < 0.15 * (expected - before).norm()

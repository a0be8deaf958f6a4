"""The visit to a GPU: what its driver does with parts that end, fail or hang, on a CPU."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_visit
import pytest
import torch
from elementwise import loss_curve
from gpu_parts import PARTS
from gpu_visit import ended_parts, limited, main
from waiting import Case


def read_lines(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()]


def test_finished_parts_and_parts_that_exceed_the_time_left_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "visit.jsonl"
    results.write_text(json.dumps({"part": "checkpoint", "ended": "done"}) + "\n")
    main(
        [
            *("--dry-run", "--minutes", "-1", "--parts", "checkpoint", "row"),
            *("--results", str(results), "--folder", str(tmp_path / "visit")),
        ]
    )
    assert "checkpoint: has ended before" in capsys.readouterr().out
    (_, skipped) = read_lines(results)
    assert (skipped["part"], skipped["ended"]) == ("row", "left out")


def test_a_part_that_was_cut_off_is_run_again(tmp_path: Path) -> None:
    results = tmp_path / "visit.jsonl"
    assert ended_parts(results) == set()
    outcomes = {"row": "cut off", "table": "failed", "search": "left out", "equality": "done"}
    results.write_text(
        "".join(json.dumps({"part": part, "ended": outcome}) + "\n" for part, outcome in outcomes.items())
    )
    with results.open("a") as file:
        file.write(json.dumps({"part": "row", "seed": 0}) + "\n")
    assert ended_parts(results) == {"table", "equality"}


def test_a_limit_is_parsed_and_an_unknown_part_refused() -> None:
    assert limited("row=90") == ("row", 90.0)
    with pytest.raises(Exception, match="no part is called rows; there are checkpoint, first-step"):
        limited("rows=90")


def test_a_missing_gpu_is_reported_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    main(["--results", str(tmp_path / "none.jsonl"), "--folder", str(tmp_path / "visit")])
    assert capsys.readouterr().out == "no CUDA GPU that torch can use: nothing to check\n"
    assert list(tmp_path.iterdir()) == []


def test_each_part_has_a_limit_of_at_most_ten_minutes() -> None:
    for part in PARTS.values():
        assert part.least < part.seconds <= 600, part.about


@pytest.mark.torch
def test_a_part_that_exceeds_its_time_limit_is_ended(tmp_path: Path) -> None:
    results = tmp_path / "visit.jsonl"
    main(
        [
            *("--dry-run", "--parts", "checkpoint", "--limit", "checkpoint=0.2"),
            *("--results", str(results), "--folder", str(tmp_path / "visit")),
        ]
    )
    (end,) = read_lines(results)
    assert (end["ended"], end["exit"]) == ("cut off", None)
    assert end["seconds"] < 30


@pytest.mark.torch
@pytest.mark.nightly
def test_a_part_that_cannot_run_is_recorded_as_failed(tmp_path: Path) -> None:
    results = tmp_path / "visit.jsonl"
    main(
        [
            *("--dry-run", "--parts", "row"),  # without images
            *("--results", str(results), "--folder", str(tmp_path / "visit")),
        ]
    )
    (end,) = read_lines(results)
    assert (end["ended"], end["exit"]) == ("failed", 1)


@pytest.mark.torch
def test_fused_and_plain_steps_have_equal_losses() -> None:
    """The fused step is not compiled here. The visit checks the compiled one on a GPU."""
    case = Case(preset="cifar_attention56", batch_size=2)
    with torch.compiler.set_stance("force_eager"):
        plain, fused = (loss_curve(case, "cpu", steps=2, fused=fused) for fused in ("no", "compiled"))
    assert fused == pytest.approx(plain, rel=1e-5)


@pytest.mark.nightly
@pytest.mark.torch
def test_triton_kernels_match_torch() -> None:
    """In Triton's interpreter, whose variable must be set before Triton is imported: a process of its own."""
    pytest.importorskip("triton", reason="Triton is not made for this system")
    program = (
        "import torch; from elementwise import loss_curve; from waiting import Case\n"
        "case = Case(preset='cifar_attention56', batch_size=2)\n"
        "print([loss_curve(case, 'cpu', steps=2, fused=fused) for fused in ('no', 'triton')])"
    )
    benchmarks = Path(gpu_visit.__file__).parent
    paths = os.pathsep.join([str(benchmarks), str(benchmarks.parent)])
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    plain, fused = ast.literal_eval(run.stdout.splitlines()[-1])
    assert fused[0] == pytest.approx(plain[0], rel=1e-5)
    # The gradients differ by rounding, which the next step amplifies.
    assert fused[1] == pytest.approx(plain[1], rel=1e-2)

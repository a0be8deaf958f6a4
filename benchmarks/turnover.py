"""From one trial's end to the next one's first step, in the same slot, and what fifty trials leave in memory.

A real search on the embedded digits: 50 trials of one epoch, two at once. Each trial process writes down when
it reports an epoch (the last report of a trial is its end: ASHA's decision comes after it), when the first
training step of the next trial begins, and its own memory at that moment.

    python benchmarks/turnover.py [--trials 50] [--device cuda]

On a GPU both slots share one, and its memory in use is looked at too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from table import Row, hardware, print_rows, spread

#: Seconds, median.
GAP_TARGET = 0.5
#: MiB a trial process may grow by over all trials but its first few, which fill caches.
GROWTH_TARGET = 20.0
#: Trials of a process before its memory counts as settled.
SETTLING = 5

SLOTS = 2

#: Whose memory an event's figure is.
MEMORIES = {"mib": "a trial process's", "device_mib": "the GPU's, both slots'"}


def main() -> None:
    """Run the search, and print two rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        os.environ["RAY_TMPDIR"] = name
        events = list(_searched(folder, options.trials, options.device))
    print(hardware(options.device, "torch", "ray"))
    print_rows(rows(events))


def rows(events: Sequence[Sequence[dict[str, Any]]]) -> list[Row]:
    """The table's rows of what each process wrote down."""
    gaps = [gap for process in events for gap in _gaps(process)]
    gap = statistics.median(gaps)
    where = f"{sum(map(_trials, events))} trials in {len(events)} processes"
    return [
        Row(
            what="last trial's end to the next one's first step, digits, 2 slots",
            measured=f"{spread(gaps)} s, n = {len(gaps)}",
            target=f"<= {GAP_TARGET:g} s (median)",
            met=gap <= GAP_TARGET,
        ),
        *(
            _memory_row(f"{whose} memory, {where}", max(_growth(process, key) for process in events))
            for key, whose in MEMORIES.items()
            if key in events[0][0]
        ),
    ]


def _memory_row(what: str, growth: float) -> Row:
    return Row(
        what=what,
        measured=f"{growth:+.0f} MiB after its first {SETTLING}",
        target=f"no growth (<= {GROWTH_TARGET:g} MiB)",
        met=growth <= GROWTH_TARGET,
    )


def _searched(folder: Path, trials: int, device: str) -> Iterator[list[dict[str, Any]]]:
    from tune_rescon.config import TrialState
    from tune_rescon.spaces import load_space
    from tune_rescon.tuning import RunOptions, run_search

    events = folder / "events"
    events.mkdir()

    def watched(config: dict[str, Any]) -> None:
        import functools
        import json
        import os
        import time
        from unittest.mock import patch

        import psutil
        import torch
        from ray import tune

        from tune_rescon.training.module import TrialModule
        from tune_rescon.tuning.ray.worker import run_trial

        def write(what: str) -> None:
            memory = psutil.Process().memory_info().rss / 2**20
            entry = {"what": what, "trial": config["number"], "at": time.time(), "mib": memory}
            if device == "cuda":
                free, total = torch.cuda.mem_get_info()
                entry["device_mib"] = (total - free) / 2**20
            with (events / f"{os.getpid()}.jsonl").open("a") as file:
                file.write(json.dumps(entry) + "\n")

        report, step = tune.report, TrialModule.training_step

        def reported(*args: Any, **kwargs: Any) -> None:
            write("report")
            report(*args, **kwargs)

        @functools.wraps(step)  # Lightning looks at its arguments' names
        def stepped(*args: Any, **kwargs: Any) -> Any:
            first_step.stop()
            write("step")
            return step(*args, **kwargs)

        first_step = patch.object(TrialModule, "training_step", stepped)
        write("called")
        first_step.start()
        try:
            with patch.object(tune, "report", reported):
                run_trial(config)
        finally:
            first_step.stop()

    settings = [f"budget.trials={trials}", f"budget.concurrent={SLOTS}", "fidelity.max=1"]
    settings += ["fixed.warmup_epochs=0", "parameters.depth.choices=[56, 92]"]
    if device == "cuda":
        settings += [f"resources_per_trial.gpu={1 / SLOTS}"]
    options = RunOptions(name="s", storage=folder / "runs", cache_root=folder / "cache")
    result = run_search(load_space("digits", settings), options, trainable=watched)
    assert {trial.state for trial in result.trials} == {TrialState.FINISHED}
    for file in events.iterdir():
        yield [json.loads(line) for line in file.read_text().splitlines()]


def _gaps(process: Sequence[dict[str, Any]]) -> Iterator[float]:
    """Seconds from each trial's last report to the first step of the one after it."""
    for before, after in pairwise(list(group) for _, group in groupby(process, key=lambda e: e["trial"])):
        ends = [event["at"] for event in before if event["what"] == "report"]
        steps = [event["at"] for event in after if event["what"] == "step"]
        if ends and steps:
            yield steps[0] - ends[-1]


def _growth(process: Sequence[dict[str, Any]], key: str) -> float:
    steps: list[float] = [event[key] for event in process if event["what"] == "step"]
    settled = steps[min(SETTLING, len(steps) - 1) :]
    # Medians of the first and the last few: what a trial of another size takes comes and goes.
    return statistics.median(settled[-SETTLING:]) - statistics.median(settled[:SETTLING])


def _trials(process: Sequence[dict[str, Any]]) -> int:
    return len({event["trial"] for event in process})


if __name__ == "__main__":
    main()

"""Where a search's own time goes: all that is not training, from the command to the prompt.

The documented small search (digits, two trials of one epoch, two at once) runs once or more, and this process
looks five times a second at what it has started. Printed are

- the timeline: seconds from the command to each moment, in a row each;
- for each kind of process (the driver, Ray's daemons, the trials' workers, MLflow's) the processor seconds
  between those moments, and from when to when it lived;
- with ``--imports``, what each kind of process imports: ``-X importtime``, summed by package.

    python benchmarks/own_time.py [--rounds 1] [--imports] [--python PYTHON]

``--python`` names the interpreter of another checkout, to be measured side by side with this one. Wall
seconds are those of a quiet machine only; processor seconds hold beside other work too.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
from overhead.side import own_folder
from table import Row, hardware, print_rows, spread

#: Seconds between two looks at the processes.
TICK: Final = 0.2

#: The moments, in order, and what the command prints at each. The first training step is not printed: it is
#: the first epoch's line less the seconds of the epoch, which the line says.
FIRST_LINE: Final = "first line"
START: Final = "the trials start"
STEP: Final = "first training step"
EPOCH: Final = "last epoch is reported"
RESULT: Final = "the result is shown"
PROMPT: Final = "the prompt is back"
MOMENTS: Final = (FIRST_LINE, START, STEP, EPOCH, RESULT, PROMPT)

#: Seconds, median, from one moment to another (None: the command); the targets are for two quiet cores.
_TARGETS: Final = (
    (None, FIRST_LINE, 1),
    (None, STEP, 14),
    (EPOCH, RESULT, 3),
    (RESULT, PROMPT, 12),
    (None, PROMPT, 35),
)

_EPOCH_LINE: Final = re.compile(r"^trial_\d+ epoch .*, (?P<seconds>[\d.]+) s(?:,|$)")

#: What a process is, by a word of its command line; the first that fits.
_KINDS: Final = (
    ("tracking.worker", "MLflow's process"),
    ("ray::DashboardAgent", "Ray's daemons"),
    ("ray::RuntimeEnvAgent", "Ray's daemons"),
    ("ray::IDLE", "idle workers"),
    ("ray::", "the trials' workers"),
    ("default_worker.py", "workers that start"),
    ("gcs_server", "Ray's daemons"),
    ("raylet/raylet", "Ray's daemons"),
    ("ray/_private", "Ray's daemons"),
    ("ray/dashboard", "Ray's daemons"),
    ("ray", "Ray's daemons"),
)

#: What each kind of process imports.
_IMPORTS: Final = {
    "the driver": "from tune_rescon.tuning import run_search; import ray, ray.tune",
    "a trial's worker": "import ray.tune; from tune_rescon.training import train_trial",
    "MLflow's process": "import tune_rescon.tracking.worker",
    "predict": "from tune_rescon.inference import load_model, predictions, batches_of",
}


def main() -> None:
    """Run the searches, and print their timelines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--imports", action="store_true", help="what is imported, and no search")
    parser.add_argument("--python", default=sys.executable, help="another checkout's interpreter")
    options = parser.parse_args()
    print(hardware("cpu", "torch", "ray", "mlflow"))
    if options.imports:
        for kind, code in _IMPORTS.items():
            _print_imports(kind, _imported(options.python, code))
        return
    runs = []
    for _ in range(options.rounds):
        with own_folder() as folder:
            runs.append(_watched(_command(options.python, folder), folder))
    _print_timeline(runs)
    _print_processes(runs[-1])


@dataclass
class Run:
    """One search, as seen from outside. Seconds are since the command."""

    began: float
    moments: dict[str, float] = field(default_factory=dict)
    lines: list[tuple[float, str]] = field(default_factory=list)
    looks: list[tuple[float, dict[int, tuple[str, float]]]] = field(default_factory=list)
    """At each look, of each process its kind and its processor seconds so far."""

    def read_all(self, lines: Iterable[str]) -> None:
        """Take in each line as the command prints it."""
        for line in lines:
            self.read(line)

    def read(self, line: str) -> None:
        """Take in a line that the command has just printed."""
        now = time.monotonic() - self.began
        self.lines.append((now, line))
        self.moments.setdefault(FIRST_LINE, now)
        if " starts: " in line:
            self.moments.setdefault(START, now)
        elif epoch := _EPOCH_LINE.match(line):
            self.moments.setdefault(STEP, now - float(epoch["seconds"]))
            self.moments[EPOCH] = now
        elif line.startswith("Best: "):
            self.moments.setdefault(RESULT, now)

    def look(self, parent: psutil.Process) -> None:
        """Note what each process has used."""
        seen = {}
        for process in [parent, *_children(parent)]:
            with suppress(psutil.Error):
                kind = "the driver" if process == parent else _kind(" ".join(process.cmdline()))
                times = process.cpu_times()
                seen[process.pid] = (kind, times.user + times.system)
        self.looks.append((time.monotonic() - self.began, seen))


def _command(python: str, folder: Path) -> list[str]:
    command = [python, "-m", "tune_rescon.search", "--space", "digits", "--name", "s", "--plain"]
    return [*command, "--trials", "2", "--set", "fidelity.max=1", "--storage", str(folder / "runs")]


def _watched(command: Sequence[str], folder: Path) -> Run:
    environment = {
        **os.environ,
        "RAY_TMPDIR": str(folder),
        "TUNE_RESCON_CACHE": str(folder / "cache"),
        "PYTHONUNBUFFERED": "1",
    }
    run = Run(time.monotonic())
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None, "a pipe was asked for"
        reading = threading.Thread(target=run.read_all, args=[process.stdout])
        reading.start()
        parent = psutil.Process(process.pid)
        while process.poll() is None:
            run.look(parent)
            time.sleep(TICK)
        reading.join()
    run.moments[PROMPT] = time.monotonic() - run.began
    if process.returncode != 0:
        sys.exit("".join(line for _, line in run.lines))
    return run


def _children(parent: psutil.Process) -> list[psutil.Process]:
    try:
        return list(parent.children(recursive=True))
    except psutil.Error:  # it has just ended
        return []


def _kind(command: str) -> str:
    return next((kind for word, kind in _KINDS if word in command), "other")


def processor_seconds(run: Run) -> dict[str, list[float]]:
    """Of each kind of process, what it used up to each moment since the one before."""
    ends = [run.moments[name] for name in MOMENTS]
    used: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(ends))
    before: dict[int, float] = {}
    for when, seen in run.looks:
        phase = next((i for i, end in enumerate(ends) if when <= end), len(ends) - 1)
        for pid, (kind, seconds) in seen.items():
            used[kind][phase] += seconds - before.get(pid, 0.0)
            before[pid] = seconds
    return dict(used)


def _print_timeline(runs: Sequence[Run]) -> None:
    print("\n| seconds since the command | |\n|---|---|")
    for name in MOMENTS:
        print(f"| {name} | {spread([run.moments[name] for run in runs], 1)} |")
    print_rows(_row(span, runs) for span in _TARGETS)
    print("\nWhat the last run printed:\n")
    for when, line in runs[-1].lines:
        print(f"{when:6.1f}  {line.rstrip()[:150]}")


def _row(span: tuple[str | None, str, int], runs: Sequence[Run]) -> Row:
    begin, end, target = span
    seconds = [run.moments[end] - (run.moments[begin] if begin else 0.0) for run in runs]
    return Row(
        what=f"{begin or 'the command'} to: {end}",
        measured=f"{spread(seconds, 1)} s, n = {len(runs)}",
        target=f"<= {target} s (median)",
        met=statistics.median(seconds) <= target,
    )


def _print_processes(run: Run) -> None:
    used = processor_seconds(run)
    print(f"\n| processor seconds until | {' | '.join(MOMENTS)} | in all | processes | lived (s) |")
    print("|---" * (len(MOMENTS) + 4) + "|")
    for kind, seconds in sorted(used.items(), key=lambda item: -sum(item[1])):
        whens = [when for when, seen in run.looks if any(k == kind for k, _ in seen.values())]
        pids = {pid for _, seen in run.looks for pid, (k, _) in seen.items() if k == kind}
        cells = " | ".join(f"{value:.1f}" for value in seconds)
        lived = f"{whens[0]:.1f} to {whens[-1]:.1f}"
        print(f"| {kind} | {cells} | {sum(seconds):.1f} | {len(pids)} | {lived} |")


def _imported(python: str, code: str) -> Iterator[tuple[str, float]]:
    """Each module that ``code`` imports, with its own seconds."""
    done = subprocess.run(
        [python, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    )
    for line in done.stderr.splitlines():
        found = re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line)
        if found:
            yield found[2], int(found[1]) / 1e6


def by_package(modules: Iterator[tuple[str, float]]) -> Mapping[str, tuple[float, int]]:
    """Seconds and number of modules of each package, the longest first.

    >>> by_package(iter([("torch.nn", 0.5), ("json", 0.1), ("torch", 1.0)]))
    {'torch': (1.5, 2), 'json': (0.1, 1)}
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    number: Counter[str] = Counter()
    for name, own in modules:
        package = name.partition(".")[0]
        seconds[package] += own
        number[package] += 1
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    return {package: (own, number[package]) for package, own in longest}


def _print_imports(kind: str, modules: Iterator[tuple[str, float]], rows: int = 12) -> None:
    packages = by_package(modules)
    total, number = (sum(column) for column in zip(*packages.values(), strict=True))
    print(f"\n| {kind} imports | s | modules |\n|---|---|---|")
    for package, (own, count) in list(packages.items())[:rows]:
        print(f"| {package} | {own:.2f} | {count} |")
    print(f"| in all | {total:.2f} | {number} |")


if __name__ == "__main__":
    main()

"""A visit to a GPU that is lent for minutes: parts, each with a time limit, and results as they come.

Each part runs in a child process, which is ended when its time is over, so that no part costs the others
theirs. A part appends its results to a file of JSON lines as they come. The same command again leaves out the
parts that have ended; one that was cut off is run again::

    python benchmarks/gpu_visit.py --images cifar10-jpeg.zip --minutes 9.5              # twice: one visit
    python benchmarks/gpu_visit.py --images cifar10-jpeg.zip --minutes 9.5 --parts search modern
    python benchmarks/gpu_visit.py --dry-run            # every part, on the CPU, as small as it can be

Fifteen minutes are not enough for all of them: the published row takes about five, the search eight.
``--minutes`` ends the visit: a part that no longer fits is left out, and said. The parts are in
benchmarks/gpu_parts.py.

What a dry run prints is of no use but to show that the part works.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from gpu_parts import PARTS
from table import hardware
from visit import Visit, append

#: Seconds that a child gets to end by itself after a SIGTERM.
GRACE = 10.0

#: The limit of a part in a dry run, where a busy CPU imports and compiles.
DRY_RUN_SECONDS = 900.0

#: Parts that have ended, by the word of their last line.
ENDED = ("done", "failed")


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    visit = Visit(
        device="cpu" if options.dry_run else "cuda",
        tiny=options.dry_run,
        folder=options.folder.resolve(),
        images=options.images.resolve() if options.images else None,
        results=options.results.resolve(),
    )
    if options.part is not None:
        run_part(options.part, visit, options.results, options.seconds)
        return
    if visit.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA GPU that torch can use: nothing to check")
        return
    visit.folder.mkdir(parents=True, exist_ok=True)
    print(hardware(visit.device, "torch", "pytorch-lightning"), flush=True)
    deadline = time.monotonic() + 60 * options.minutes
    ended = ended_parts(options.results)
    for name in options.parts:
        if name in ended:
            print(f"{name}: has ended before; a line of it in {options.results} says how")
            continue
        limit = options.limit.get(name, DRY_RUN_SECONDS if options.dry_run else PARTS[name].seconds)
        left = deadline - time.monotonic()
        if left < (0 if options.dry_run else PARTS[name].least):
            append(options.results, {"part": name, "ended": "left out", "seconds_left": round(left)})
            continue
        in_a_child(name, min(limit, left), options)
    print(f"results: {options.results}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--images", type=Path, help="CIFAR-10: a folder or .zip with train/ and test/CLASS/*")
    parser.add_argument("--results", type=Path, default=Path("visit.jsonl"), help="JSON lines, appended to")
    parser.add_argument("--folder", type=Path, default=Path("visit"), help="searches, caches and checkpoints")
    parser.add_argument("--minutes", type=float, help="of all parts together [default: 14; of a dry run 60]")
    parser.add_argument(
        "--limit", action="append", type=limited, default=[], metavar="PART=SECONDS", help="another limit"
    )
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, as small as can be")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.limit = dict(options.limit)
    if options.minutes is None:
        options.minutes = 60.0 if options.dry_run else 14.0
    return options


def limited(text: str) -> tuple[str, float]:
    """The part and the seconds of PART=SECONDS."""
    part, _, seconds = text.partition("=")
    if part not in PARTS:
        raise argparse.ArgumentTypeError(f"no part is called {part}; there are {', '.join(PARTS)}")
    return part, float(seconds)


def ended_parts(results: Path) -> set[str]:
    """The parts that have ended in an earlier run with the same file; not those that were cut off."""
    if not results.exists():
        return set()
    lines = (json.loads(line) for line in results.read_text().splitlines())
    return {line["part"] for line in lines if line.get("ended") in ENDED}


def run_part(name: str, visit: Visit, results: Path, seconds: float) -> None:
    """Run a part in this process, which has the part to itself."""
    for found in PARTS[name].run(visit, seconds):
        append(results, {"part": name, **found})


def in_a_child(name: str, limit: float, options: argparse.Namespace) -> None:
    """Run a part for at most ``limit`` seconds, and append how it ended."""
    command = [sys.executable, __file__, "--part", name, "--seconds", str(limit)]
    command += ["--results", str(options.results), "--folder", str(options.folder)]
    command += ["--images", str(options.images)] if options.images else []
    command += ["--dry-run"] if options.dry_run else []
    print(f"\n{name}: {PARTS[name].about}; at most {limit:.0f} s", flush=True)
    started = time.monotonic()
    # Without a GPU Triton's kernels are interpreted. Triton reads the variable when it is imported.
    more = {"TRITON_INTERPRET": "1"} if options.dry_run else {}
    # In a session of its own, so that what the part has started ends with it.
    child = subprocess.Popen(command, start_new_session=True, env={**os.environ, **more})
    with ended_with(child):
        try:
            code = child.wait(limit)
            how = "done" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            code, how = None, "cut off"
    spent = round(time.monotonic() - started, 1)
    append(options.results, {"part": name, "ended": how, "exit": code, "seconds": spent})


@contextlib.contextmanager
def ended_with(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the child's processes after the block: by SIGTERM, and by SIGKILL what is left after a while."""
    try:
        yield
    finally:
        if child.poll() is None:
            signal_group(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
        signal_group(child.pid, signal.SIGKILL)
        child.wait()


def signal_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)


if __name__ == "__main__":
    main()

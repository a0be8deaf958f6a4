"""Which changes of a module no test notices.

    taskset -c 1 python benchmarks/mutation.py MODULE... --tests PATH... [--share 0.2]

Each mutant changes one operator, condition, constant, return value or call. It runs in a fork of a process
that has imported the libraries, with the tests that execute its line, the quickest first, until one fails. A
test counts for a line if it executes it itself; one that relies on a session fixture's work does not. Tests
that start processes or servers are left out. `--survivors FILE` adds those that survive to a file, and
`--again FILE` runs those alone. Many survivors are no gap: they decide nothing, or change words only.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import SourceFileLoader
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

OPERATORS = (
    "Lt LtE Gt, LtE Lt Gt, Gt GtE Lt, GtE Gt Lt, Eq NotEq, NotEq Eq, Is IsNot, IsNot Is, In NotIn, NotIn In,"
    "Add Sub, Sub Add, Mult FloorDiv, Div Mult, FloorDiv Mult, Mod Mult, BitOr BitAnd, BitAnd BitOr,"
    "And Or, Or And"
)
OTHERS = {first: rest for first, *rest in map(str.split, OPERATORS.split(","))}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}
#: Conditions that get mutants as expressions; the statement they are in is not negated as well.
CHANGED_ITSELF = (ast.Compare, ast.UnaryOp)
SAYING = {"explain", "getLogger", "debug", "info", "warning", "bindparam"}
KINDS = "not nightly and not hosts and not ray and not server and not browser and not s3"
#: The exit code of a process in which pytest did not come to an end.
NO_ANSWER = 70


def others(operator: ast.AST) -> list[Any]:
    return [getattr(ast, name)() for name in OTHERS.get(type(operator).__name__, ())]


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    match node:
        case ast.Compare(left, [operator, *rest], comparators):
            yield from (ast.Compare(left, [other, *rest], comparators) for other in others(operator))
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(others(operator)[0], values)
            for i in range(len(values)):
                fewer = values[:i] + values[i + 1 :]
                yield ast.BoolOp(operator, fewer) if fewer[1:] else fewer[0]
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.BinOp(left, operator, right):
            yield from (ast.BinOp(left, other, right) for other in others(operator))
        case ast.AugAssign(target, operator, value):
            yield from (ast.Pass(), *(ast.AugAssign(target, other, value) for other in others(operator)))
        case ast.If(test, body, orelse) if not isinstance(test, CHANGED_ITSELF):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.IfExp(test, then, otherwise) if not isinstance(test, CHANGED_ITSELF):
            yield ast.IfExp(ast.UnaryOp(ast.Not(), test), then, otherwise)
        case ast.comprehension(target, values, [_, *_] as tests, is_async):
            for i in range(len(tests)):
                yield ast.comprehension(target, values, tests[:i] + tests[i + 1 :], is_async)
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() | str() as value):
            yield ast.Constant(f"XX{value}" if isinstance(value, str) else value + 1)
        case ast.Return(ast.expr() as value) if ast.unparse(value) not in ("None", "()", "''"):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(ast.Call()) | ast.Raise():
            yield ast.Pass()
        case ast.Continue() | ast.Break():
            yield ast.Break() if isinstance(node, ast.Continue) else ast.Continue()
        case ast.Call(ast.Name(name), arguments, keywords) if name in CALLS:
            kept = keywords if CALLS[name] != "list" else []
            yield ast.Call(ast.Name(CALLS[name], ast.Load()), arguments, kept)


def is_skipped(node: ast.AST) -> bool:
    match node:
        case ast.Expr(ast.Constant()) | ast.Assert() | ast.JoinedStr() | ast.Assign([ast.Name("__all__")]):
            return True
        case ast.Call(ast.Name(name) | ast.Attribute(attr=name)):
            return name in SAYING or name.endswith("Error")
    return not isinstance(node, ast.AST)


def places(node: ast.AST, inside: bool = False) -> Iterator[tuple[Any, bool, Any, Any]]:
    """Every node, whether it is in a function, and the list and index or the object and name that hold it."""
    for field, value in ast.iter_fields(node):
        within = inside or (isinstance(node, ast.FunctionDef) and field == "body")
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if not is_skipped(child) and field not in ("annotation", "returns", "decorator_list"):
                yield (child, within, value, i) if isinstance(value, list) else (child, within, node, field)
                yield from places(child, within)


def mutants(path: Path) -> Iterator[tuple[int, str, bool, CodeType]]:
    """The file itself, then its mutants: the line, a description, whether it is in a function, the code."""
    tree = ast.parse(path.read_text())
    yield 0, "", False, compile(tree, path, "exec")
    for node, inside, holder, key in list(places(tree)):
        at = node.target if isinstance(node, ast.comprehension) else node
        line, column = getattr(at, "lineno", 0), getattr(at, "col_offset", 0)
        put = holder.__setitem__ if isinstance(holder, list) else holder.__setattr__
        for new in map(copy.deepcopy, replacements(node)):
            for each in ast.walk(new):
                each.__dict__.update(lineno=line, end_lineno=line, col_offset=column, end_col_offset=column)
            before, after = (ast.unparse(one).partition("\n")[0] for one in (node, new))
            put(key, new)
            yield line, f"{path}:{line}:{column}  {before}  ->  {after}", inside, compile(tree, path, "exec")
            put(key, node)


class Tracer:
    """A pytest plugin: which lines of some files each test executes, and the seconds that it takes."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._names = {str(path.resolve()): str(path) for path in paths}
        self.lines: dict[str, set[tuple[str, int]]] = defaultdict(set)
        self.seconds: Counter[str] = Counter()
        self.failed: list[str] = []

    def pytest_runtest_protocol(self, item: Any) -> None:
        executed = self.lines[item.nodeid]

        def trace(frame: FrameType, *_: Any) -> Any:
            path = self._names.get(frame.f_code.co_filename)
            if path is None:
                return None
            executed.add((path, frame.f_lineno))
            return trace

        threading.settrace(trace)
        sys.settrace(trace)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        self.failed += [report.nodeid] * report.failed


def run_tests(tests: Sequence[str], out: Path, *plugins: object) -> int:
    """Pytest, in this process."""
    import pytest

    options = ["-qx", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", KINDS]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", f"--basetemp={out}/tmp"]
    return int(pytest.main([*options, *tests], plugins=list(plugins)))


def forked(work: Callable[[Path], int], seconds: float) -> int | None:
    """What ``work`` returns in a process of its own; None if it takes longer."""
    out = Path(tempfile.mkdtemp(prefix="mutant-"))
    child = os.fork()
    if child == 0:
        code = NO_ANSWER
        with contextlib.suppress(BaseException):
            os.setsid()
            os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(out)
            log = os.open(out / "log", os.O_CREAT | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = work(out)
        os._exit(code)
    until, ended, status = time.monotonic() + seconds, 0, 0
    while not ended and time.monotonic() < until:
        time.sleep(0.02)
        ended, status = os.waitpid(child, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what its tests have left behind, too
    if not ended:
        os.waitpid(child, 0)
    shutil.rmtree(out, ignore_errors=True)
    return os.waitstatus_to_exitcode(status) if ended else None


def learn(paths: Sequence[Path], tests: Sequence[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """The lines and the seconds of each test; imports what the tests import, but for this package."""
    known = Path(tempfile.mkstemp()[1])

    def work(out: Path) -> int:
        code = run_tests(tests, out, tracer := Tracer(paths))
        lines = {test: sorted(where for where in found if where[0]) for test, found in tracer.lines.items()}
        known.write_text(json.dumps([lines, tracer.seconds, tracer.failed, list(sys.modules)]))
        return code

    forked(work, 3600)
    lines, seconds, failed, modules = json.loads(known.read_text() or '[{}, {}, ["no test ran"], []]')
    if failed:
        sys.exit(f"Without any mutant: {failed}")
    for name in modules:
        if name.split(".")[0] not in ("tune_rescon", "tests", "conftest") and not name.startswith("__"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    return lines, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("modules", nargs="+", type=Path, help="files or folders, relative to the checkout")
    parser.add_argument("--tests", nargs="+", required=True)
    parser.add_argument("--share", type=float, default=1.0, help="of the mutants, drawn with seed 0")
    parser.add_argument("--seconds", type=float, default=5.0, help="of tests for one mutant, at most")
    parser.add_argument("--survivors", type=Path, default=Path(os.devnull))
    parser.add_argument("--again", type=Path)
    chosen = parser.parse_args()
    paths = [p for m in chosen.modules for p in ([m] if m.suffix else sorted(m.glob("[!_]*.py")))]
    lines, seconds = learn(paths, chosen.tests)
    quickest = sorted(seconds, key=lambda test: seconds[test])
    by_line: dict[tuple[str, int], list[str]] = defaultdict(list)
    for test in quickest:
        for file, line in lines[test]:
            by_line[file, line].append(test)
    again = set(chosen.again.read_text().splitlines()) if chosen.again else None
    for path in paths:
        every = [test for test in quickest if any(file == str(path) for file, _ in lines[test])] or quickest
        unchanged, *drawn = mutants(path)
        count, score = len(drawn), Counter[str]()
        if again is not None:
            drawn = [mutant for mutant in drawn if mutant[1] in again]
        if chosen.share < 1:
            drawn = random.Random(0).sample(drawn, round(chosen.share * len(drawn)))
        for line, words, inside, code in [unchanged, *drawn]:
            tests = by_line[str(path), line] if inside else every
            total = accumulate(seconds[test] for test in tests)
            tests = [test for test, s in zip(tests, total, strict=True) if s < chosen.seconds] or tests[:1]

            def judge(out: Path, path: Path = path, code: CodeType = code, tests: list[str] = tests) -> int:
                whole = SourceFileLoader.get_code

                def get_code(self: SourceFileLoader, fullname: str) -> CodeType | None:
                    return code if self.path == str(path.resolve()) else whole(self, fullname)

                with patch.object(SourceFileLoader, "get_code", get_code):
                    return run_tests(tests, out)

            result = forked(judge, 20 + 5 * sum(seconds[test] for test in tests)) if tests else 0
            if result == NO_ANSWER or (result and not words):
                sys.exit(f"{path}: exit code {result} of {words or 'the file as it is'}")
            what = "survived" if result == 0 else "timed out" if result is None else "killed"
            score[what if tests else "not run"] += bool(words)
            if words and what == "survived":
                print(words, "" if tests else "(no test runs it)", flush=True)
                with chosen.survivors.open("a") as kept:
                    kept.write(f"{words}\n")
        print(f"== {path}: {len(drawn)} of {count}, {dict(score)}", flush=True)


if __name__ == "__main__":
    main()

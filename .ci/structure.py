"""The size and shape of the package in numbers: files, lines, imports, long functions, long signatures.

make structure prints the numbers. `.ci/structure.py --list` also names the places that they count.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tune_rescon"

#: Limits of the lists below.
FILE_LINES = 450
FUNCTION_LINES = 45
PARAMETERS = 8
POSITIONAL = 4

#: The main path: one search with one process for each trial, on one machine, with a local storage and without
#: an optional flag. It starts in these modules, ...
ENTRIES = ("search", "tuning.ray.worker", "tracking.worker")
#: ... and passes none of these, although a module on it imports them.
OFF_PATH = (
    "data.image_folder",
    "data.image_tree",
    "data.zip_archive",
    "data.parts",
    "storage.checkpoints",
    "storage.mirror",
    "storage.remote",
    "timm_models",
    "training.compile",
    "training.cuda_graphs",
    "training.probe",
    "tuning.importance",
    "tuning.overview",
    "tuning.ray.multi_process",
    "tuning.ray.staging",
    "tuning.resume",
    "tuning.tensorboard_callback",
    "tuning.warm_start",
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(file: Path) -> str:
    """Return a file's dotted name; a package has the name of its folder."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def lazy_names(tree: ast.Module) -> dict[str, str]:
    """Return the names that a package gives out without importing them, with their modules.

    They are its imports under `if TYPE_CHECKING` (tune_rescon/lazy.py).
    """
    blocks = [node.body for node in tree.body if isinstance(node, ast.If)]
    imports = [node for body in blocks for node in body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def statements(body: list[ast.stmt], *, inner: bool) -> Iterator[ast.ImportFrom]:
    """Yield the imports of a body that run: none below `if TYPE_CHECKING`; in functions only with `inner`."""
    for node in body:
        if isinstance(node, ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif inner or not isinstance(node, Function):
            for part in ("body", "orelse", "handlers", "finalbody"):
                yield from statements(getattr(node, part, []), inner=inner)


@dataclass(frozen=True)
class Package:
    """The parsed package and who imports whom."""

    files: dict[str, Path]
    trees: dict[str, ast.Module]

    @classmethod
    def read(cls) -> "Package":
        """Parse every file."""
        files = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}
        return cls(files, {name: ast.parse(file.read_text()) for name, file in files.items()})

    def imports(self, name: str, *, inner: bool) -> set[str]:
        """Return the modules of the package that a module imports.

        A name that a package's `__init__` only passes on counts as an import of the module that defines it.
        """
        found = set()
        for node in statements(self.trees[name].body, inner=inner):
            for alias in node.names:
                home = self._home(node.module or "", alias.name)
                if home is not None and home != name:
                    found.add(home)
        return found

    def _home(self, module: str, name: str) -> str | None:
        if f"{module}.{name}" in self.files:
            return f"{module}.{name}"
        if module not in self.files or self.files[module].name != "__init__.py":
            return module if module in self.files else None
        if (lazy := lazy_names(self.trees[module]).get(name)) is not None:
            return lazy
        for node in self.trees[module].body:
            if isinstance(node, ast.ImportFrom) and name in {
                alias.asname or alias.name for alias in node.names
            }:
                return self._home(node.module or "", name)
        return module

    def main_path(self) -> set[str]:
        """Return the modules on the main path."""
        off = {f"tune_rescon.{name}" for name in OFF_PATH}
        found, waiting = set(), [f"tune_rescon.{name}" for name in ENTRIES]
        while waiting:
            name = waiting.pop()
            if name not in found and name not in off:
                found.add(name)
                waiting += self.imports(name, inner=True)
        return found

    def functions(self) -> Iterator[tuple[str, Function, bool]]:
        """Yield each function with its place, and whether it is a method."""
        for name, tree in self.trees.items():
            methods = {
                id(node) for owner in ast.walk(tree) if isinstance(owner, ast.ClassDef) for node in owner.body
            }
            for node in ast.walk(tree):
                if isinstance(node, Function):
                    place = f"{self.files[name].relative_to(ROOT)}:{node.lineno} {node.name}"
                    yield place, node, id(node) in methods


def is_given(function: Function) -> bool:
    """Return whether something else sets a function's parameters.

    A command's are its options. An `@override` has those of a library's hook.
    """
    return any(
        word in ast.unparse(d) for d in function.decorator_list for word in ("command", "option", "override")
    )


def parameters(function: Function, method: bool) -> tuple[int, int]:
    """Return how many parameters a function has, and how many of them are positional; without `self`."""
    own = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)
    positional = len(function.args.posonlyargs) + len(function.args.args) - (method and not own)
    return positional + len(function.args.kwonlyargs), positional


def code_lines(function: Function) -> int:
    """Return a function's lines without its signature, its docstring and its inner functions."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    inner = [node for part in body for node in ast.walk(part) if isinstance(node, Function)]
    whole = (body[-1].end_lineno or 0) - body[0].lineno + 1
    return whole - sum((node.end_lineno or 0) - node.lineno + 1 for node in inner)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, by what each module can reach."""
    reach = {}
    for name in graph:
        seen: set[str] = set()
        waiting = list(graph[name])
        while waiting:
            if (next_name := waiting.pop()) not in seen:
                seen.add(next_name)
                waiting += graph[next_name]
        reach[name] = seen
    groups = {
        frozenset({n for n in reach[name] if name in reach[n]}) for name in graph if name in reach[name]
    }
    return [sorted(group) for group in groups]


def main() -> None:
    """Print the numbers."""
    package = Package.read()
    lines = {name: len(file.read_text().splitlines()) for name, file in package.files.items()}
    graph = {name: package.imports(name, inner=False) for name in package.files}
    importers: dict[str, set[str]] = {name: set() for name in package.files}
    for name in package.files:
        for other in package.imports(name, inner=True):
            importers[other].add(name)
    single = [f"{name} <- {min(importers[name])}" for name in sorted(importers) if len(importers[name]) == 1]
    functions = list(package.functions())
    long = [f"{place}: {n}" for place, node, _ in functions if (n := code_lines(node)) > FUNCTION_LINES]
    counts = [(place, *parameters(node, method)) for place, node, method in functions if not is_given(node)]
    total = sum(lines.values())
    table: list[tuple[str, object, list[str]]] = [
        ("files", len(package.files), []),
        ("lines", total, []),
        ("lines in a file, mean", round(total / len(package.files)), []),
        (
            f"files of more than {FILE_LINES} lines",
            None,
            [f"{name}: {n}" for name, n in lines.items() if n > FILE_LINES],
        ),
        ("modules with one importer", None, single),
        ("files on the main path", None, sorted(package.main_path())),
        ("import circles", None, [" ".join(group) for group in circles(graph)]),
        (f"functions of more than {FUNCTION_LINES} lines", None, long),
        (
            f"functions of more than {PARAMETERS} parameters",
            None,
            [f"{place}: {n}" for place, n, _ in counts if n > PARAMETERS],
        ),
        (
            f"functions of more than {POSITIONAL} positional parameters",
            None,
            [f"{place}: {n}" for place, _, n in counts if n > POSITIONAL],
        ),
    ]
    for label, number, places in table:
        print(f"{number if number is not None else len(places):>7,}  {label}")
        if "--list" in sys.argv[1:]:
            print(*(f"             {place}" for place in places), sep="\n", end="\n" * bool(places))


if __name__ == "__main__":
    main()

"""Find habits of prose that make a reader stop, and links of the Markdown beside docs/ that lead nowhere.

    python .ci/docs_lint.py

Prints each place and exits with 1 if there is any. The list holds only what is unambiguous: expressions that
have a plainer word in every place. Only strings and comments are checked, not code. `make docs` checks the
links within docs/.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: An expression, and what to write instead.
HABITS = {
    r"\bgo(?:es|ing)? on\b(?! to\b)": "continue",
    r"\bwent on\b": "continued",
    r"\bwhoever\b": "the user, the caller, the process that",
    r"\banew\b": "again",
    r"\bamid\b": "during, in the middle of",
    r"\blest\b": "so that ... not",
    r"\bis (?-i:none)\b": "name what is absent",
    r"\bso many\b(?! times)": "the number",
    r"\bstands? still\b": "hangs",
    r"\bheed(?:s|ed)?\b": "act on",
    r"\bhears? of\b": "receives",
    r"\bnobody's\b": "no one process's",
    r"\bof its own accord\b": "by itself",
}

#: Where prose is checked. CHANGELOG.md is a record of what was written then.
PYTHON = ("tune_rescon", "benchmarks", "tests", "examples")
MARKDOWN = ("README.md", "CONTRIBUTING.md", "docs", "benchmarks/notes")

#: A link to a file: its target, without the anchor.
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line number and text: of each string and comment of a Python file, of each line of another."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), start=1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def dead_links(path: Path) -> Iterator[str]:
    """Yield each link of a Markdown file that leads to no file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        for target in LINK.findall(line):
            if not (path.parent / target).exists():
                yield f"{path.relative_to(ROOT)}:{number}: no such file: {target}"


def main() -> int:
    """Print what was found; return the exit code."""
    files = [path for folder in PYTHON for path in sorted((ROOT / folder).rglob("*.py"))]
    for name in MARKDOWN:
        files += sorted((ROOT / name).rglob("*.md")) if (ROOT / name).is_dir() else [ROOT / name]
    found = 0
    for path in files:
        for number, line in prose(path):
            for habit, instead in HABITS.items():
                for match in re.finditer(habit, line, re.IGNORECASE):
                    found += 1
                    where = f"{path.relative_to(ROOT)}:{number}"
                    print(f"{where}: `{match.group()}`: write: {instead}")
    if found:
        print(f"{found} habits of prose to mend")
    beside_docs = [*ROOT.glob("*.md"), *sorted((ROOT / "benchmarks").rglob("*.md"))]
    dead = [line for path in beside_docs for line in dead_links(path)]
    print(*dead, sep="\n", end="\n" if dead else "")
    return 1 if found or dead else 0


if __name__ == "__main__":
    sys.exit(main())

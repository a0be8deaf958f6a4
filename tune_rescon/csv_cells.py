"""Write rows of CSV without texts that a spreadsheet would run as formulas.

A spreadsheet takes a cell for a formula if it begins with ``=`` or one of a few other characters, even if it
is quoted. A formula can start programs and send the content of other cells elsewhere. The author of the
images may have chosen such texts as the names of classes or pictures.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Final

__all__ = ["csv_cell", "csv_line"]

#: The first characters of formulas. The last four are the wide forms of the first four.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_cell(value: object) -> object:
    """Return ``value`` for a cell, with an apostrophe before a text that may be a formula.

    Numbers, and texts of numbers, stay as they are.

    >>> csv_cell("=HYPERLINK(A1)"), csv_cell(-0.5), csv_cell("-0.5 -1e-05"), csv_cell("cat")
    ("'=HYPERLINK(A1)", -0.5, '-0.5 -1e-05', 'cat')
    """
    if isinstance(value, str) and value.startswith(_FORMULA) and not _is_numbers(value):
        return f"'{value}"
    return value


def csv_line(cells: Iterable[object]) -> str:
    """Return a line of CSV, with its line break, of cells that :func:`csv_cell` makes safe.

    >>> csv_line(["-x,y", None, 1.5])
    '"\\'-x,y",,1.5\\n'
    """
    line = io.StringIO(newline="")
    # Before Python 3.13, the writer quotes only those line breaks that are in its own terminator.
    csv.writer(line, lineterminator="\r\n").writerow(map(csv_cell, cells))
    return line.getvalue().removesuffix("\r\n") + "\n"


def _is_numbers(text: str) -> bool:
    try:
        return bool([float(part) for part in text.split(" ")])
    except ValueError:
        return False

"""Write rows of CSV whose texts no spreadsheet runs.

A spreadsheet takes a cell that begins with ``=`` or another of these characters for a formula, even if it is
quoted. A formula can start programs and send the content of other cells elsewhere. The names of classes and
pictures are such texts: the author of the images has chosen them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Final

__all__ = ["csv_cell", "csv_line"]

#: A text that begins with one of these may be taken for a formula; the last four are their wide forms.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_cell(value: object) -> object:
    """Return ``value`` for a cell: a text that may be a formula with an apostrophe before it.

    A number stays a number, and so do texts of numbers.

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
    # Before Python 3.13 the writer quotes only the line breaks that are in its own terminator.
    csv.writer(line, lineterminator="\r\n").writerow(map(csv_cell, cells))
    return line.getvalue().removesuffix("\r\n") + "\n"


def _is_numbers(text: str) -> bool:
    try:
        return bool([float(part) for part in text.split(" ")])
    except ValueError:
        return False

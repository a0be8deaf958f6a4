"""The meaning of each field of a configuration, read from the string below the field in the code."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from typing import Final

__all__ = ["field_descriptions"]

#: A cross-reference of Sphinx, whose target is all that a reader of plain text needs.
_ROLE: Final = re.compile(r":\w+:`~?\.?([^`]*)`")


def field_descriptions(kind: type) -> dict[str, str]:
    """Return the description of each field of a class, as plain text with `code` in single backquotes.

    A space file writes ``null`` for None, so the descriptions do as well.

    >>> from tune_rescon.config import TrialConfig
    >>> field_descriptions(TrialConfig)["ema_decay"]
    'Decay per step of the averaged weights, which are the ones validated; 0: no averaging.'
    """
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(node, ast.ClassDef)
    return {
        field.target.id: _plain(text.value.value)
        for field, text in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _plain(text: str) -> str:
    words = _ROLE.sub(r"`\1`", " ".join(text.split())).replace("``", "`")
    return re.sub(r"\bNone\b", "null", words)

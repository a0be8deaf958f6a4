"""The words and operators of a text, as a shell separates them.

``shlex`` does not suffice: it does not distinguish a quoted operator from an operator, ends a word at any
``#``, and knows neither heredocs nor the commands within a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["ShellSyntaxError", "Token", "shell_tokens"]

#: The longest ones first. ``$(`` begins a command whose output is a part of a word.
_OPERATORS: Final = (
    *("&>>", "<<<", "<<-", "&&", "||", ";;", "|&", "&>", ">&", "<&", ">>", "<<", ">|", "<>"),
    *("\n", ";", "&", "|", "(", ")", "<", ">"),
)


class ShellSyntaxError(ValueError):
    """A text that no shell would run, such as one with an open quote."""


@dataclass(frozen=True)
class Token:
    """A word without its quotes, or an operator."""

    text: str
    line: int
    is_operator: bool = False


def shell_tokens(text: str) -> Iterator[Token]:
    """Yield a text's words, without their quotes, and its operators; leave comments and heredocs out."""
    place, line, word = 0, 1, None
    heredocs: list[str] = []
    awaits_heredoc = False
    while place < len(text):
        char = text[place]
        if char in " \t\r\n;&|()<>":
            if word is not None:
                yield Token(word, line)
                if awaits_heredoc:
                    heredocs.append(word)
                    awaits_heredoc = False
                word = None
            if char in " \t\r":
                place += 1
                continue
            operator = next(each for each in _OPERATORS if text.startswith(each, place))
            yield Token(operator, line, is_operator=True)
            awaits_heredoc = operator in ("<<", "<<-")
            place += len(operator)
            if char == "\n":
                stop = _end_of_heredocs(text, place, heredocs)
                heredocs = []
                line += 1 + text.count("\n", place, stop)
                place = stop
        elif char == "#" and word is None:
            stop = text.find("\n", place)
            place = len(text) if stop < 0 else stop
        elif text.startswith("\\\n", place):
            place, line = place + 2, line + 1
        elif text.startswith("$(", place):
            # The operator ends the word; the command's output would be a part of it.
            yield from () if word is None else (Token(word, line),)
            yield Token("$(", line, is_operator=True)
            place, word = place + 2, None
        else:
            part, stop, inner = _part(text, place)
            # The output of a word's commands is not known, but the commands run.
            for command in inner:
                yield Token("$(", line, is_operator=True)
                yield from (Token(one.text, line, one.is_operator) for one in shell_tokens(command))
                yield Token(")", line, is_operator=True)
            line += text.count("\n", place, stop)
            place, word = stop, (word or "") + part
    if word is not None:
        yield Token(word, line)


def _end_of_heredocs(text: str, place: int, words: Sequence[str]) -> int:
    """Return the end of the heredocs that begin at ``place`` and that these words end, in order."""
    for word in words:
        end = re.compile(rf"^\t*{re.escape(word)}$\n?", re.MULTILINE).search(text, place)
        place = end.end() if end else len(text)
    return place


def _part(text: str, place: int) -> tuple[str, int, list[str]]:
    """Return a piece of a word without its quotes, where it ends, and the commands that run within it."""
    char = text[place]
    if char == "\\":
        return text[place + 1 : place + 2], place + 2, []
    if char == "'":
        return text[place + 1 : (stop := _find(text, "'", place + 1))], stop + 1, []
    if char == '"':
        return _double_quoted(text, place)
    if text.startswith("${", place):
        stop = _find(text, "}", place + 2)
        return text[place : stop + 1], stop + 1, []
    if char == "`":
        stop = _find(text, "`", place + 1)
        return "", stop + 1, [text[place + 1 : stop]]
    return char, place + 1, []


def _double_quoted(text: str, place: int) -> tuple[str, int, list[str]]:
    inner: list[str] = []
    found, at = "", place + 1
    while at < len(text):
        if text[at] == '"':
            return found, at + 1, inner
        if text[at] == "\\" and text[at + 1 : at + 2] in ("$", "`", '"', "\\", "\n"):
            found, at = found + text[at + 1 : at + 2].replace("\n", ""), at + 2
        elif text.startswith("$(", at):
            stop = _closing_bracket(text, at + 2)
            inner.append(text[at + 2 : stop])
            at = stop + 1
        elif text[at] == "`":
            stop = _find(text, "`", at + 1)
            inner.append(text[at + 1 : stop])
            at = stop + 1
        else:
            found, at = found + text[at], at + 1
    raise ShellSyntaxError("a quote that is not closed")


def _closing_bracket(text: str, at: int) -> int:
    depth = 1
    while at < len(text):
        if text[at] in "'\"`\\":
            at = _part(text, at)[1]
            continue
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if not depth:
            return at
        at += 1
    raise ShellSyntaxError("a bracket that is not closed")


def _find(text: str, closing: str, start: int) -> int:
    stop = text.find(closing, start)
    if stop < 0:
        raise ShellSyntaxError(f"no `{closing}` that closes")
    return stop

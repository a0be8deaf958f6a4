"""A parser of shell text: its simple commands, and the environment variables that each one gets.

A regular expression takes ``RAY_AUTH_MODE=token true; ray start`` for a start in token mode, and finds the
first of two ``--dashboard-host``, where Ray uses the last one. ``shlex`` takes a quoted operator for an
operator, ends a word at any ``#``, and knows neither heredocs nor command substitution. Therefore this module
parses as bash does: words and quotes, operators, subshells, assignments before a command and exported ones,
and the programs that run another one in another environment (``env``, ``sudo``, ``docker run``).

An assignment that may not happen or does not last (after ``||``, in a subshell) does not count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

__all__ = ["ShellCommand", "ShellSyntaxError", "commands_in"]

#: The operators, the longest ones first.
_OPERATORS: Final = (
    *("&>>", "<<<", "<<-", "&&", "||", ";;", "|&", "&>", ">&", "<&", ">>", "<<", ">|", "<>"),
    *("\n", ";", "&", "|", "(", ")", "<", ">"),
)


class ShellSyntaxError(ValueError):
    """A text that is not valid shell, such as one with an open quote."""


@dataclass(frozen=True)
class _Token:
    """A word without its quotes, or an operator."""

    text: str
    line: int
    is_operator: bool = False


def _shell_tokens(text: str) -> Iterator[_Token]:
    """Yield a text's words, without their quotes, and its operators; leave comments and heredocs out."""
    place, line, word = 0, 1, None
    heredocs: list[str] = []
    awaits_heredoc = False
    while place < len(text):
        char = text[place]
        if char in " \t\r\n;&|()<>":
            if word is not None:
                yield _Token(word, line)
                heredocs += [word] if awaits_heredoc else []
                awaits_heredoc, word = False, None
            if char in " \t\r":
                place += 1
                continue
            operator = next(operator for operator in _OPERATORS if text.startswith(operator, place))
            yield _Token(operator, line, is_operator=True)
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
            # This token ends the word, although the shell appends the command's output to it.
            yield from () if word is None else (_Token(word, line),)
            yield _Token("$(", line, is_operator=True)
            place, word = place + 2, None
        else:
            part, stop, inner = _part(text, place)
            # The output of a word's commands is not known, but the commands run.
            for command in inner:
                yield _Token("$(", line, is_operator=True)
                yield from (replace(token, line=line) for token in _shell_tokens(command))
                yield _Token(")", line, is_operator=True)
            line += text.count("\n", place, stop)
            place, word = stop, (word or "") + part
    if word is not None:
        yield _Token(word, line)


def _end_of_heredocs(text: str, place: int, words: Sequence[str]) -> int:
    """Return the end of the heredocs that begin at ``place``, one after the other, each ended by its word."""
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
    part, at = "", place + 1
    while at < len(text):
        if text[at] == '"':
            return part, at + 1, inner
        if text[at] == "\\" and text[at + 1 : at + 2] in ("$", "`", '"', "\\", "\n"):
            part, at = part + text[at + 1 : at + 2].replace("\n", ""), at + 2
        elif text[at] == "`" or text.startswith("$(", at):
            start = at + (1 if text[at] == "`" else 2)
            stop = _find(text, "`", start) if text[at] == "`" else _closing_bracket(text, start)
            inner.append(text[start:stop])
            at = stop + 1
        else:
            part, at = part + text[at], at + 1
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


#: Words of a text that look like a start of Ray.
_START_WORDS: Final = re.compile(r"\bray\s+(start|symmetric-run)\b")

_ASSIGNMENT: Final = re.compile(r"([A-Za-z_]\w*)(\+?=)(.*)", re.DOTALL)

_REDIRECTIONS: Final = ("&>>", "<<<", "<<-", "&>", ">&", "<&", ">>", "<<", ">|", "<>", "<", ">")

#: Words before a command that do not change which command it is.
_KEYWORDS: Final = ("!", "{", "}", "if", "then", "else", "elif", "fi", "do", "done", "while", "until", "time")
_PREFIXES: Final = ("command", "exec", "nohup", "setsid", "builtin", "nice", "ionice", "stdbuf", "timeout")
_SHELLS: Final = ("bash", "sh", "dash", "zsh", "ksh")

#: Programs whose arguments are text, not commands.
_TEXT_PROGRAMS: Final = (
    *("echo", "printf", "grep", "pgrep", "pkill", "sed", "awk", "cat", ":", "logger", "wall", "trap"),
)

#: The deepest nesting of shells within shells that is read.
_DEEPEST: Final = 8


def _program(word: str) -> str:
    return word.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class ShellCommand:
    """One simple command: its words without quotes, and the variables that its process is known to get."""

    words: tuple[str, ...]
    environment: Mapping[str, str]
    line: int = 1
    """The line in the text, counted from 1."""

    def option(self, name: str) -> str | None:
        """Return the value of ``--name=VALUE`` or ``--name VALUE``; None if it is missing.

        The last one counts, as for Ray.

        >>> ShellCommand(words=("ray", "start", "--port=1", "--port", "2"), environment={}).option("port")
        '2'
        """
        value = None
        for index, word in enumerate(self.words):
            key, equals, given = word.partition("=")
            if key == f"--{name}":
                following = self.words[index + 1] if index + 1 < len(self.words) else ""
                value = given if equals else following
        return value

    @property
    def is_head(self) -> bool:
        """True if this starts a head. The first node of ``ray symmetric-run`` is one."""
        return "--head" in self.words or "symmetric-run" in self.words[:2]

    @property
    def takes_text(self) -> bool:
        """True if the arguments are text, such as those of ``echo``."""
        return bool(self.words) and _program(self.words[0]) in _TEXT_PROGRAMS

    @property
    def ray_start(self) -> ShellCommand | None:
        """The ``ray start`` or ``ray symmetric-run`` here, also as another program's argument; or None."""
        if self.takes_text:
            return None
        for index, pair in enumerate(zip(self.words, self.words[1:], strict=False)):
            if _program(pair[0]) == "ray" and pair[1] in ("start", "symmetric-run"):
                return replace(self, words=self.words[index:])
        return None


@dataclass
class _Scope:
    """The variables of a shell."""

    exported: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    all_exported: bool = False

    def copy(self) -> _Scope:
        return _Scope(dict(self.exported), dict(self.others), self.all_exported)

    def assign(self, name: str, value: str) -> None:
        if self.all_exported or name in self.exported:
            self.exported[name] = value
        else:
            self.others[name] = value

    def export(self, words: Sequence[str]) -> None:
        if "-n" in words:
            self.unset(words)
            return
        for word in words:
            if match := _ASSIGNMENT.fullmatch(word):
                self.exported[match[1]] = match[3]
            elif word in self.others:
                self.exported[word] = self.others.pop(word)

    def unset(self, words: Sequence[str]) -> None:
        for word in words:
            self.exported.pop(word, None)
            self.others.pop(word, None)


def commands_in(text: str) -> list[ShellCommand]:
    """Return the simple commands of a text, in the order in which they are written.

    Raises:
        ShellSyntaxError: a quote or a bracket is not closed, or brackets are nested too deeply.
    """
    try:
        return _Reader(0).read(text, _Scope())
    except RecursionError:
        raise ShellSyntaxError("brackets within brackets without end") from None


class _Reader:
    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._commands: list[ShellCommand] = []
        self._tokens: list[_Token] = []
        self._next = 0

    def read(self, text: str, scope: _Scope) -> list[ShellCommand]:
        if self._depth > _DEEPEST:
            raise ShellSyntaxError("shells within shells without end")
        self._tokens = list(_shell_tokens(text))
        while self._next < len(self._tokens):
            self._list(scope)
            # An extra bracket, such as that of a `case`, ends nothing.
            self._next += 1
        return self._commands

    def _list(self, scope: _Scope) -> None:
        """Read commands up to a closing bracket or the end, and apply their assignments to ``scope``."""
        before = ";"
        while self._next < len(self._tokens) and self._peek() != ")":
            # Variables set in a pipe or a background job are lost. A command after `||` may not run.
            inner = scope.copy()
            self._pipe_part(inner)
            after = self._peek() if self._next < len(self._tokens) else ";"
            self._next += after != ")"
            if before not in ("||", "|", "|&") and after not in ("&", "|", "|&"):
                vars(scope).update(vars(inner))
            before = after

    def _peek(self) -> str:
        token = self._tokens[self._next]
        return token.text if token.is_operator else ""

    def _pipe_part(self, scope: _Scope) -> None:
        """Read one simple command, with the subshells in it."""
        words: list[str] = []
        line = self._tokens[self._next].line
        while self._next < len(self._tokens):
            token = self._tokens[self._next]
            if not token.is_operator:
                line = line if words else token.line
                words.append(token.text)
                self._next += 1
            elif token.text in ("(", "$("):
                self._next += 1
                self._list(scope.copy())
                if self._next >= len(self._tokens):
                    raise ShellSyntaxError("a bracket that is not closed")
                self._next += 1
            elif token.text in _REDIRECTIONS:
                # The next word is a file, unless the shell makes one of a command: `<(command)`.
                self._next += 1
                if self._next < len(self._tokens) and not self._tokens[self._next].is_operator:
                    self._next += 1
            else:
                break
        self._command(words, line, scope)

    def _command(self, words: Sequence[str], line: int, scope: _Scope) -> None:
        words, assigned = _split(words)
        if not words:
            for name, value in assigned.items():
                scope.assign(name, value)
            return
        program, rest = _program(words[0]), words[1:]
        own = scope.copy()
        own.exported |= assigned
        options = "".join(word for word in rest if word[:1] == "-")
        if program == "export" or (program in ("declare", "typeset") and "x" in options):
            scope.export([word for word in rest if word == "-n" or not word.startswith("-")])
        elif program == "unset":
            scope.unset(rest)
        elif program == "set" and rest[:1] in (["-a"], ["+a"]):
            scope.all_exported = rest[0] == "-a"
        elif program == "eval":
            self._text(" ".join(rest), line, own)
        elif program in _RUNNERS and (program != "docker" or rest[:1] in (["run"], ["exec"])):
            left, inner = _RUNNERS[program](rest, own)
            self._command(left, line, inner)
        elif program in _PREFIXES:
            self._command(_without_options(rest, numbers=program in ("timeout", "nice", "ionice")), line, own)
        else:
            self._commands.append(ShellCommand(words=tuple(words), environment=own.exported, line=line))
            if program not in _TEXT_PROGRAMS and self._commands[-1].ray_start is None:
                for text in _shell_texts(program, rest):
                    self._text(text, line, own)

    def _text(self, text: str, line: int, scope: _Scope) -> None:
        """Read the text that another shell runs, with the exported variables."""
        inner = _Reader(self._depth + 1).read(text, _Scope(dict(scope.exported)))
        self._commands += [replace(command, line=line + command.line - 1) for command in inner]


def _split(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return a command's words without the keywords and assignments before them, and the assignments."""
    assigned: dict[str, str] = {}
    for index, word in enumerate(words):
        if match := _ASSIGNMENT.fullmatch(word):
            name, operator, value = match.groups()
            assigned[name] = value if operator == "=" else assigned.get(name, "") + value
        elif assigned or word not in _KEYWORDS:
            return list(words[index:]), assigned
    return [], assigned


def _shell_texts(program: str, rest: Sequence[str]) -> Iterator[str]:
    """Yield the arguments of a program that another shell reads: ``bash -lc TEXT``, ``ssh HOST TEXT``."""
    if program in _SHELLS:
        for index, word in enumerate(rest[:-1]):
            if re.fullmatch(r"-[a-z]*c", word):
                yield rest[index + 1]
                return
    for word in rest:
        if _START_WORDS.search(word):
            yield word


def _without_options(words: Sequence[str], *, numbers: bool) -> list[str]:
    left = list(words)
    while left and (left[0].startswith("-") or (numbers and re.fullmatch(r"[\d.]+[smhd]?|\$\S+", left[0]))):
        left.pop(0)
    return left


def _env(words: Sequence[str], scope: _Scope) -> tuple[list[str], _Scope]:
    left = list(words)
    while left and left[0].startswith("-"):
        option = left.pop(0)
        if option in ("-i", "-", "--ignore-environment"):
            scope = _Scope()
        elif option in ("-u", "--unset", "-C", "--chdir") and left:
            name = left.pop(0)
            scope.unset([name] if option in ("-u", "--unset") else [])
        elif option.startswith("--unset="):
            scope.unset([option.partition("=")[2]])
    return left, scope


def _sudo(words: Sequence[str], scope: _Scope) -> tuple[list[str], _Scope]:
    """Without ``-E``, the command gets an environment with the named variables only."""
    left, kept = list(words), {}
    while left and left[0].startswith("-"):
        option = left.pop(0)
        if option in ("-E", "--preserve-env"):
            kept = scope.exported
        elif option.startswith("--preserve-env="):
            names = option.partition("=")[2].split(",")
            kept = {name: value for name, value in scope.exported.items() if name in names}
        elif option in ("-u", "-g", "-h", "-p", "-C", "-U", "--user", "--group") and left:
            left.pop(0)
    return left, _Scope(dict(kept))


def _docker(words: Sequence[str], scope: _Scope) -> tuple[list[str], _Scope]:
    """The command gets only the variables of ``-e NAME=VALUE``, and of ``-e NAME`` with their value here."""
    given: dict[str, str] = {}
    for index, word in enumerate(words):
        key, equals, value = word.partition("=")
        if key == "--env" and equals:
            text = value
        elif word in ("-e", "--env") and index + 1 < len(words):
            text = words[index + 1]
        else:
            continue
        if match := _ASSIGNMENT.fullmatch(text):
            given[match[1]] = match[3]
        elif text in scope.exported:
            given[text] = scope.exported[text]
    # The image, and options with a separate value, are left in front of the command, as of any program.
    return ["container", *words[1:]], _Scope(given)


#: The programs that run another one; each function returns that command, and its variables.
_RUNNERS: Final[Mapping[str, Callable[[Sequence[str], _Scope], tuple[list[str], _Scope]]]] = {
    "env": _env,
    "sudo": _sudo,
    "docker": _docker,
}

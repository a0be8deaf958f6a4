"""The sections of the page that are text and tables. All text from outside the package is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from tune_rescon.reporting.analysis import best_command, device_hours, failures, savings, timeline
from tune_rescon.reporting.formatting import (
    STATE_COLOUR,
    duration,
    format_number,
    in_hand_words,
    pairs,
    value_words,
)
from tune_rescon.reporting.page.plots import Panel
from tune_rescon.reporting.rows import comparison_headings, comparison_row, headings, ranked, row
from tune_rescon.tuning import StudyResult, TrialRecord

__all__ = [
    "best",
    "cards",
    "comparison_table",
    "failure_table",
    "images",
    "panel",
    "space_history",
    "title",
    "trials",
]

#: Maximum number of trials that one line lists.
NAMED = 20

#: Number of rows above which a table is laid out only while it is visible.
LONG = 50


def title(result: StudyResult, written: datetime) -> str:
    """Return the header: the name, the state of the search, and the time at which the page was written."""
    state = result.state.value
    about = f'<p class="soft">{_text(result.space.description)}</p>' if result.space.description else ""
    failure = f'<p class="bad">{_text(result.failure)}</p>' if result.failure else ""
    return (
        f'<header><h1>{_text(result.name)}</h1><span class="badge {state}">{state}</span>'
        f'<span class="soft push">{written:%Y-%m-%d %H:%M}</span>'
        f'<button class="plain" id="theme" type="button">light / dark</button></header>{about}{failure}'
    )


def cards(result: StudyResult) -> str:
    """Return the cards with the most important figures."""
    return f'<div class="cards">{"".join(_cards(result))}</div>'


def _cards(result: StudyResult) -> Iterator[str]:
    best, saved, found = result.best, savings(result), timeline(result)
    ended = sum(trial.state.is_final for trial in result.trials)
    if best is not None:
        yield _card(
            format_number(best.value), f"{result.metric} of trial {best.number}, epoch {best.value_epoch}"
        )
    yield _card(f"{ended} / {max(result.space.budget.trials, len(result.trials))}", "trials ended")
    yield _card(f"{saved.epochs}", "epochs run")
    if saved.epochs_saved:
        spared = f"epochs saved, ~{format_number(round(saved.hours_saved, 2))} {result.device}-hours"
        yield _card(f"{saved.share:.0%}", spared)
    yield _card(duration(saved.hours * 3600), f"of {result.device} time")
    spent = device_hours(result)
    if len(spent) > 1:
        yield from (_card(duration(hours * 3600), f"on {kind}") for kind, hours in spent.items())
    if found.stretches:
        yield _card(f"{found.utilisation:.0%}", f"of {found.slots} slots' time in epochs")


def _card(value: str, words: str) -> str:
    return f'<div class="card"><b>{_text(value)}</b><span>{_text(words)}</span></div>'


def best(result: StudyResult) -> str:
    """Return the best trial, its parameters, the command that trains it, and a better unfinished trial."""
    command = best_command(result)
    if result.best is None or command is None:
        return (
            f"<section><h2>Best trial</h2><p>No trial has a finite {_text(result.metric)} yet.</p></section>"
        )
    winner = result.best
    items = "".join(
        f"<div><span>{_text(name)}</span>{_text(format_number(value))}</div>"
        for name, value in winner.parameters.items()
    )
    in_hand = in_hand_words(result)
    note = f"<p>{_text(in_hand)}</p>" if in_hand else ""
    return (
        f"<section><h2>Best trial: {winner.number}</h2>"
        f'<p class="soft">{_text(_winner_words(result, winner))}</p>{note}<div class="pairs">{items}</div>'
        f'<div class="command"><pre id="command">{_text(command)}</pre>'
        '<button class="plain" type="button" data-copy="command">copy</button></div></section>'
    )


def _winner_words(result: StudyResult, winner: TrialRecord) -> str:
    words = f"{value_words(winner)}."
    if not result.front:
        return words
    numbers = ", ".join(str(trial.number) for trial in result.front)
    return f"{words} Pareto front of {result.metric} against {result.against}, the cheapest first: {numbers}."


def panel(one: Panel) -> str:
    """Return a section with a heading, a note, and the elements of its plots."""
    places = "".join(
        f'<div class="wide"><div class="chart" id="{_text(chart.key)}" role="img"'
        f' aria-label="{_text(chart.label)}" style="min-height:{chart.height}px"></div></div>'
        for chart in one.charts
    )
    half = ' class="half"' if one.half else ""
    note = f'<p class="soft">{_text(one.note)}</p>'
    return f'<section{half}><h2>{_text(one.heading)}</h2>{note}<div class="charts">{places}</div></section>'


def trials(result: StudyResult) -> str:
    """Return the table of all trials, the best first."""
    body = "".join(_trial(result, trial) for trial in ranked(result))
    note = "The furthest first, and of those the best. A click on a heading sorts."
    table = _table(headings(result), body, "sortable")
    return f'<section><h2>Trials</h2><p class="soft">{note}</p>{table}</section>'


def _trial(result: StudyResult, trial: TrialRecord) -> str:
    number, state, *rest = row(result, trial)
    is_best = result.best is not None and trial.number == result.best.number
    fate = f'<td class="fate" style="--fate:{STATE_COLOUR[trial.state]}">{_text(state)}</td>'
    kind = ' class="best"' if is_best else ""
    return f"<tr{kind}><td>{number}</td>{fate}{_cells(rest)}</tr>"


def failure_table(result: StudyResult) -> str:
    """Return the table of the causes of failure; empty if no trial failed."""
    found = failures(result)
    if not found:
        return ""
    body = "".join(
        f'<tr><td class="fate" style="--fate:{STATE_COLOUR[one.state]}">{one.state.value}</td>'
        f"<td>{len(one.numbers)}</td>"
        f'<td class="words">{_cause(one.cause, one.details)}</td>'
        f'<td class="words">{_text(_named(one.numbers))}</td></tr>'
        for one in found
    )
    table = _table(("fate", "trials", "cause", "which"), body)
    return f"<section><h2>What went wrong</h2>{table}</section>"


def _cause(cause: str, details: str) -> str:
    if details in ("", cause):
        return _text(cause)
    return f"<details><summary>{_text(cause)}</summary><pre>{_text(details)}</pre></details>"


def _named(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:NAMED]))
    return shown if len(numbers) <= NAMED else f"{shown} and {len(numbers) - NAMED} more"


def space_history(result: StudyResult) -> str:
    """Return the changes that resumes made to the space; empty without changes."""
    if not result.space_history:
        return ""
    items = "".join(f"<li>{_text(line)}</li>" for line in result.space_history)
    note = "Each trial keeps the configuration that it ran with."
    return f'<section><h2>Changes of the space</h2><p class="soft">{note}</p><ul>{items}</ul></section>'


def images(result: StudyResult) -> str:
    """Return the files found in and left out of each folder or zip; empty for datasets known by name."""
    items = "".join(
        f"<li>{_text(f'{name}: {line}')}</li>"
        for name, account in result.accounts.items()
        for line in account.lines()
    )
    return f"<section><h2>Images</h2><ul>{items}</ul></section>" if items else ""


def comparison_table(results: Sequence[StudyResult]) -> str:
    """Return the table of the searches side by side."""
    body = "".join(f"<tr>{_cells(comparison_row(result))}</tr>" for result in results)
    best = "".join(
        f'<p class="soft">{_text(result.name)}: {_text(pairs(result.best.parameters))}</p>'
        for result in results
        if result.best is not None
    )
    return f"<section><h2>Searches</h2>{_table(comparison_headings(), body)}{best}</section>"


def _table(names: Iterable[str], body: str, kind: str = "") -> str:
    heads = "".join(_head(name, sorts=bool(kind)) for name in names)
    size = " long" if body.count("<tr") > LONG else ""
    return (
        f'<div class="rows{size}"><table class="{kind}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _head(name: str, *, sorts: bool) -> str:
    text = _text(name.replace("_", " "))
    fate = ' class="fate"' if name in ("state", "fate", "search") else ""
    return f'<th scope="col"{fate}>{f"<button>{text}</button>" if sorts else text}</th>'


def _cells(texts: Iterable[str]) -> str:
    return "".join(f"<td>{_text(text)}</td>" for text in texts)


def _text(value: object) -> str:
    return html.escape(str(value))

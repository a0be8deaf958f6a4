"""What MLflow shows on a search's own page: a few lines of markdown."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from tune_rescon.reporting.analysis import rung_survival, savings
from tune_rescon.reporting.documents import markdown_table
from tune_rescon.reporting.rows import headings, ranked, row
from tune_rescon.reporting.words import figure, pairs, value_words
from tune_rescon.tuning import SearchState, StudyResult

__all__ = ["note_text"]

#: Trials that are named.
BEST: Final = 5

#: Characters of a note at most: MLflow's limit of a tag is 8,000 bytes.
LONGEST: Final = 5000


def note_text(result: StudyResult) -> str:
    """The best five, the rungs, the cost, and the commands to look closer and to go on."""
    return "\n\n".join(_paragraphs(result))[:LONGEST]


def _paragraphs(result: StudyResult) -> Iterator[str]:
    saved = savings(result)
    yield (
        f"**{result.state.value}**: {len(result.trials)} trials, {saved.epochs} epochs,"
        f" {figure(round(saved.hours, 3))} {result.device}-hours; early stopping spared"
        f" {saved.epochs_saved} epochs ({saved.share:.0%})."
    )
    if result.failure:
        yield result.failure
    if result.best is not None:
        best = result.best
        yield f"Best: trial_{best.number:04d}, {value_words(best)}: {pairs(best.parameters)}"
        yield "\n".join(markdown_table(headings(result), (row(result, t) for t in ranked(result)[:BEST])))
    if result.space_history:
        yield "\n".join(["Changes of the space:\n", *(f"- {line}" for line in result.space_history)])
    rungs = (f"{rung.epoch}: {rung.reached} came, {rung.went_on} went on" for rung in rung_survival(result))
    yield f"Rungs by epoch: {'; '.join(rungs)}."
    storage = str(result.url or result.folder).rpartition("/")[0]
    where = shlex.join([result.name, "--storage", storage])
    yield f"Look closer: `python -m tune_rescon.report {where}`"
    if result.state is not SearchState.FINISHED:
        yield f"Go on, once nobody drives it: `python -m tune_rescon.search --resume {where}`"

"""Telling a person how far decoding is: a bar on standard error, or a callable of theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Progress", "reporting"]

#: True: draw a bar; a callable: gets (images done, images in all) from time to time; False: silence.
Progress = bool | Callable[[int, int], None]


@contextmanager
def reporting(progress: Progress, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many more are done."""
    if callable(progress):
        yield _counting(progress, total)
    elif progress:
        with _bar(title, total) as advance:
            yield advance
    else:
        yield lambda _: None


def _counting(progress: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return advance


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda more: bar.advance(task, more)

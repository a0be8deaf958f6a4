"""A search with somebody in front of it: shown while it runs, summed up when it ends; its exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console

from tune_rescon.command import INTERRUPTED
from tune_rescon.errors import ClusterError, SearchError, presentable
from tune_rescon.passwords import shell_command
from tune_rescon.reporting.presentation import SearchPresentation
from tune_rescon.reporting.table import print_left_over, print_result
from tune_rescon.spaces import Space
from tune_rescon.tuning import Gauges, RunOptions, StudyResult, absolute_storage, run_search, sync_command

if TYPE_CHECKING:
    from tune_rescon.reporting.events import EventLines
    from tune_rescon.reporting.live.view import LiveView

__all__ = ["resume_command", "run_shown"]


def run_shown(
    space: Space,
    options: RunOptions,
    console: Console,
    *,
    live: bool,
    resume: str,
    presentation: SearchPresentation | None = None,
    tell: Callable[[StudyResult, Console], None] = print_result,
) -> int:
    """Run a search, and say how it ended.

    Args:
        space: what to search.
        options: where.
        console: what to print to.
        live: whether it is drawn in place; else a line for each event.
        resume: the command that goes on with it.
        presentation: what draws its page.
        tell: prints the result, as soon as the trials have ended.

    Returns:
        0: done; 1: it failed; 130: it was interrupted.

    Raises:
        UserError: something given is wrong.
        SearchError, ClusterError: a new search failed before its first trial.
        KeyboardInterrupt: before the first trial of a new search.
    """

    def say(text: str) -> None:
        console.print(presentable(text), markup=False, soft_wrap=True)

    begun = options.resume
    try:
        with ExitStack() as drawn:
            view = drawn.enter_context(_shown(space, options, console, live=live))

            def show(result: StudyResult) -> None:
                # The live table leaves the screen before the result's is printed.
                drawn.close()
                tell(result, console)

            def attend(gauges: Gauges) -> None:
                nonlocal begun
                begun = True
                view.attend(gauges)

            result = run_search(
                space,
                options,
                listeners=[view],
                presentation=presentation or SearchPresentation(),
                say=lambda text: view.say(presentable(text)),
                attend=attend,
                on_result=show,
            )
    except (SearchError, ClusterError) as error:
        if not begun:
            raise
        click.echo(presentable(f"The search failed: {error}"), err=True)
        say(f"Go on with: {resume}")
        return 1
    except KeyboardInterrupt:
        if not options.resume:
            raise
        say(f"Interrupted before a trial went on. Go on with: {resume}")
        return INTERRUPTED
    print_left_over(result, console, sync=sync_command(options))
    if result.interrupted:
        say(f"Interrupted. Go on with: {resume}")
        return INTERRUPTED
    if result.failure is not None:
        say(f"Go on with: {resume}")
        return 1
    return 0 if result.best is not None else _nothing_finished(result)


def resume_command(options: RunOptions, module: str = "tune_rescon.search") -> str:
    """The shell command that resumes a search; it may be typed in another directory.

    A URL that holds a password is not printed: its variable stands in its place, and has to be set.
    """
    line = shell_command(
        ["python", "-m", module, "--resume", options.name],
        [
            ("--storage", absolute_storage(options), "TUNE_RESCON_STORAGE"),
            ("--study", options.study_url, "TUNE_RESCON_STUDY"),
            ("--tracking-uri", options.tracking_uri, "TUNE_RESCON_TRACKING_URI"),
            ("--data-root", str(options.data_root.absolute()), None),
            ("--address", options.address, None),
        ],
    )
    return f"{line} --tensorboard" if options.tensorboard else line


@contextmanager
def _shown(
    space: Space, options: RunOptions, console: Console, *, live: bool
) -> Iterator[EventLines | LiveView]:
    """Whoever shows the search while it runs."""
    from tune_rescon.reporting.events import EventLines
    from tune_rescon.reporting.live.view import LiveView

    if not live:
        yield EventLines(console, space)
        return
    with LiveView(console, space, name=options.name) as view:
        yield view


def _nothing_finished(result: StudyResult) -> int:
    errors = [trial.error for trial in result.trials if trial.error]
    last = f" The last one said:\n{errors[-1]}" if errors else ""
    click.echo(f"The search failed: no trial reported a finite {result.metric}.{last}", err=True)
    return 1

"""Run a search with a display: show its progress, write its report, and print its result."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from typing_extensions import override

from tune_rescon.command import INTERRUPTED, progress_shown
from tune_rescon.errors import ClusterError, SearchError, presentable, shell_command
from tune_rescon.reporting.events import EventLines
from tune_rescon.reporting.formats import mlflow_note
from tune_rescon.reporting.live_view import LiveView
from tune_rescon.reporting.terminal import print_pending, print_result
from tune_rescon.spaces import Space
from tune_rescon.storage import absolute_url
from tune_rescon.tuning import (
    Gauges,
    RunOptions,
    SearchCallback,
    SearchFolder,
    SearchState,
    StudyResult,
    TrialRecord,
    Verdict,
    absolute_storage,
    location_flags,
    run_search,
    sync_command,
)

__all__ = [
    "LiveReport",
    "SearchPresentation",
    "resume_command",
    "run_with_display",
]

_LOGGER = logging.getLogger(__name__)

#: Writes the mistakes of a search's best network to a file. It may raise any exception.
WriteMistakes = Callable[[StudyResult, Path], None]


class SearchPresentation:
    """Writes the report and the plots of a search: see :class:`tune_rescon.tuning.Presentation`."""

    def __init__(self, write_mistakes: WriteMistakes | None = None) -> None:
        """Create the presentation.

        Args:
            write_mistakes: called when a search has finished, to write the mistakes of its best network to
                the file from which the report takes them. None: the report does not show mistakes.
        """
        self._write_mistakes = write_mistakes

    def note(self, result: StudyResult) -> str:
        """Return the text of :func:`.mlflow_note`."""
        return mlflow_note(result)

    @contextmanager
    def watching(self, snapshot: Callable[[], StudyResult], folder: SearchFolder) -> Iterator[SearchCallback]:
        """Yield a callback that writes ``report.html`` at most once a minute while the search runs."""
        live = LiveReport(snapshot, _write_page, folder.report_html)
        try:
            yield live
        finally:
            live.close()

    def conclude(self, result: StudyResult, folder: SearchFolder) -> list[Path]:
        """Write ``report.html`` and the plots as PNG files, and return their paths."""
        from tune_rescon.reporting.png_plots import write_plots

        _write_page(result, folder.report_html)
        if self._write_mistakes is not None and result.state is SearchState.FINISHED:
            try:
                self._write_mistakes(result, folder.mistakes_json)
                _write_page(result, folder.report_html)
            except Exception:
                # `report --errors` shows the user the error.
                _LOGGER.exception("the best network's mistakes could not be added to the report")
        return [folder.report_html, *write_plots(result, folder.plots)]


def _write_page(result: StudyResult, path: Path) -> None:
    # Imported here, on the thread of the report. The plotting libraries take seconds to import, and the first
    # trial should not wait for them.
    from tune_rescon.reporting.page import write_report

    write_report(result, path)


#: Seconds between two pages.
INTERVAL: Final = 60.0


class LiveReport(SearchCallback):
    """Writes the page of a running search on a separate thread, at most once per ``interval``.

    An event writes no page if it arrives too soon or while a page is being written: a later event will. The
    end of the search writes the last page; call :meth:`close` before.
    """

    def __init__(
        self,
        snapshot: Callable[[], StudyResult],
        write: Callable[[StudyResult, Path], None],
        path: Path,
        *,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the report; the first event writes the first page.

        Args:
            snapshot: returns the result of the running search so far; called on the thread of the events.
            write: writes a page; called on the separate thread.
            path: the file of the page.
            interval: seconds between the starts of two pages.
            clock: returns monotonic seconds.
        """
        self._snapshot = snapshot
        self._write = write
        self._path = path
        self._interval = interval
        self._clock = clock
        self._due = clock()
        self._thread: threading.Thread | None = None

    @override
    def on_trial_start(self, trial: TrialRecord) -> None:
        """Write a page if one is due."""
        self._tick()

    @override
    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """Write a page if one is due."""
        self._tick()

    @override
    def on_trial_end(self, trial: TrialRecord) -> None:
        """Write a page if one is due."""
        self._tick()

    def close(self, timeout: float = INTERVAL) -> bool:
        """Start no more pages, and wait at most ``timeout`` seconds for the page that is being written.

        Returns:
            Whether that page is finished. An unfinished one may still replace the last page.
        """
        self._due = float("inf")
        if self._thread is not None:
            self._thread.join(timeout)
        return not self._is_writing

    @property
    def _is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _tick(self) -> None:
        now = self._clock()
        if now < self._due or self._is_writing:
            return
        self._due = now + self._interval
        try:
            result = self._snapshot()
        except Exception:
            _LOGGER.exception("the report of the running search could not be made for %s", self._path)
            return
        self._thread = threading.Thread(target=self._draw, args=(result,), name="report", daemon=True)
        self._thread.start()

    def _draw(self, result: StudyResult) -> None:
        try:
            self._write(result, self._path)
        except Exception:
            # The search continues, and the next page follows within a minute.
            _LOGGER.exception("%s could not be written", self._path)


def run_with_display(
    space: Space,
    options: RunOptions,
    console: Console,
    *,
    resume: str,
    presentation: SearchPresentation,
    show_result: Callable[[StudyResult, Console], None] = print_result,
) -> int:
    """Run a search, show its progress and print how it ended.

    Args:
        space: the space to search.
        options: where the search runs and is stored. With ``show_progress``, a table is drawn in place;
            without it, a line is printed for each event.
        console: the console to print to.
        resume: the command that resumes the search.
        presentation: writes the search's report.
        show_result: prints the result as soon as the trials have ended.

    Returns:
        The exit code: 0 if the search succeeded, 1 if it failed, 130 if it was interrupted.

    Raises:
        UserError: the user's input is wrong.
        SearchError, ClusterError: a new search failed before its first trial.
        KeyboardInterrupt: a new search was interrupted before its first trial.
    """

    def print_message(text: str) -> None:
        console.print(presentable(text), markup=False, soft_wrap=True)

    is_resumable = options.resume
    try:
        with ExitStack() as display:
            view: LiveView | EventLines = EventLines(console, space)
            if options.show_progress:
                view = display.enter_context(LiveView(console, space, name=options.name))

            def on_result(result: StudyResult) -> None:
                # Remove the live table from the screen before the result's table is printed.
                display.close()
                show_result(result, console)

            def on_start(gauges: Gauges) -> None:
                nonlocal is_resumable
                is_resumable = True
                view.on_start(gauges)

            with progress_shown(lambda text: view.show_message(presentable(text))):
                result = run_search(
                    space,
                    options,
                    callbacks=[view],
                    presentation=presentation,
                    on_start=on_start,
                    on_result=on_result,
                )
    except (SearchError, ClusterError) as error:
        if not is_resumable:
            raise
        click.echo(presentable(f"The search failed: {error}"), err=True)
        print_message(f"Resume with: {resume}")
        return 1
    except KeyboardInterrupt:
        if options.resume_or_start:
            print_message("Interrupted before a trial ran. The same command resumes or starts the search.")
            return INTERRUPTED
        if not options.resume:
            raise
        print_message(f"Interrupted before a trial ran. Resume with: {resume}")
        return INTERRUPTED
    print_pending(result, console, sync=sync_command(options))
    if result.interrupted:
        print_message(f"Interrupted. Resume with: {resume}")
        return INTERRUPTED
    if result.failure is not None:
        print_message(f"Resume with: {resume}")
        return 1
    if result.best is None:
        _print_no_value(result)
        return 1
    return 0


def resume_command(options: RunOptions, module: str = "tune_rescon.search") -> str:
    """Return the shell command that resumes a search; it may be run in any directory.

    In place of a URL with a password, the command has an environment variable, which the user must set.

    Args:
        options: the options of the search.
        module: the module that runs it.
    """
    tracking_uri = None if options.tracking_uri is None else absolute_url(options.tracking_uri)
    line = shell_command(
        ["python", "-m", module, "--resume", options.name],
        [
            *location_flags(absolute_storage(options), options.study_url),
            ("--tracking-uri", tracking_uri, "TUNE_RESCON_TRACKING_URI"),
            ("--data-root", str(options.data_root.absolute()), None),
            ("--address", options.address, None),
        ],
    )
    return f"{line} --tensorboard" if options.tensorboard else line


def _print_no_value(result: StudyResult) -> None:
    if not result.trials:
        click.echo("The search failed: no trial has begun.", err=True)
        return
    errors = [trial.error for trial in result.trials if trial.error]
    last = f" The last error:\n{errors[-1]}" if errors else ""
    click.echo(f"The search failed: no trial reported a finite {result.metric}.{last}", err=True)

"""A search's page, plots and note, as its run asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tune_rescon.reporting.live_report import LiveReport
from tune_rescon.reporting.note import note_text
from tune_rescon.tuning import SearchFolder, SearchListener, StudyResult

__all__ = ["SearchPresentation"]


class SearchPresentation:
    """What a run of a search has drawn: see :class:`tune_rescon.tuning.Presentation`."""

    def note(self, result: StudyResult) -> str:
        """As :func:`.note_text`."""
        return note_text(result)

    @contextmanager
    def watching(self, snapshot: Callable[[], StudyResult], folder: SearchFolder) -> Iterator[SearchListener]:
        """A page a minute."""
        live = LiveReport(snapshot, _write_page, folder.report_html)
        try:
            yield live
        finally:
            live.close()

    def conclude(self, result: StudyResult, folder: SearchFolder) -> list[Path]:
        """``report.html``, and the plots as images beside it."""
        from tune_rescon.reporting.plots import write_plots

        _write_page(result, folder.report_html)
        return [folder.report_html, *write_plots(result, folder.plots)]


def _write_page(result: StudyResult, path: Path) -> None:
    # Imported here, and aside: what draws takes seconds, and the first trial need not wait for it.
    from tune_rescon.reporting.page import write_report

    write_report(result, path)

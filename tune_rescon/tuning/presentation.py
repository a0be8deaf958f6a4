"""What is shown of a search beside its tables: made by whoever draws, which nothing here knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from tune_rescon.tuning.listener import SearchListener
from tune_rescon.tuning.record.folder import SearchFolder
from tune_rescon.tuning.result import StudyResult

__all__ = ["Presentation"]


class Presentation(Protocol):
    """Called on the thread that runs the search or ends it."""

    def note(self, result: StudyResult) -> str:
        """Markdown, for the search's page in MLflow; cheap."""

    def watching(
        self, snapshot: Callable[[], StudyResult], folder: SearchFolder
    ) -> AbstractContextManager[SearchListener]:
        """A listener that now and then takes a ``snapshot`` and draws it, aside, while the block lasts."""

    def conclude(self, result: StudyResult, folder: SearchFolder) -> Sequence[Path]:
        """Write what is to be seen of a search that has ended; the files.

        Raises:
            OSError: a file cannot be written.
        """

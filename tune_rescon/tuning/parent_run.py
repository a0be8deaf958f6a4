"""What MLflow shows of the search itself: its parent run, from begin to end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from tune_rescon.spaces import Space
from tune_rescon.tracking import Champion, Destination, Images, MlflowWriter, SearchView, now_ms
from tune_rescon.tuning.options import RunOptions, sync_command
from tune_rescon.tuning.preparation import Prepared
from tune_rescon.tuning.record.folder import SearchFolder
from tune_rescon.tuning.record.identity import Identity
from tune_rescon.tuning.result import SearchState, StudyResult

__all__ = ["ParentRun", "closing_words", "destination"]

#: Seconds that exporting and registering a network takes on two slow cores (benchmarks/own_time.py).
REGISTRATION_SECONDS: Final = 10


def destination(space: Space, folder: SearchFolder, tracking_uri: str | None) -> Destination:
    """Where a search's runs go: ``tracking_uri``, or the store of its storage."""
    return Destination(
        uri=tracking_uri or folder.mlflow_uri,
        experiment=space.dataset.name,
        search=folder.name,
        metric=space.metric.name,
        maximize=space.metric.mode == "max",
        artifacts=None if tracking_uri else folder.mlflow_artifacts,
    )


def closing_words(champion: Champion | None, options: RunOptions) -> str:
    """What is still to be done once the result is shown, how long it takes, and how to go without it."""
    if champion is None:
        return "Writing the report and completing MLflow"
    return (
        f"Writing the report and registering the model of trial_{champion.number:04d} in MLflow: about"
        f" {REGISTRATION_SECONDS} s. Ctrl-C puts MLflow off until: {sync_command(options)}"
    )


class ParentRun:
    """Leaves the search's newest view with the writer."""

    def __init__(
        self,
        writer: MlflowWriter,
        *,
        identity: Identity,
        known_runs: Iterable[str],
        tags: dict[str, str],
        datasets: Iterable[Prepared],
        files: Sequence[Path],
        uploads: bool,
    ) -> None:
        """Show the search as it begins.

        Args:
            writer: takes the views.
            identity: the search's; its runs are found by it.
            known_runs: ids of the trials' runs that the record has.
            tags: what the run carries.
            datasets: what the trials train on.
            files: to be kept as artifacts from the beginning.
            uploads: whether MLflow is given any; not where its store travels with the search, for its
                artifacts do not.
        """
        self._writer = writer
        self._identity = identity
        self._uploads = uploads
        self._view = SearchView(
            id=identity.id,
            place=identity.place,
            known_runs=tuple(known_runs),
            tags=tags,
            note=_placed(identity, ""),
            images=tuple(map(_images, datasets)),
            files=tuple(files) if uploads else (),
        )
        writer.show(self._view)

    def note(self, text: str) -> None:
        """Show another note."""
        self._show(note=_placed(self._identity, text))

    def expect_champion(self) -> None:
        """Say that :meth:`end` is near, and what it will have to register."""
        if self._uploads:
            self._show(champion_is_near=True)

    def end(self, result: StudyResult, files: Sequence[Path], note: str) -> None:
        """Show how the search ended, and have its :meth:`champion` registered."""
        self._show(
            state=result.state.value,
            note=_placed(self._identity, note),
            closing={f"best_{result.metric}": result.best.value} if result.best else {},
            champion=self.champion(result),
            files=tuple(files) if self._uploads else (),
            ended_ms=now_ms(),
        )

    def _show(self, **changes: Any) -> None:
        self._view = dataclasses.replace(self._view, **changes)
        self._writer.show(self._view)

    def champion(self, result: StudyResult) -> Champion | None:
        """Whose network is registered at the end; None: no trial's."""
        best = result.best
        over = result.state is SearchState.FINISHED
        checkpoint = result.kept_checkpoint(best) if best else None
        if not over or best is None or checkpoint is None or not self._uploads:
            return None
        return Champion(
            number=best.number,
            epoch=best.value_epoch,
            checkpoint=checkpoint,
            value=f"{best.metric} {best.value:.4g} (metric.at: {best.at})",
        )


def _placed(identity: Identity, note: str) -> str:
    """A note that also says which search this is: several may have the same name."""
    return f"{note}\n\nSearch `{identity.id[:8]}`, in `{identity.place}`".strip()


def _images(prepared: Prepared) -> Images:
    facts = prepared.facts
    counts = {"train": facts.train_images, "val": facts.val_images, "test": facts.test_images}
    return Images(name=facts.name, digest=prepared.digest, counts=counts)

"""The first line of a search: printed before Ray, torch and MLflow are imported, which takes seconds."""

from __future__ import annotations

from rich.console import Console

from tune_rescon.passwords import hide_passwords
from tune_rescon.spaces import Space
from tune_rescon.storage import StorageUrl
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.record.folder import SearchFolder

__all__ = ["opening_line", "print_opening"]


def opening_line(space: Space, options: RunOptions) -> str:
    """What is about to be started, and where its runs go."""
    most = space.budget.concurrent
    workers = "as many workers as fit" if most is None else f"{most} worker{'s' if most > 1 else ''}"
    where = "a Ray on this machine" if options.address is None else f"work on the Ray at {options.address}"
    return (
        f"{options.name}: preparing the data, then starting {where}, {workers}; MLflow at {_mlflow(options)}"
    )


def print_opening(space: Space, options: RunOptions, console: Console) -> None:
    """Print :func:`opening_line`, as one line on any terminal."""
    console.print(hide_passwords(opening_line(space, options)), markup=False, soft_wrap=True)


def _mlflow(options: RunOptions) -> str:
    if options.tracking_uri is not None:
        return options.tracking_uri
    if isinstance(options.storage, StorageUrl):
        return f"{options.storage}/{options.name}"
    # The file, not its URL: SQLAlchemy, which quotes URLs, takes long to import.
    return str(SearchFolder(storage=options.storage.resolve(), name=options.name).mlflow_db)

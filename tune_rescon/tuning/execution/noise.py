"""What Ray, Optuna, MLflow and Lightning say goes to the search's log file, not between the user's lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["library_log"]

#: Loggers that bring a handler of their own to the terminal.
_LOUD: Final = ("ray", "optuna", "mlflow", "alembic", "pytorch_lightning", "lightning_fabric", "tune_rescon")


@contextmanager
def library_log(path: Path) -> Iterator[None]:
    """Write the libraries' log records and Python's warnings to ``path`` for the time being."""
    import optuna

    optuna.logging.disable_default_handler()
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level, before = root.level, {name: _taken(name) for name in _LOUD}
    root.addHandler(file)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        root.removeHandler(file)
        file.close()
        for name, (handlers, propagates) in before.items():
            logger = logging.getLogger(name)
            logger.handlers[:] = handlers
            logger.propagate = propagates


def _taken(name: str) -> tuple[list[logging.Handler], bool]:
    """Take a logger's own handlers away and let it speak through the root; what it had before."""
    logger = logging.getLogger(name)
    had = (list(logger.handlers), logger.propagate)
    logger.handlers.clear()
    logger.propagate = True
    return had

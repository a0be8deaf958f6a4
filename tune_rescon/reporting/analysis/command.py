"""The best configuration as a command that trains it again."""

from __future__ import annotations

import json
import shlex

from tune_rescon.spaces import from_optuna
from tune_rescon.tuning import StudyResult

__all__ = ["best_command"]


def best_command(result: StudyResult) -> str | None:
    """A search of one trial, the best one, to the last epoch; None where there is no best.

    It begins with the space that the search left in its folder: the row of ``initial`` is run first.
    """
    if result.best is None:
        return None
    # JSON is YAML, and has every digit.
    row = json.dumps(from_optuna(result.space, result.best.parameters))
    return shlex.join(
        [
            *("python", "-m", "tune_rescon.search"),
            *("--space", str(result.folder / "space.yaml"), "--name", f"{result.name}-best"),
            *("--trials", "1", "--set", f"initial=[{row}]", "--set", "sampler.type=random"),
        ]
    )

"""The best configuration as a command that trains it again."""

from __future__ import annotations

import json
import shlex
from typing import Any, Final

from tune_rescon.config import TrialConfig
from tune_rescon.spaces import place_config
from tune_rescon.tuning import StudyResult

__all__ = ["best_command"]

#: The field that stays a parameter where all others are fixed: a space has one at least.
_ALWAYS: Final = "learning_rate"


def best_command(result: StudyResult) -> str | None:
    """A search of one trial, the best one, to the last epoch; None where there is no best.

    It begins with the space that the search left in its folder: the row of ``initial`` is run first. If a
    resume has changed that space and it no longer contains the trial, every field but one is fixed instead.
    """
    config = None if result.best is None else result.best.config(result.space)
    if config is None:
        return None
    row = place_config(result.space, config.to_dict()).sampled
    settings = [] if row is not None else _fixed(config)
    row = row or {_ALWAYS: config.learning_rate}
    return shlex.join(
        [
            *("python", "-m", "tune_rescon.search"),
            *("--space", str(result.folder / "space.yaml"), "--name", f"{result.name}-best"),
            *settings,
            # JSON is YAML, and has every digit.
            *("--trials", "1", "--set", f"initial=[{json.dumps(row)}]", "--set", "sampler.type=random"),
        ]
    )


def _fixed(config: TrialConfig) -> list[str]:
    """Settings of a space that contains this configuration and no other."""
    default = TrialConfig().to_dict()
    fixed = {
        name: value
        for name, value in config.to_dict().items()
        if value != default[name] and name not in (_ALWAYS, "dataset")
    }
    values: dict[str, Any] = {
        "fixed": fixed,
        "parameters": {_ALWAYS: {"type": "categorical", "choices": [config.learning_rate]}},
        "scheduler.group_by": None,
    }
    if config.dataset is not None:
        values["dataset.name"] = config.dataset
    return [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]

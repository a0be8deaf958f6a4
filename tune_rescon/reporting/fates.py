"""How each fate of a trial looks in plots: apart for the colour-blind (Okabe and Ito's palette)."""

from __future__ import annotations

from typing import Final

from tune_rescon.config import TrialState

__all__ = ["FATE_COLOUR", "FATE_ORDER"]

FATE_COLOUR: Final = {
    TrialState.RUNNING: "#56b4e9",
    TrialState.FINISHED: "#009e73",
    TrialState.STOPPED: "#e69f00",
    TrialState.DIVERGED: "#cc79a7",
    TrialState.OUT_OF_MEMORY: "#d55e00",
    TrialState.FAILED: "#d55e00",
    TrialState.INTERRUPTED: "#0072b2",
    TrialState.PAUSED: "#8a94a0",
}

#: What is drawn first lies below: the many that were stopped, below the few that finished.
FATE_ORDER: Final = (
    TrialState.STOPPED,
    TrialState.PAUSED,
    TrialState.DIVERGED,
    TrialState.OUT_OF_MEMORY,
    TrialState.FAILED,
    TrialState.INTERRUPTED,
    TrialState.RUNNING,
    TrialState.FINISHED,
)

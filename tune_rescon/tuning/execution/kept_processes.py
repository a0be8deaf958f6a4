"""Processes of ended trials are kept for the next ones, also where several trials end at once."""

from __future__ import annotations

from typing import Any

from tune_rescon.tuning.coordination.coordinator import Coordinator

__all__ = ["KeptProcesses"]


class KeptProcesses:
    """Has Tune keep the process of every slot as long as there are trials to come.

    Tune keeps one, and as many as wait for a place at that moment (``TuneController._actor_cache`` of ray
    2.60). As many trials as there are slots run, so none waits: of those that end within a turn of Tune's
    loop all but one lose their process, and the next trials pay for new ones. With 16 slots and trials of a
    second that was six seconds for each trial.
    """

    def __init__(self, coordinator: Coordinator, *, resources: Any, slots: int) -> None:
        """``resources``: the placement group factory that all trials share."""
        self._coordinator = coordinator
        self._resources = resources
        self._slots = slots
        self._kept = 0

    def keep(self, controller: Any) -> None:
        """Called before each round of Tune's; ``controller`` is what Tune shows its scheduler.

        Once no trial is to come the processes go, so that their machines can.
        """
        wanted = 0 if self._coordinator.exhausted else self._slots
        if wanted != self._kept:
            # What a scheduler is shown has no name for it.
            cache = controller._tune_controller._actor_cache
            cache.increase_max(self._resources, wanted - self._kept)
            self._kept = wanted

"""The processes of one life of a driver: found by what they inherited, whatever happened to their parents."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

__all__ = ["MARK", "Household"]

#: Environment variable that a driver and all its descendants carry.
MARK = "TUNE_RESCON_STORM_LIFE"


class Household:
    """A driver and everything it started: Ray's daemons, agents and workers.

    Ray's processes write their titles over their environment, some of them all of it. Those are known by the
    log files they hold open in the life's own Ray directory.
    """

    def __init__(self, mark: str, ray_folder: Path) -> None:
        """``mark`` is the value of :data:`MARK`; ``ray_folder`` its ``RAY_TMPDIR``."""
        self._mark = mark
        self._folder = str(ray_folder)

    def members(self) -> list[psutil.Process]:
        """Those alive now, by process id. A zombie is dead: it only waits for its parent to look."""
        return [process for process in psutil.process_iter() if self._belongs(process)]

    def trial_processes(self) -> list[psutil.Process]:
        """Those that run a trial now, or wait for the next one."""
        titled = (p for p in psutil.process_iter() if _title(p).startswith("ray::ImplicitFunc"))
        return [process for process in titled if self._belongs(process)]

    def end(self) -> list[str]:
        """Kill what is left; the titles of what was."""
        left = self.members()
        titles = [_title(process)[:60] for process in left]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return titles

    def _belongs(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            if process.environ().get(MARK) == self._mark:
                return True
            return any(file.path.startswith(self._folder) for file in process.open_files())
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""

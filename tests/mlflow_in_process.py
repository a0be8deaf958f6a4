"""MLflow's worker in the test's own process, so that a test can replace a call."""

from __future__ import annotations

from tune_rescon.tracking.worker import MlflowWorker


class InProcessWorker(MlflowWorker):
    """Makes the calls on the writer's thread: there is no process to start or to end."""

    def start(self) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

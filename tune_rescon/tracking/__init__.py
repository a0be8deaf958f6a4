"""Track a search in MLflow: the calls, the process that makes them, and the thread that submits them."""

from tune_rescon.tracking.run_state import (
    Champion,
    Destination,
    Images,
    SearchRunState,
    TrialRunState,
    check_tracking_uri,
    mlflow_names,
    now_ms,
)
from tune_rescon.tracking.writer import MlflowWriter, mlflow_writer

__all__ = [
    "Champion",
    "Destination",
    "Images",
    "MlflowWriter",
    "SearchRunState",
    "TrialRunState",
    "check_tracking_uri",
    "mlflow_names",
    "mlflow_writer",
    "now_ms",
]

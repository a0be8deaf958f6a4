"""All that speaks to MLflow: the calls, and the one thread that makes them."""

from tune_rescon.tracking.events import (
    RunEnded,
    RunMetrics,
    RunRecalled,
    RunStarted,
    SearchEnded,
    SearchStarted,
    now_ms,
)
from tune_rescon.tracking.uri import check_tracking_uri
from tune_rescon.tracking.writer import MlflowWriter

__all__ = [
    "MlflowWriter",
    "RunEnded",
    "RunMetrics",
    "RunRecalled",
    "RunStarted",
    "SearchEnded",
    "SearchStarted",
    "check_tracking_uri",
    "now_ms",
]

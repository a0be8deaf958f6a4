"""All that speaks to MLflow: the calls, and the one thread that makes them."""

from tune_rescon.tracking.events import RunEnded, RunMetrics, RunStarted, SearchEnded, SearchStarted
from tune_rescon.tracking.uri import check_tracking_uri
from tune_rescon.tracking.writer import MlflowWriter

__all__ = [
    "MlflowWriter",
    "RunEnded",
    "RunMetrics",
    "RunStarted",
    "SearchEnded",
    "SearchStarted",
    "check_tracking_uri",
]

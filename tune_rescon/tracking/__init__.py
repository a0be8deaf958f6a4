"""All that speaks to MLflow: the calls, and the one thread that makes them."""

from tune_rescon.tracking.uri import check_tracking_uri
from tune_rescon.tracking.views import Champion, Images, RunView, SearchView, now_ms
from tune_rescon.tracking.writer import MlflowWriter

__all__ = ["Champion", "Images", "MlflowWriter", "RunView", "SearchView", "check_tracking_uri", "now_ms"]

"""Clusters: commands that start, use, inspect and end a cluster, and the MLflow server on its head.

::

    check_file       every finding in a cluster file, a KubeRay manifest or a shell script
    configure_file   configure: fills in a cluster file from a CloudFormation stack
    ClusterFile      the values of a cluster.yaml that the commands need
    most_per_hour    the most that a cluster's machines can cost in an hour
    commands         Ray's command lines and their environment, as values; run() runs one
    bring_up         up: creates the token, starts the cluster and counts the nodes that joined
    send_search      submit: runs the search as a Ray job and waits for its end
    HeadState        status: nodes, jobs and MLflow, as the head reports them
    hold_tunnel      tunnel: MLflow and the dashboard, by ssh
    watch            up --end-after-idle: the head ends the cluster after hours without use
    supervise_mlflow      mlflow: one server, checked for health, restarted, with its database copied

The package runs Ray and MLflow as programs, and imports neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.clusters.aws_stack import configure_file, has_spot_role
    from tune_rescon.clusters.check import check_file
    from tune_rescon.clusters.cluster import bring_up, find_head, hold_tunnel, take_down
    from tune_rescon.clusters.cluster_file import ClusterFile, read_cluster_file
    from tune_rescon.clusters.costs import most_per_hour
    from tune_rescon.clusters.documents import Finding
    from tune_rescon.clusters.head import HeadState, ask_head, inspect_head, print_state
    from tune_rescon.clusters.idle import IdleFiles, keep_watched, watch
    from tune_rescon.clusters.jobs import send_search
    from tune_rescon.clusters.machines import check_can_end
    from tune_rescon.clusters.mlflow_service import MlflowSettings, end_mlflow, supervise_mlflow
    from tune_rescon.clusters.this_head import head_actions
else:  # hidden from the type checker, which would accept any name
    __getattr__, __all__ = lazy_names(__name__)

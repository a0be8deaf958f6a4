"""Clusters: commands that start, use, inspect and end a cluster, and the MLflow server on its head.

::

    cluster_file     the YAML of a cluster file, and its values that the commands need
    check            check: all findings in a cluster file, a KubeRay manifest or a script, by launcher_rules
                     and shared_rules, which read commands with shell; the highest cost of the machines
    aws_stack        configure: fills in a cluster file from a CloudFormation stack
    cluster          up, submit, tunnel, down
    commands         Ray's command lines and their environment, as values; run() runs one
    status           status: nodes, jobs and MLflow, as the head reports them
    idle, idle_head  up --end-after-idle: the head ends the cluster after hours without use
    mlflow_service   mlflow: one server, checked for health, restarted, with its database copied

The package runs Ray and MLflow as programs, and imports neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.clusters.aws_stack import configure_file, has_spot_role
    from tune_rescon.clusters.check import check_file, max_hourly_cost
    from tune_rescon.clusters.cluster import bring_up, find_head, hold_tunnel, submit_job, take_down
    from tune_rescon.clusters.cluster_file import ClusterFile, Finding, check_can_end, read_cluster_file
    from tune_rescon.clusters.idle import IdleFiles, watch
    from tune_rescon.clusters.idle_head import head_actions, set_idle_hours
    from tune_rescon.clusters.mlflow_service import MlflowSettings, end_mlflow, supervise_mlflow
    from tune_rescon.clusters.status import HeadState, ask_head, inspect_head, print_state
else:  # hidden from the type checker, which would accept any name
    __getattr__, __all__ = lazy_names(__name__)

"""The status of a cluster: its nodes, pending resource demands, jobs and MLflow server.

`inspect` runs on the head, because only there the dashboard and MLflow can be reached without a tunnel. It
prints the status as one line of JSON.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tune_rescon.clusters.cluster_file import ClusterFile
from tune_rescon.clusters.commands import (
    DASHBOARD_PORT,
    HEAD_TIMEOUT,
    INSPECT,
    MLFLOW_PORT,
    ray_exec,
    ray_status,
    run,
)
from tune_rescon.clusters.idle import IdleFiles, IdleState
from tune_rescon.clusters.mlflow_service import answers
from tune_rescon.errors import ClusterError, format_error

__all__ = [
    "HeadState",
    "Job",
    "Node",
    "ask_head",
    "inspect_head",
    "parse_demands",
    "parse_jobs",
    "parse_nodes",
    "parse_running",
    "print_state",
    "running_jobs",
]


def print_state(state: HeadState, console: Console) -> None:
    """Print the nodes, the running jobs, the last job that ended, the pending demands, and MLflow's state."""
    nodes = Table("node", "type", "resources", "", title="Nodes", title_justify="left")
    for node in state.nodes:
        resources = _resources(node.resources)
        if node.accelerator:
            resources = f"{resources} ({node.accelerator})"
        nodes.add_row(node.name, node.type, resources, "alive" if node.alive else "gone")
    console.print(nodes)
    active = [job for job in state.jobs if job.is_active]
    for job in active:
        console.print(f"Job {job.id}: {job.status.lower()}", markup=False)
    ended = next((job for job in state.jobs if not job.is_active), None)
    if ended is not None:
        console.print(f"Last ended: {ended.id}, {ended.status.lower()}", markup=False)
    if not active:
        console.print("No job runs.")
    for demand in state.demands:
        console.print(f"Waits for resources: {demand}", markup=False)
    if state.demands_problem:
        console.print(f"Waits for resources: unknown. {state.demands_problem}", markup=False)
    console.print(f"MLflow {'answers' if state.mlflow_answers else 'does not answer'}.")
    if state.idle is not None:
        console.print(state.idle.describe(), markup=False)


def _resources(resources: Mapping[str, float]) -> str:
    """Format resources for a table.

    >>> _resources({"GPU": 1.0, "CPU": 8.0})
    '8 CPU, 1 GPU'
    """
    return ", ".join(f"{number:g} {name}" for name, number in sorted(resources.items())) or "none for trials"


#: Ray's dashboard, as the head reaches it.
DASHBOARD: Final = f"http://127.0.0.1:{DASHBOARD_PORT}"

#: Seconds that the dashboard has to answer.
DASHBOARD_TIMEOUT: Final = 20.0

#: Resources that every node has, besides those that a trial can request.
_SYSTEM_RESOURCES: Final = ("node:", "object_store_memory", "memory", "accelerator_type:")

#: The states of a job that has not ended.
_NOT_ENDED: Final = ("PENDING", "RUNNING")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster."""

    name: str
    type: str
    alive: bool
    is_head: bool
    resources: Mapping[str, float]
    accelerator: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A submitted job."""

    id: str
    status: str
    """The job's state, in Ray's terms."""
    entrypoint: str = ""
    message: str = ""

    @property
    def is_active(self) -> bool:
        """True if the job has not ended."""
        return self.status in _NOT_ENDED


@dataclass(frozen=True, kw_only=True)
class HeadState:
    """The status that ``inspect`` prints."""

    nodes: Sequence[Node]
    jobs: Sequence[Job]
    demands: Sequence[str]
    """The pending resource demands, one line each, in Ray's terms."""
    mlflow_answers: bool
    idle: IdleState | None = None
    """When the cluster ends itself; None if it does not."""
    demands_problem: str = ""
    """Why the demands are unknown; empty if they are known."""

    @property
    def workers(self) -> int:
        """Number of live nodes, without the head."""
        return sum(node.alive and not node.is_head for node in self.nodes)

    def job(self, identity: str) -> Job | None:
        """Return a job by its identity; None if the head has no such job."""
        return next((job for job in self.jobs if job.id == identity), None)

    def as_json(self) -> str:
        """Return the state as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, output: str) -> HeadState | None:
        """Find the line of JSON among the other output of a login shell; return None if it is missing.

        >>> state = HeadState(nodes=[], jobs=[], demands=["{'GPU': 1.0}: 2+ pending"], mlflow_answers=True)
        >>> HeadState.parse(f"Welcome! {{}}\\n{state.as_json()}\\nBye.") == state
        True
        """
        for line in output.splitlines():
            start = line.find('{"nodes": ')
            if start < 0:
                continue
            try:
                state = json.loads(line[start:])
                return cls(
                    nodes=[Node(**node) for node in state["nodes"]],
                    jobs=[Job(**job) for job in state["jobs"]],
                    demands=state["demands"],
                    mlflow_answers=state["mlflow_answers"],
                    idle=IdleState(**state["idle"]) if state.get("idle") else None,
                    # The head of an earlier version does not report it.
                    demands_problem=state.get("demands_problem", ""),
                )
            except (ValueError, KeyError, TypeError):
                continue
        return None


def ask_head(cluster: ClusterFile) -> HeadState:
    """Run ``inspect`` on the head of a cluster and return its status.

    Raises:
        ClusterError: the head returned no status.
    """
    done = run(ray_exec(cluster, INSPECT), capture=True, timeout=HEAD_TIMEOUT)
    state = HeadState.parse(done.output)
    if state is None:
        raise ClusterError(f"The head of {cluster.name} returned no status: {done.last_lines}")
    return state


def inspect_head() -> HeadState:
    """Return the status of the cluster; call it on the head itself.

    Raises:
        ClusterError: Ray's dashboard does not answer on this machine.
    """
    status = run(ray_status(), capture=True, timeout=HEAD_TIMEOUT)
    problem = f"`ray status` ended with code {status.code}: {status.last_lines}" if status.code else ""
    return HeadState(
        nodes=parse_nodes(_request_json(f"{DASHBOARD}/api/v0/nodes?limit=10000")),
        jobs=parse_jobs(_request_json(f"{DASHBOARD}/api/jobs/")),
        demands=parse_demands(status.output),
        mlflow_answers=answers(f"http://127.0.0.1:{MLFLOW_PORT}/health", timeout=5.0),
        idle=IdleFiles.of_head().read_state(),
        demands_problem=problem,
    )


def running_jobs(dashboard: str = DASHBOARD) -> list[str]:
    """Return the jobs that run or wait, in words; also those that were not submitted. Call it on the head.

    Raises:
        ClusterError: Ray's dashboard does not answer on this machine.
    """
    return parse_running(_request_json(f"{dashboard}/api/jobs/"))


def parse_running(answer: Any) -> list[str]:
    """Return the jobs that have not ended in an answer of the jobs API, in words.

    >>> parse_running([{"submission_id": None, "job_id": "01000000", "status": "RUNNING"}])
    ['job 01000000']
    """
    active = [entry for entry in answer if entry["status"] in _NOT_ENDED]
    return [f"job {entry.get('submission_id') or entry.get('job_id')}" for entry in active]


def parse_nodes(answer: Any) -> list[Node]:
    """Return the nodes in an answer of the dashboard's state API, the head first."""
    nodes = [_node(entry) for entry in answer["data"]["result"]["result"]]
    return sorted(nodes, key=lambda node: (not node.is_head, not node.alive, node.type, node.name))


def parse_jobs(answer: Any) -> list[Job]:
    """Return the submitted jobs in an answer of the jobs API, the newest first.

    >>> parse_jobs([{"type": "DRIVER", "submission_id": None, "status": "RUNNING", "start_time": 1}])
    []
    """
    submitted = [entry for entry in answer if entry.get("submission_id")]
    submitted.sort(key=lambda entry: -(entry.get("start_time") or 0))
    return [
        Job(
            id=entry["submission_id"],
            status=entry["status"],
            entrypoint=entry.get("entrypoint") or "",
            message=entry.get("message") or "",
        )
        for entry in submitted
    ]


def parse_demands(status: str) -> list[str]:
    """Return the pending resource demands in the text of ``ray status``, of either autoscaler.

    >>> parse_demands("Usage:\\n 1.0/1.0 CPU\\n\\nDemands:\\n {'GPU': 1.0}: 3+ pending tasks/actors\\n")
    ["{'GPU': 1.0}: 3+ pending tasks/actors"]
    >>> parse_demands("Pending Demands:\\n (no resource demands)")
    []
    """
    lines = iter(status.splitlines())
    for line in lines:
        if line.strip() in ("Demands:", "Pending Demands:"):
            break
    demands = []
    for line in lines:
        if not line.startswith(" "):
            break
        if "(no resource demands)" not in line:
            demands.append(line.strip())
    return demands


def _node(entry: Mapping[str, Any]) -> Node:
    labels = entry.get("labels") or {}
    total = entry.get("resources_total") or {}
    is_head = bool(entry.get("is_head_node"))
    kinds = [name.partition(":")[2] for name in total if name.startswith("accelerator_type:")]
    return Node(
        name=str(entry.get("node_ip") or entry.get("node_name")),
        type=str(labels.get("ray.io/node-group") or ("head" if is_head else "worker")),
        alive=entry.get("state") == "ALIVE",
        is_head=is_head,
        resources={
            name: float(number) for name, number in total.items() if not name.startswith(_SYSTEM_RESOURCES)
        },
        accelerator=kinds[0] if kinds else None,
    )


def _request_json(url: str) -> Any:
    request = urllib.request.Request(url)
    token = _token()
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=DASHBOARD_TIMEOUT) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        hint = (
            "Let the cluster file's `file_mounts` bring ~/.ray/auth_token."
            if error.code in (401, 403)
            else ""
        )
        rule = "Ray's dashboard must take requests"
        raise ClusterError(
            format_error(rule, got=f"{error.code} {error.reason}", where=url, hint=hint)
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise ClusterError(format_error("Ray's dashboard must answer", got=why, where=url)) from None


def _token() -> str:
    token = os.environ.get("RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return (token or path.read_text("utf-8")).strip()
    except OSError:
        return ""

"""What a cluster's head knows: its nodes, what is asked of them, its jobs, and whether MLflow answers.

It is asked by ``inspect``, which runs there and prints one line of JSON: there the dashboard and MLflow are
reached without a tunnel.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tune_rescon.errors import ClusterError, explain
from tune_rescon.launching.cluster_file import ClusterFile
from tune_rescon.launching.commands import (
    DASHBOARD_PORT,
    MLFLOW_PORT,
    inspect_words,
    ray_exec,
    ray_status,
    run,
)
from tune_rescon.launching.health import answers

__all__ = [
    "HeadState",
    "Job",
    "Node",
    "ask_head",
    "inspect_head",
    "parse_demands",
    "parse_jobs",
    "parse_nodes",
]

#: Seconds the dashboard has to answer.
DASHBOARD_PATIENCE: Final = 20.0

#: Seconds an ssh to the head, and the answer, may take.
HEAD_PATIENCE: Final = 120.0

#: What every node has beside the resources anybody asks for.
_OWN: Final = ("node:", "object_store_memory", "memory", "accelerator_type:")

#: How a job stands that goes on.
_GOES_ON: Final = ("PENDING", "RUNNING")


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
    """A job that was submitted."""

    id: str
    status: str
    """In Ray's words."""
    entrypoint: str = ""
    message: str = ""

    @property
    def goes_on(self) -> bool:
        """Whether it has not ended."""
        return self.status in _GOES_ON


@dataclass(frozen=True, kw_only=True)
class HeadState:
    """All that ``inspect`` says."""

    nodes: Sequence[Node]
    jobs: Sequence[Job]
    demands: Sequence[str]
    """What waits for resources, a line each, in Ray's words."""
    mlflow_answers: bool

    @property
    def workers(self) -> int:
        """Nodes that are there, without the head."""
        return sum(node.alive and not node.is_head for node in self.nodes)

    def job(self, identity: str) -> Job | None:
        """A job by its identity; None if the head knows of none."""
        return next((job for job in self.jobs if job.id == identity), None)

    def as_json(self) -> str:
        """As one line."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, said: str) -> HeadState | None:
        """Find the line among what else a login shell has to say; None if it is not there.

        >>> state = HeadState(nodes=[], jobs=[], demands=["{'GPU': 1.0}: 2+ pending"], mlflow_answers=True)
        >>> HeadState.parse(f"Welcome! {{}}\\n{state.as_json()}\\nBye.") == state
        True
        """
        for line in said.splitlines():
            start = line.find('{"nodes": ')
            if start < 0:
                continue
            try:
                found = json.loads(line[start:])
                return cls(
                    nodes=[Node(**node) for node in found["nodes"]],
                    jobs=[Job(**job) for job in found["jobs"]],
                    demands=found["demands"],
                    mlflow_answers=found["mlflow_answers"],
                )
            except (ValueError, KeyError, TypeError):
                continue
        return None


def ask_head(cluster: ClusterFile) -> HeadState:
    """Have the head of a cluster say how things stand.

    Raises:
        ClusterError: it does not.
    """
    done = run(ray_exec(cluster, inspect_words()), listen=True, timeout=HEAD_PATIENCE)
    state = HeadState.parse(done.said)
    if state is None:
        raise ClusterError(f"The head of {cluster.name} does not say how it stands: {done.last_words}")
    return state


def inspect_head(dashboard: str = f"http://127.0.0.1:{DASHBOARD_PORT}") -> HeadState:
    """How things stand, on the head itself.

    Raises:
        ClusterError: Ray's dashboard does not answer here.
    """
    status = run(ray_status(), listen=True, timeout=HEAD_PATIENCE)
    return HeadState(
        nodes=parse_nodes(_ask(f"{dashboard}/api/v0/nodes?limit=10000")),
        jobs=parse_jobs(_ask(f"{dashboard}/api/jobs/")),
        demands=parse_demands(status.said),
        mlflow_answers=answers(f"http://127.0.0.1:{MLFLOW_PORT}/health", timeout=5.0),
    )


def parse_nodes(answer: Any) -> list[Node]:
    """The nodes in what the dashboard's state API answers, the head first."""
    found = [_node(entry) for entry in answer["data"]["result"]["result"]]
    return sorted(found, key=lambda node: (not node.is_head, not node.alive, node.type, node.name))


def parse_jobs(answer: Any) -> list[Job]:
    """The submitted jobs in what the jobs API answers, the newest first.

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
    """What waits for resources, from the text of ``ray status``, whichever autoscaler wrote it.

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
        resources={name: float(number) for name, number in total.items() if not name.startswith(_OWN)},
        accelerator=kinds[0] if kinds else None,
    )


def _ask(url: str) -> Any:
    request = urllib.request.Request(url)
    token = _token()
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=DASHBOARD_PATIENCE) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        hint = "Have the file's `file_mounts` bring ~/.ray/auth_token." if error.code in (401, 403) else ""
        rule = "Ray's dashboard must take requests"
        raise ClusterError(explain(rule, got=f"{error.code} {error.reason}", where=url, hint=hint)) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise ClusterError(explain("Ray's dashboard must answer", got=why, where=url)) from None


def _token() -> str:
    given = os.environ.get("RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return (given or path.read_text("utf-8")).strip()
    except OSError:
        return ""

"""How a cluster stands, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from tune_rescon.launching.head import HeadState

__all__ = ["print_state"]


def print_state(state: HeadState, console: Console) -> None:
    """Print its nodes, its jobs that have not ended and the last that has, what waits, and MLflow."""
    nodes = Table("node", "type", "resources", "", title="Nodes", title_justify="left")
    for node in state.nodes:
        resources = _resources(node.resources)
        if node.accelerator:
            resources = f"{resources} ({node.accelerator})"
        nodes.add_row(node.name, node.type, resources, "alive" if node.alive else "gone")
    console.print(nodes)
    going = [job for job in state.jobs if job.goes_on]
    for job in going:
        console.print(f"Job {job.id}: {job.status.lower()}", markup=False)
    ended = next((job for job in state.jobs if not job.goes_on), None)
    if ended is not None:
        console.print(f"Last ended: {ended.id}, {ended.status.lower()}", markup=False)
    if not going:
        console.print("No job runs.")
    for demand in state.demands:
        console.print(f"Waits for resources: {demand}", markup=False)
    console.print(f"MLflow {'answers' if state.mlflow_answers else 'does not answer'}.")


def _resources(resources: Mapping[str, float]) -> str:
    """As one reads them.

    >>> _resources({"GPU": 1.0, "CPU": 8.0})
    '8 CPU, 1 GPU'
    """
    return ", ".join(f"{number:g} {name}" for name, number in sorted(resources.items())) or "none for trials"

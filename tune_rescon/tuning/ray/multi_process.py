"""A trial of several processes: Tune's own, which is the first, and those that train with it.

Tune reserves a place for each of them at once (a placement group of so many bundles) and puts its own process
into the first. That one starts the others, in the other bundles, and keeps them for its next trial as Tune
keeps it: to begin a trial costs milliseconds. Ray Train within Tune starts a controller and new processes for
each trial (26 s against 0.04 s from one to the next, on two busy cores), in places it asks for beside Tune's.

Only the first process reports to Tune. What ends a trial in one process ends it in all of them
(:mod:`tune_rescon.training.distributed`). Where a process has died, the first one ends itself: Tune then sees
what it sees when a trial's only process dies, and Ray ends the others.
"""

from __future__ import annotations

import functools
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import torch.distributed as dist

from tune_rescon.data.loader import Shard
from tune_rescon.training.distributed import ProcessGroup

if TYPE_CHECKING:
    from tune_rescon.training import EpochReport
    from tune_rescon.training.distributed import ProcessGroup
    from tune_rescon.tuning.ray.worker import TrialTask

__all__ = [
    "Meeting",
    "Member",
    "gathered",
    "met",
    "opened",
]


#: How long one process waits for another, that lives, in an exchange: the first one may be sending a
#: checkpoint to a slow storage. One that has died is noticed otherwise.
_PATIENCE: Final = timedelta(minutes=30)

#: By the kind of device: gradients of GPUs are summed by NCCL, votes and files by gloo.
_BACKENDS: Final = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """An address that all processes of a trial can reach."""

    host: str
    port: int
    count: int
    """Processes of the trial."""


def opened(host: str, count: int) -> tuple[Meeting, Any]:
    """A meeting at this machine's address ``host``, on a free port; it lasts as long as the store does."""
    store = _store(host, 0, count, is_master=True, wait_for_workers=False)
    return Meeting(host=host, port=store.port, count=count), store


@contextmanager
def met(
    meeting: Meeting, rank: int, *, address: str, device: str, store: Any = None
) -> Iterator[ProcessGroup]:
    """Be process ``rank`` of a meeting for the time of the block.

    Args:
        meeting: the trial's.
        rank: counted from 0, which is who opened it.
        address: this machine's, by which the others reach it.
        device: "cpu" or "cuda".
        store: of who opened the meeting.
    """
    _name_interface(address)
    if store is None:
        store = _store(meeting.host, meeting.port, meeting.count, is_master=False)
    dist.init_process_group(
        _BACKENDS[device], store=store, rank=rank, world_size=meeting.count, timeout=_PATIENCE
    )
    try:
        yield ProcessGroup(share=Shard(rank=rank, count=meeting.count))
    finally:
        dist.destroy_process_group()


def _store(host: str, port: int, count: int, **how: bool) -> Any:
    # torch leaves it out of what it says is public, and documents it.
    return dist.TCPStore(host, port, count, timeout=_PATIENCE, **how)  # type: ignore[attr-defined]


def _name_interface(address: str) -> None:
    """Have gloo listen where Ray does: it takes the host name's address, on Debian 127.0.1.1, by itself."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.family == socket.AF_INET and one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


#: Seconds the other processes have to end after the first one has.
_PARTING: Final = 20.0

#: Seconds the first process has to notice by itself that another one has failed.
_NOTICE: Final = 60.0

_TICK: Final = 0.5


class Member:
    """A process that trains with the first one, as Ray runs it; it stays for the next trial."""

    def train(self, task: TrialTask, meeting: Meeting, rank: int) -> None:
        """Train a trial to whatever end it has."""
        import ray

        from tune_rescon.training.lean import import_lean_torchmetrics

        # First, as Lightning would otherwise bring all of torchmetrics.
        import_lean_torchmetrics()
        from tune_rescon.tuning.ray.worker import train_task

        address = ray.util.get_node_ip_address()
        with (
            tempfile.TemporaryDirectory(prefix="tune_rescon-", ignore_cleanup_errors=True) as folder,
            met(meeting, rank, address=address, device=task.device) as peers,
        ):
            train_task(task, Path(folder), peers, on_epoch=_to_nobody, on_note=_to_nobody)


def _to_nobody(report: EpochReport | str) -> None:
    del report


@contextmanager
def gathered(task: TrialTask) -> Iterator[ProcessGroup]:
    """The first process's peers for the time of the block, in which it trains ``task``.

    Ends this process if another one dies.
    """
    from tune_rescon.training.distributed import SINGLE_PROCESS

    if task.workers == 1:
        yield SINGLE_PROCESS
        return
    import ray

    address = ray.util.get_node_ip_address()
    meeting, store = opened(address, task.workers)
    members = _members(task.workers - 1)
    work = [member.train.remote(task, meeting, rank) for rank, member in enumerate(members, start=1)]
    with _watched(work), met(meeting, 0, address=address, device=task.device, store=store) as peers:
        try:
            yield peers
        except Exception as error:
            raise _cause(error, work) from error
        finally:
            # Before the connection is given up, which the others would take for a death.
            _part(work)


@functools.cache
def _members(count: int) -> Sequence[Any]:
    """The other processes, started in the places that Tune has reserved for them beside this one's."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    places = ray.util.get_current_placement_group()
    assert places is not None, "Tune gives each trial a placement group"
    assert places.bundle_count == count + 1, "a bundle for each process"
    return [
        ray.remote(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(places, index),
        )(Member).remote()
        for index, bundle in enumerate(places.bundle_specs)
        if index
    ]


@contextmanager
def _watched(work: Sequence[Any]) -> Iterator[None]:
    """End this process where one of the others has died, or has failed and this one does not notice.

    With gloo a lost connection is an error in the exchange under way. NCCL may wait for ever.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(work, over), name="gang", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(work: Sequence[Any], over: threading.Event) -> None:
    import ray

    left = list(work)
    while left and not over.wait(_TICK):
        done, left = ray.wait(left, num_returns=len(left), timeout=0)
        if any(_fault(one) for one in done) and not over.wait(_NOTICE):
            os._exit(1)


def _fault(work: Any) -> Exception | None:
    """What a process's work that is over has raised. Where the process has died, this one ends, too."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    try:
        ray.get(work)
    except RayActorError:
        # As Tune and the coordinator know it: the trial goes on from its checkpoint, in other processes.
        os._exit(1)
    except RayTaskError as error:
        cause: Exception = error.cause
        return cause
    return None


def _cause(error: Exception, work: Sequence[Any]) -> Exception:
    """Of an error here that another process is behind: what was raised there."""
    import ray

    from tune_rescon.training.distributed import PeerFailedError, PeerLostError

    if isinstance(error, PeerLostError):
        # A process or its machine has died; of a machine Ray learns it only half a minute later.
        os._exit(1)
    if not isinstance(error, PeerFailedError):
        return error
    done, _ = ray.wait(list(work), num_returns=len(work), timeout=_PARTING)
    faults = [fault for one in done if (fault := _fault(one))]
    return next((fault for fault in faults if not isinstance(fault, PeerFailedError)), error)


def _part(work: Sequence[Any]) -> None:
    """Wait for the others. Who does not end in time is ended; the next trial starts new ones."""
    import ray

    done, left = ray.wait(list(work), num_returns=len(work), timeout=_PARTING)
    for one in done:
        _fault(one)
    if left:
        for member in _members(len(work)):
            ray.kill(member)
        _members.cache_clear()

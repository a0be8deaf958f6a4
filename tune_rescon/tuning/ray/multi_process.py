"""Train one trial in several processes: Tune's own process, which is rank 0, and its peers.

Tune reserves the places of all processes at once (a placement group with one bundle per process) and puts its
own process into the first bundle. Rank 0 starts the other processes in the other bundles and keeps them for
its next trial, as Tune keeps rank 0. The start of a trial therefore costs milliseconds. Ray Train within Tune
starts a controller and new processes for each trial (26 s against 0.04 s from one trial to the next, on two
busy cores), in places that it requests in addition to Tune's.

Only rank 0 reports to Tune. An event that ends a trial in one process ends it in all processes
(:mod:`tune_rescon.training.distributed`). If a process has died, rank 0 ends itself. For Tune, this is the
same as the death of a trial's only process, and Ray ends the other processes.
"""

from __future__ import annotations

import functools
import logging
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
import ray
import torch.distributed as dist
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tune_rescon.data.batch_sources import Shard
from tune_rescon.training.distributed import (
    SINGLE_PROCESS,
    PeerFailedError,
    PeerLostError,
    ProcessGroup,
)
from tune_rescon.training.messages import ignore

if TYPE_CHECKING:
    from tune_rescon.tuning.ray.worker import TrialTask

__all__ = ["RankActor", "Rendezvous", "create_rendezvous", "join", "process_group"]

_LOGGER: Final = logging.getLogger(__name__)


#: Time for which one process waits for another live process in a collective operation, because rank 0 may be
#: sending a checkpoint to a slow storage. A dead process is detected by other means.
_TIMEOUT: Final = timedelta(minutes=30)

#: Backends by device type. NCCL sums the gradients of GPUs; gloo exchanges votes and files.
_BACKENDS: Final = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """The address of a trial's store, which all processes of the trial can reach."""

    host: str
    port: int
    count: int
    """World size: the number of processes of the trial."""


def create_rendezvous(host: str, count: int) -> tuple[Rendezvous, Any]:
    """Open a store at this machine's address ``host``, on a free port.

    Returns:
        The store's address, which is valid as long as the store, and the store.
    """
    store = _store(host, 0, count, is_master=True, wait_for_workers=False)
    return Rendezvous(host=host, port=store.port, count=count), store


@contextmanager
def join(
    rendezvous: Rendezvous, rank: int, *, address: str, device: str, store: Any = None
) -> Iterator[ProcessGroup]:
    """Join the process group at a store as process ``rank`` for the block.

    ``address`` is this machine's, at which the other processes reach it. Rank 0 gives the ``store`` that it
    has created.
    """
    _name_interface(address)
    if store is None:
        store = _store(rendezvous.host, rendezvous.port, rendezvous.count, is_master=False)
    dist.init_process_group(
        _BACKENDS[device], store=store, rank=rank, world_size=rendezvous.count, timeout=_TIMEOUT
    )
    try:
        yield ProcessGroup(shard=Shard(rank=rank, world_size=rendezvous.count))
    finally:
        dist.destroy_process_group()


def _store(host: str, port: int, count: int, **how: bool) -> Any:
    # torch documents TCPStore, but does not export it as public.
    return dist.TCPStore(host, port, count, timeout=_TIMEOUT, **how)  # type: ignore[attr-defined]


def _name_interface(address: str) -> None:
    """Make gloo listen at Ray's address, because its default is the host name's (on Debian 127.0.1.1)."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(known.family == socket.AF_INET and known.address == address for known in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


#: Seconds for which the other processes may continue after rank 0 has ended the trial.
_JOIN_SECONDS: Final = 20.0

#: Seconds for rank 0 to notice, in its own training, that another process has failed.
_FAILURE_NOTICE: Final = 60.0

_TICK: Final = 0.5


class RankActor:
    """A Ray actor that trains together with rank 0. Its process is kept for the next trial."""

    def train(self, task: TrialTask, rendezvous: Rendezvous, rank: int) -> None:
        """Train a trial until it ends.

        Args:
            task: The trial.
            rendezvous: The address of the trial's store.
            rank: The rank of this process.
        """
        from tune_rescon.lazy import import_lean_torchmetrics

        # First, because Lightning would otherwise import all of torchmetrics.
        import_lean_torchmetrics()
        from tune_rescon.tuning.ray.worker import train_task

        address = ray.util.get_node_ip_address()
        with (
            tempfile.TemporaryDirectory(prefix="tune_rescon-", ignore_cleanup_errors=True) as folder,
            join(rendezvous, rank, address=address, device=task.device) as peers,
        ):
            train_task(task, Path(folder), peers, on_epoch=lambda _: None, on_message=ignore)


@contextmanager
def process_group(task: TrialTask) -> Iterator[ProcessGroup]:
    """Start the peers of this process, which is rank 0, and train ``task`` with them within the block.

    Ends this process if another process dies.
    """
    if task.workers == 1:
        yield SINGLE_PROCESS
        return
    address = ray.util.get_node_ip_address()
    rendezvous, store = create_rendezvous(address, task.workers)
    actors = _rank_actors(task.workers - 1)
    work = [actor.train.remote(task, rendezvous, rank) for rank, actor in enumerate(actors, start=1)]
    with _watched(work), join(rendezvous, 0, address=address, device=task.device, store=store) as peers:
        try:
            yield peers
        except Exception as error:
            raise _peer_error(error, work) from error
        finally:
            # Before this process disconnects, because the others would take the disconnection for its death.
            _end_peers(work)


@functools.cache
def _rank_actors(count: int) -> Sequence[Any]:
    """Return the other processes, started in the bundles that Tune has reserved for them; cached."""
    places = ray.util.get_current_placement_group()
    assert places is not None, "Tune gives each trial a placement group"
    assert places.bundle_count == count + 1, "a bundle for each process"
    return [
        ray.remote(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(places, index),
        )(RankActor).remote()
        for index, bundle in enumerate(places.bundle_specs)
        if index
    ]


@contextmanager
def _watched(work: Sequence[Any]) -> Iterator[None]:
    """End this process if another one dies within the block, or fails without this process noticing.

    With gloo, a lost connection raises an error in the running collective operation. NCCL may wait forever.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(work, over), name="peers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(work: Sequence[Any], over: threading.Event) -> None:
    left = list(work)
    try:
        while left and not over.wait(_TICK):
            done, left = ray.wait(left, num_returns=len(left), timeout=0)
            if any(map(_peer_exception, done)) and not over.wait(_FAILURE_NOTICE):
                os._exit(1)
    except Exception:
        if over.is_set():
            return
        # Without this thread, the process could wait for a dead one until the collective's timeout.
        _LOGGER.exception("the other processes of the trial cannot be watched; this process ends")
        os._exit(1)


def _peer_exception(work: Any) -> Exception | None:
    """Return the exception that a process's finished work has raised, or None.

    Ends this process if the other process has died.
    """
    try:
        ray.get(work)
    except RayActorError:
        # Tune and the coordinator handle the death of this process: the trial continues from its checkpoint
        # in other processes.
        os._exit(1)
    except RayTaskError as error:
        cause: Exception = error.cause
        return cause
    except RayError:
        # The process ended in another way, for example because its node ran out of memory.
        os._exit(1)
    return None


def _peer_error(error: Exception, work: Sequence[Any]) -> Exception:
    """Return the exception of another process if it caused ``error``, else ``error``.

    Ends this process if another one has died.
    """
    if isinstance(error, PeerLostError):
        # A process or its machine has died. Ray detects a machine's death only half a minute later.
        os._exit(1)
    if not isinstance(error, PeerFailedError):
        return error
    done, _ = ray.wait(list(work), num_returns=len(work), timeout=_JOIN_SECONDS)
    causes = filter(None, map(_peer_exception, done))
    return next((cause for cause in causes if not isinstance(cause, PeerFailedError)), error)


def _end_peers(work: Sequence[Any]) -> None:
    """Wait for the other processes, and kill all of them if one does not end in time.

    The next trial then starts new processes.
    """
    done, left = ray.wait(list(work), num_returns=len(work), timeout=_JOIN_SECONDS)
    for finished in done:
        _peer_exception(finished)
    if left:
        for actor in _rank_actors(len(work)):
            ray.kill(actor)
        _rank_actors.cache_clear()

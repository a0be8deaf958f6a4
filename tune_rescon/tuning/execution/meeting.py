"""Where the processes of a trial meet: torch's process group, over a store that the first one opens.

Imported by the processes of a trial alone: it takes torch.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import psutil
import torch.distributed as dist

from tune_rescon.data.loader import Share
from tune_rescon.training.distributed import Peers

__all__ = ["Meeting", "met", "opened"]

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
def met(meeting: Meeting, rank: int, *, address: str, device: str, store: Any = None) -> Iterator[Peers]:
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
        yield Peers(share=Share(rank=rank, count=meeting.count))
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

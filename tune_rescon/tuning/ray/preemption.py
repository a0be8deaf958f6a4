"""The word that a process is to go: a SIGTERM, or its node is drained. Its trial is left in order then.

What Ray 2.60 does, tried on two nodes of one machine:

- SIGTERM to a worker raises SystemExit in its main thread, which waits for the trial's next report. The trial
  runs in another thread and ends with the process. The handler is Python's and can be replaced, from the main
  thread alone; then the process has all the time whoever sent the signal gives it.
- SIGTERM to a raylet (``ray stop``, a machine that shuts down) has it SIGKILL its workers within 0.02 to
  0.04 s. Nothing can be written in that time: who wants trials to be left in order drains the node before.
- A node that is drained takes no new work and lets what runs go on, beyond its deadline too; once it is idle
  its raylet ends. Workers are not told; the control store is asked. ``ray start --block`` (KubeRay's way)
  drains its node for 30 s when it is told to end (RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S). Of EC2's spot
  notice Ray knows nothing, so a trial's process that learns of it drains the node itself: no trial is to be
  sent there any more.
- A driver that has ended: its workers get a SIGTERM and soon after a SIGKILL, as from any raylet.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final
from urllib.error import HTTPError

__all__ = ["NOTICE", "Hearing", "PreemptionSignal", "SpotNotice", "never", "node_is_drained"]


#: Instance metadata, version 2: link-local, on EC2 alone.
SERVICE: Final = "http://169.254.169.254/latest"

#: Seconds an answer may take; where there is no such service, a connection may just hang.
_PATIENCE: Final = 1.0

_ACTIONS: Final = ("terminate", "stop", "hibernate")


class SpotNotice:
    """Asks whether the notice has come. On a machine that is not EC2's once, and never again."""

    def __init__(self, service: str = SERVICE) -> None:
        """Nothing is asked yet."""
        self._service = service
        # No proxy knows this machine's own metadata.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._answers: bool | None = None

    def came(self) -> bool:
        """Whether the machine will be taken away. False also where nobody knows."""
        if self._answers is False:
            return False
        try:
            token = self._ask("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
            said = self._ask("GET", "meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
            return json.loads(said)["action"] in _ACTIONS
        except HTTPError:
            # 404: no notice. A machine of another cloud says something like it, too.
            self._answers = True
        except OSError:
            self._answers = self._answers or False
        except (ValueError, LookupError, TypeError):
            self._answers = False
        return False

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self._service}/{path}", headers=headers, method=method)
        with self._opener.open(request, timeout=_PATIENCE) as answer:
            return str(answer.read().decode())


#: Seconds between two looks at whether the node is drained.
LOOK_EVERY: Final = 3.0

#: Seconds a look may take.
_LOOK: Final = 5.0

#: Seconds that a spot machine has left, a little less than EC2's two minutes.
_SPOT_SECONDS: Final = 110.0

_SPOT: Final = SpotNotice()


def never() -> bool:
    """Nobody tells a process of several to leave: all of them would have to leave after the same batch."""
    return False


class PreemptionSignal:
    """Whether this process was told to go, once and for good, and whether anything in it heeds that."""

    def __init__(self) -> None:
        """Nobody was told yet."""
        self._told = threading.Event()
        self._heeding = False
        self._before: Any = None

    def hear(self) -> None:
        """Have SIGTERM come here first. For the main thread; again and again changes nothing."""
        if signal.getsignal(signal.SIGTERM) != self._receive:
            self._before = signal.signal(signal.SIGTERM, self._receive)

    @contextmanager
    def heeded(
        self, *, is_drained: Callable[[], bool], look_every: float = LOOK_EVERY
    ) -> Iterator[Callable[[], bool]]:
        """For the time of the block, whether this process was told to go; the block is to end when it was.

        ``is_drained`` is asked now and then, by a thread of its own.
        """
        over = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(is_drained, look_every, over), name="notice", daemon=True
        )
        watch.start()
        self._heeding = True
        try:
            yield self._told.is_set
        finally:
            self._heeding = False
            # Not joined: a look can take long, and does nothing.
            over.set()

    def _watch(self, is_drained: Callable[[], bool], look_every: float, over: threading.Event) -> None:
        while not over.wait(look_every):
            if is_drained():
                self._told.set()
                return

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._heeding and not self._told.is_set():
            self._told.set()
        elif callable(self._before):
            # What Ray does; also where somebody asks for the second time.
            self._before(number, frame)
        elif self._before != signal.SIG_IGN:
            sys.exit(1)


#: This process's.
NOTICE: Final = PreemptionSignal()


class Hearing:
    """What Tune mixes into the class it makes of a trainable. It sets one up in the process's main thread."""

    def setup(self, config: dict[str, Any]) -> None:
        """Hear, then what the trainable does."""
        NOTICE.hear()
        super().setup(config)  # type: ignore[misc]  # ray's FunctionTrainable comes after this one


def node_is_drained(spot: SpotNotice = _SPOT) -> bool:
    """Whether this node is being drained, as far as that can be known now; after a ``spot`` notice it is."""
    import ray
    from ray._private.worker import global_worker

    if not ray.is_initialized():
        return False
    node, control = ray.get_runtime_context().get_node_id(), global_worker.gcs_client
    with suppress(ray.exceptions.RpcError):
        if node in control.get_draining_nodes(timeout=_LOOK):
            return True
    if not spot.came():
        return False
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    deadline = int(1000 * (time.time() + _SPOT_SECONDS))
    with suppress(ray.exceptions.RpcError):
        control.drain_node(node, reason, "EC2's spot notice has come", deadline, timeout=_LOOK)
    return True

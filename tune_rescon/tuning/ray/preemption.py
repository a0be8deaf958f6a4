"""Detect the preemption of a worker process (a SIGTERM, or a drained node), so that its trial stops in order.

The behavior of Ray 2.60, tested on two nodes of one machine:

- SIGTERM to a worker raises SystemExit in the worker's main thread, which waits for the trial's next report.
  The trial runs in another thread and ends with the process. The signal handler is a Python handler and can
  be replaced, from the main thread only. The process then has all the time that the sender of the signal
  allows.
- SIGTERM to a raylet (``ray stop``, a machine that shuts down) makes the raylet SIGKILL its workers within
  0.02 to 0.04 s. A worker can write nothing in that time. To stop trials in order, drain the node before.
- A drained node accepts no new work. Running work continues, also after the deadline of the drain. Once the
  node is idle, its raylet ends. Ray does not notify the workers, so they must poll the control store.
  ``ray start --block``, which KubeRay uses, drains its node for 30 s when it receives a signal to end
  (RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S). Ray does not detect EC2's spot notice. Therefore a trial's process
  that detects the notice drains the node itself, so that no more trials are placed there.
- When a driver ends, its workers receive a SIGTERM and soon afterwards a SIGKILL, as from any raylet.
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

__all__ = ["NOTICE", "PreemptionSignal", "SignalHandlerMixin", "SpotNotice", "node_is_drained"]


#: The instance metadata service, version 2: link-local, on EC2 only.
SERVICE: Final = "http://169.254.169.254/latest"

#: Time limit of a request in seconds, because a connection may hang on a machine without this service.
_PATIENCE: Final = 1.0

_ACTIONS: Final = ("terminate", "stop", "hibernate")


class SpotNotice:
    """Polls EC2's spot notice. On a machine outside EC2, the service is requested only once."""

    def __init__(self, service: str = SERVICE) -> None:
        """Store the URL ``service``; no request is sent yet."""
        self._service = service
        # Without a proxy, because a proxy cannot serve this machine's own metadata.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._responds: bool | None = None

    def came(self) -> bool:
        """Return whether EC2 has announced that the machine will be taken away; False if that is unknown."""
        if self._responds is False:
            return False
        try:
            token = self._request("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
            notice = self._request(
                "GET", "meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}
            )
            return json.loads(notice)["action"] in _ACTIONS
        except HTTPError:
            # 404: no notice. The metadata services of other clouds return similar errors.
            self._responds = True
        except OSError:
            self._responds = self._responds or False
        except (ValueError, LookupError, TypeError):
            self._responds = False
        return False

    def _request(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self._service}/{path}", headers=headers, method=method)
        with self._opener.open(request, timeout=_PATIENCE) as answer:
            return str(answer.read().decode())


#: Seconds between two checks for a drain of the node.
LOOK_EVERY: Final = 3.0

#: Time limit of a check in seconds.
_CHECK_TIMEOUT: Final = 5.0

#: Seconds that a spot machine has left after its notice: slightly less than EC2's two minutes.
_SPOT_SECONDS: Final = 110.0

_SPOT: Final = SpotNotice()


class PreemptionSignal:
    """The preemption of this process: whether it was signaled, and whether a trial polls it.

    A preemption is never revoked.
    """

    def __init__(self) -> None:
        """Start without a preemption."""
        self._preempted = threading.Event()
        self._polled = False
        self._before: Any = None

    def install(self) -> None:
        """Install the SIGTERM handler. Call it on the main thread; repeated calls have no effect."""
        if signal.getsignal(signal.SIGTERM) != self._receive:
            self._before = signal.signal(signal.SIGTERM, self._receive)

    @contextmanager
    def installed(
        self, *, is_drained: Callable[[], bool], look_every: float = LOOK_EVERY
    ) -> Iterator[Callable[[], bool]]:
        """Watch for a preemption within the block, which must poll the function and end once it returns True.

        Args:
            is_drained: Returns True if the node is drained. It is polled on a separate thread.
            look_every: Seconds between two polls of ``is_drained``.

        Yields:
            A function that returns True once this process is preempted.
        """
        over = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(is_drained, look_every, over), name="notice", daemon=True
        )
        watch.start()
        self._polled = True
        try:
            yield self._preempted.is_set
        finally:
            self._polled = False
            # The thread is not joined: a check can take long, and has no effect after the block.
            over.set()

    def _watch(self, is_drained: Callable[[], bool], look_every: float, over: threading.Event) -> None:
        while not over.wait(look_every):
            if is_drained():
                self._preempted.set()
                return

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._polled and not self._preempted.is_set():
            self._preempted.set()
        elif callable(self._before):
            # Ray's handler, if no trial polls the preemption, or for a second signal.
            self._before(number, frame)
        elif self._before != signal.SIG_IGN:
            sys.exit(1)


#: The preemption signal of this process.
NOTICE: Final = PreemptionSignal()


class SignalHandlerMixin:
    """A mixin for the class that Tune creates from a trainable. Tune calls ``setup`` on the main thread."""

    def setup(self, config: dict[str, Any]) -> None:
        """Install the SIGTERM handler, then set up the trainable."""
        NOTICE.install()
        super().setup(config)  # type: ignore[misc]  # ray's FunctionTrainable comes after this one


def node_is_drained(spot: SpotNotice = _SPOT) -> bool:
    """Return whether this node is being drained, as far as is known; drain it after a ``spot`` notice."""
    import ray
    from ray._private.worker import global_worker

    if not ray.is_initialized():
        return False
    node, control = ray.get_runtime_context().get_node_id(), global_worker.gcs_client
    with suppress(ray.exceptions.RpcError):
        if node in control.get_draining_nodes(timeout=_CHECK_TIMEOUT):
            return True
    if not spot.came():
        return False
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    deadline = int(1000 * (time.time() + _SPOT_SECONDS))
    with suppress(ray.exceptions.RpcError):
        control.drain_node(node, reason, "EC2's spot notice has come", deadline, timeout=_CHECK_TIMEOUT)
    return True

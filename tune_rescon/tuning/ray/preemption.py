"""Detect the preemption of a worker process: a SIGTERM, a drained node, a spot machine's notice.

The trial of a preempted process writes a checkpoint and ends its process.

The behavior of Ray 2.60, tested on two nodes of one machine:

- By Ray's own handler, SIGTERM to a worker raises SystemExit in the worker's main thread, and the trial,
  which runs in another thread, ends with the process. This module replaces the handler, which only the main
  thread can do. The trial can then use all the time that the sender of the signal allows.
- SIGTERM to a raylet (``ray stop``, a machine that shuts down) makes the raylet SIGKILL its workers within
  0.02 to 0.04 s. A worker can write nothing in that time. To stop trials in order, drain the node before.
- A drained node accepts no new work. Running work continues, also after the deadline of the drain. Once the
  node is idle, its raylet ends. Ray does not tell the workers of a drain: they must poll the control store.
  ``ray start --block``, which KubeRay uses, drains its node for 30 s when it receives a signal to end
  (RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S). Ray does not detect the notice of a spot machine. Therefore a
  trial's process that detects the notice drains the node itself, so that no more trials are placed there.
- When a driver ends, its workers receive a SIGTERM and soon afterwards a SIGKILL, as from any raylet.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import logging
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from types import FrameType
from typing import Any, Final
from urllib.error import HTTPError

__all__ = [
    "CLOUDS",
    "PREEMPTION",
    "Cloud",
    "MetadataAnswer",
    "PollingState",
    "PreemptionSignal",
    "SignalHandlerMixin",
    "SpotNotice",
    "node_is_drained",
]


#: The metadata service of a machine in a cloud: link-local, with the same address in EC2, GCP and Azure.
SERVICE: Final = "http://169.254.169.254"

#: Time limit in seconds of the first request, of the second, and of all later ones. A connection may hang on
#: a machine without this service. A service may be slow too: Azure's first answer can take long.
_TIMEOUTS: Final = (1.0, 2.0, 4.0)

#: Seconds until the next poll of a service that did not answer. They double each time, up to the longest.
_FIRST_WAIT: Final = 3.0
_LONGEST_WAIT: Final = 300.0

#: Maximum number of bytes that are read of an answer.
_ANSWER_BYTES: Final = 1 << 16

_ACTIONS: Final = ("terminate", "stop", "hibernate")

#: Sends a request to the metadata service: the path, then the headers. Returns the answer's text. With
#: ``method`` another method than GET, with ``flavor`` the value that the header Metadata-Flavor must have.
Request = Callable[..., str]


class MetadataAnswer(enum.Enum):
    """The answer of a machine's metadata service to the question of one cloud."""

    NOTICE = enum.auto()
    """The cloud will take the machine away."""
    NO_NOTICE = enum.auto()
    OTHER = enum.auto()
    """Something answered, but not this cloud."""
    SILENCE = enum.auto()
    """Nothing answered within the time limit."""


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """A cloud that gives notice before it takes a spot machine away."""

    name: str
    seconds: float
    """The time that a machine has left after the notice, reduced by a few seconds."""
    ask: Callable[[Request], bool]
    """Returns whether there is a notice. Raises HTTPError, ValueError, LookupError or TypeError if another
    service answers, and another OSError or an HTTPException if none does."""


def _azure_preempted(text: str) -> frozenset[str]:
    """Return the machines that Azure's scheduled events will preempt, by their names in lower case.

    The events of a scale set are sent to all of its machines.

    >>> preempt, reboot = ({"EventType": kind, "Resources": ["Spot_0"]} for kind in ("Preempt", "Reboot"))
    >>> _azure_preempted(json.dumps({"Events": [reboot, preempt]}))
    frozenset({'spot_0'})
    """
    preemptions = [event for event in json.loads(text)["Events"] if event["EventType"] == "Preempt"]
    return frozenset(name.lower() for event in preemptions for name in event["Resources"])


def _ask_ec2(request: Request) -> bool:
    token = request("latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    try:
        notice = request("latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            return False
        raise
    return bool(json.loads(notice)["action"] in _ACTIONS)


def _ask_gcp(request: Request) -> bool:
    headers = {"Metadata-Flavor": "Google"}
    text = request("computeMetadata/v1/instance/preempted", headers, flavor="Google")
    return {"TRUE": True, "FALSE": False}[text.strip()]


def _ask_azure(request: Request) -> bool:
    headers = {"Metadata": "true"}
    preempted = _azure_preempted(request("metadata/scheduledevents?api-version=2020-07-01", headers))
    if not preempted:
        return False
    name = request("metadata/instance/compute/name?api-version=2021-02-01&format=text", headers)
    return name.strip().lower() in preempted


CLOUDS: Final = (
    Cloud(name="EC2", seconds=110.0, ask=_ask_ec2),
    Cloud(name="GCP", seconds=25.0, ask=_ask_gcp),
    Cloud(name="Azure", seconds=25.0, ask=_ask_azure),
)


@dataclass(frozen=True, kw_only=True)
class PollingState:
    """Which cloud's question is sent next, and when.

    A cloud that has answered is asked at every poll, because its notice leaves little time. Before that, each
    failed poll doubles the wait, so that a machine outside a cloud sends a request every five minutes.
    """

    cloud: Cloud | None = None
    """The cloud of this machine; None if it is unknown."""
    failures: int = 0
    """Number of failed polls since the last answer."""
    due: float = 0.0
    """The time of the next poll."""

    @property
    def candidates(self) -> tuple[Cloud, ...]:
        """The clouds to ask in the next poll, in order.

        A poll ends at the first cloud that does not answer. Each poll therefore begins with another cloud.
        """
        if self.cloud is not None:
            return (self.cloud,)
        first = self.failures % len(CLOUDS)
        return CLOUDS[first:] + CLOUDS[:first]

    def after(self, cloud: Cloud, answer: MetadataAnswer, now: float) -> PollingState:
        """Return the state after a poll that ended with the ``answer`` to the question of ``cloud``."""
        if answer in (MetadataAnswer.NOTICE, MetadataAnswer.NO_NOTICE):
            return PollingState(cloud=cloud)
        failures = self.failures + 1
        if self.cloud is not None:
            return dataclasses.replace(self, failures=failures)
        wait = min(_FIRST_WAIT * 2.0 ** min(self.failures, 16), _LONGEST_WAIT)
        return PollingState(failures=failures, due=now + wait)


class SpotNotice:
    """Polls the metadata service for the notice that this machine will be taken away."""

    def __init__(
        self,
        service: str = SERVICE,
        *,
        timeouts: Sequence[float] = _TIMEOUTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Store the URL ``service``; no request is sent yet.

        Args:
            service: URL of the metadata service.
            timeouts: Time limits of a request in seconds, the last one for all later requests.
            clock: Returns the time in seconds.
        """
        self._service = service
        self._timeouts = timeouts
        self._clock = clock
        # Without a proxy, because a proxy cannot serve this machine's own metadata.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._state = PollingState()

    def announced(self) -> Cloud | None:
        """Return the cloud if it has announced that it will take this machine away, else None."""
        state = self._state
        if self._clock() < state.due:
            return None
        timeout = self._timeouts[min(state.failures, len(self._timeouts) - 1)]
        for cloud in state.candidates:
            answer = self._ask(cloud, timeout)
            if answer is not MetadataAnswer.OTHER:
                break
        self._state = state.after(cloud, answer, self._clock())
        return cloud if answer is MetadataAnswer.NOTICE else None

    def _ask(self, cloud: Cloud, timeout: float) -> MetadataAnswer:
        try:
            has_notice = cloud.ask(functools.partial(self._request, timeout=timeout))
        except HTTPError as error:
            busy = (
                error.code == HTTPStatus.TOO_MANY_REQUESTS or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
            )
            return MetadataAnswer.SILENCE if busy else MetadataAnswer.OTHER
        except (OSError, HTTPException):
            return MetadataAnswer.SILENCE
        except (ValueError, LookupError, TypeError, AttributeError):
            return MetadataAnswer.OTHER
        return MetadataAnswer.NOTICE if has_notice else MetadataAnswer.NO_NOTICE

    def _request(
        self, path: str, headers: dict[str, str], *, timeout: float, method: str = "GET", flavor: str = ""
    ) -> str:
        request = urllib.request.Request(f"{self._service}/{path}", headers=headers, method=method)
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                if flavor and answer.headers.get("Metadata-Flavor") != flavor:
                    raise ValueError(f"the answer is not that of a service with the flavor {flavor}")
                return str(answer.read(_ANSWER_BYTES).decode())
        except HTTPError as error:
            error.close()
            raise


#: Seconds between two checks for a drain of the node.
POLL_EVERY: Final = 3.0

#: Time limit of a check in seconds.
_CHECK_TIMEOUT: Final = 5.0

_SPOT: Final = SpotNotice()

_LOGGER: Final = logging.getLogger(__name__)


class PreemptionSignal:
    """Whether this process was asked to stop, and whether a running trial checks for that.

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
        self, *, is_drained: Callable[[], bool], poll_every: float = POLL_EVERY
    ) -> Iterator[Callable[[], bool]]:
        """Watch for a preemption within the block. The block polls the function, and ends if it returns True.

        Args:
            is_drained: Returns True if the node is drained. It is polled on a separate thread.
            poll_every: Seconds between two polls of ``is_drained``.

        Yields:
            A function that returns True once this process is preempted.
        """
        over = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(is_drained, poll_every, over), name="notice", daemon=True
        )
        watch.start()
        self._polled = True
        try:
            yield self._preempted.is_set
        finally:
            self._polled = False
            # The thread is not joined: a check can take long, and has no effect after the block.
            over.set()

    def _watch(self, is_drained: Callable[[], bool], poll_every: float, over: threading.Event) -> None:
        is_failing = False
        while not over.wait(poll_every):
            try:
                drained = is_drained()
            except Exception:
                # Poll on: the next poll may succeed, and nothing else detects a drain or a spot notice.
                if not is_failing:
                    _LOGGER.exception("the node cannot be checked for a preemption; retrying")
                is_failing = True
                continue
            is_failing = False
            if drained:
                self._preempted.set()
                return

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._polled and not self._preempted.is_set():
            self._preempted.set()
        # A second signal, or no trial that polls the preemption: Ray's handler ends the process.
        elif callable(self._before):
            self._before(number, frame)
        elif self._before != signal.SIG_IGN:
            sys.exit(1)


#: The preemption signal of this process.
PREEMPTION: Final = PreemptionSignal()


class SignalHandlerMixin:
    """A mixin for the class that Tune creates from a trainable. Tune calls ``setup`` on the main thread."""

    def setup(self, config: dict[str, Any]) -> None:
        """Install the SIGTERM handler, then set up the trainable."""
        PREEMPTION.install()
        super().setup(config)  # type: ignore[misc]  # ray's FunctionTrainable comes after this one


def node_is_drained() -> bool:
    """Return whether this node is being drained, as far as is known; drain it after a spot notice."""
    import ray
    from ray._private.worker import global_worker

    if not ray.is_initialized():
        return False
    node, control = ray.get_runtime_context().get_node_id(), global_worker.gcs_client
    with suppress(ray.exceptions.RpcError):
        if node in control.get_draining_nodes(timeout=_CHECK_TIMEOUT):
            return True
    cloud = _SPOT.announced()
    if cloud is None:
        return False
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    deadline = int(1000 * (time.time() + cloud.seconds))
    with suppress(ray.exceptions.RpcError):
        control.drain_node(
            node, reason, f"{cloud.name} will take the machine away", deadline, timeout=_CHECK_TIMEOUT
        )
    return True

"""The spot notices of EC2, GCP and Azure: the order of the requests, and fake metadata services."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import LONGEST_WAIT, reserved_port
from tune_rescon.tuning.ray.preemption import CLOUDS, Cloud, MetadataAnswer, PollingState, SpotNotice


def events(kind: str, *machines: str) -> str:
    event_data = {"EventId": "A", "EventType": kind, "EventStatus": "Scheduled", "Resources": machines}
    return json.dumps({"DocumentIncarnation": 1, "Events": [event_data] if machines else []})


#: The response of each cloud's service without a notice and with one. None: 404.
RESPONSES: dict[str, tuple[str | None, str]] = {
    "EC2": (None, '{"action": "terminate", "time": "2026-11-26T08:22:00Z"}'),
    "GCP": ("FALSE", "TRUE"),
    "Azure": (events("Preempt"), events("Preempt", "other_1", "Spot_0")),
}

NOTICE_PATHS = {
    "EC2": "/latest/meta-data/spot/instance-action",
    "GCP": "/computeMetadata/v1/instance/preempted",
    "Azure": "/metadata/scheduledevents",
}


class MetadataService(ThreadingHTTPServer):
    """A cloud's metadata service that can be slow or fail. Without a cloud all responses are 404."""

    daemon_threads = True

    def __init__(self, cloud: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), RequestHandler)
        self.cloud = cloud
        self.response = RESPONSES[cloud][0] if cloud in RESPONSES else None
        self.status: int | None = None
        self.requests: list[str] = []
        self.unblocked = threading.Event()
        self.unblocked.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def announce(self) -> None:
        self.response = RESPONSES[self.cloud][1]


class RequestHandler(BaseHTTPRequestHandler):
    server: MetadataService

    def do_PUT(self) -> None:
        is_token = self.server.cloud == "EC2" and self.path == "/latest/api/token"
        self._respond("secret" if is_token and self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else None)

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        headers_are_valid = {
            "EC2": self.headers["X-aws-ec2-metadata-token"] == "secret",
            "GCP": self.headers["Metadata-Flavor"] == "Google",
            "Azure": self.headers["Metadata"] == "true" and "api-version" in parse_qs(address.query),
        }
        if not headers_are_valid.get(self.server.cloud):
            self._respond(None)
        elif self.server.cloud == "Azure" and address.path == "/metadata/instance/compute/name":
            self._respond("spot_0")
        else:
            self._respond(self.server.response if address.path == NOTICE_PATHS[self.server.cloud] else None)

    def _respond(self, text: str | None) -> None:
        self.server.requests.append(self.path)
        self.server.unblocked.wait(LONGEST_WAIT)
        self.send_response(self.server.status or (404 if text is None else 200))
        if self.server.cloud == "GCP":
            self.send_header("Metadata-Flavor", "Google")
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class has this name
        """Write no log."""

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client did not wait for a slow response
            super().handle()


class Poller:
    """Polls for the notice of a machine on a simulated clock."""

    def __init__(self, url: str, timeouts: tuple[float, ...] = (LONGEST_WAIT,)) -> None:
        self.now = 0.0
        self.spot = SpotNotice(url, timeouts=timeouts, clock=lambda: self.now)

    def poll(self, after: float = 3.0) -> str | None:
        self.now += after
        cloud = self.spot.announced()
        return cloud.name if cloud else None


@pytest.fixture(params=["EC2"])
def service(request: pytest.FixtureRequest) -> Iterator[MetadataService]:
    with serving(request.param) as service:
        yield service


@contextmanager
def serving(cloud: str, port: int = 0) -> Iterator[MetadataService]:
    with MetadataService(cloud, port) as service:
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield service
        service.unblocked.set()
        service.shutdown()
        thread.join()


@pytest.mark.parametrize("service", list(RESPONSES), indirect=True)
def test_each_clouds_notice_is_detected(service: MetadataService) -> None:
    poller = Poller(service.url)
    assert poller.poll() is None
    requests_before = len(service.requests)
    assert poller.poll() is None
    assert {urlsplit(path).path for path in service.requests[requests_before:]} <= {
        NOTICE_PATHS[service.cloud],
        "/latest/api/token" if service.cloud == "EC2" else "",
    }, "only the detected cloud is requested"
    service.announce()
    assert poller.poll() == service.cloud


@pytest.mark.parametrize("service", list(RESPONSES), indirect=True)
def test_a_slow_answer_does_not_disable_the_detection(service: MetadataService) -> None:
    poller = Poller(service.url, timeouts=(0.05, LONGEST_WAIT))
    service.unblocked.clear()
    service.announce()
    assert poller.poll() is None
    service.unblocked.set()
    assert service.cloud in [poller.poll() for _ in range(3)]


@pytest.mark.parametrize("service", list(RESPONSES), indirect=True)
def test_a_known_service_is_polled_each_time_despite_errors(service: MetadataService) -> None:
    poller = Poller(service.url)
    assert poller.poll() is None
    service.status = 503
    for _ in range(5):
        assert poller.poll() is None
    service.status = None
    service.announce()
    assert poller.poll() == service.cloud


def test_a_proxy_is_not_used(service: MetadataService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    service.announce()
    assert Poller(service.url).poll() == "EC2"


@pytest.mark.parametrize(
    ("service", "response"),
    [
        ("EC2", "<html>Welcome to the hotel</html>"),
        ("EC2", "{}"),
        ("EC2", "[]"),
        ("EC2", '{"action": "none"}'),
        ("GCP", "<html>Welcome to the hotel</html>"),
        ("GCP", "NONE"),
        ("Azure", events("Preempt", "other_1")),
        ("Azure", events("Reboot", "spot_0")),
        ("Azure", "[]"),
        ("Azure", '{"Events": [{"EventType": "Preempt", "Resources": [1]}]}'),
        ("no cloud", ""),
    ],
    indirect=["service"],
)
def test_other_answers_are_not_notices(service: MetadataService, response: str) -> None:
    service.response = response
    poller = Poller(service.url)
    assert poller.poll() is None
    assert poller.poll() is None


def test_a_service_that_does_not_speak_http_gives_no_notice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def send_ssh_banner() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0\r\n")

        thread = threading.Thread(target=send_ssh_banner)
        thread.start()
        assert Poller(f"http://127.0.0.1:{server.getsockname()[1]}").poll() is None
        thread.join()


def test_an_unreachable_service_is_polled_again_later() -> None:
    with reserved_port() as port:
        poller = Poller(f"http://127.0.0.1:{port}")
        assert poller.poll() is None
        with serving("EC2", port) as service:
            service.announce()
            assert poller.poll(after=0.0) is None
            assert service.requests == [], "too soon"
            assert [poller.poll() for _ in range(2)][-1] == "EC2"


def test_outside_a_cloud_requests_become_rare() -> None:
    """A day on a machine where each request hangs until its time limit."""
    state, now, requests = PollingState(), 0.0, 0
    while now < 24 * 3600:
        now += 3.0
        if now >= state.due:
            requests += 1
            state = state.after(state.candidates[0], MetadataAnswer.SILENCE, now)
    assert requests <= 24 * 3600 / 300 + 7


ANSWERS = st.sampled_from([MetadataAnswer.OTHER, MetadataAnswer.SILENCE])


@given(st.lists(ANSWERS, max_size=40))
def test_each_cloud_is_first_in_one_of_three_polls_and_none_is_dropped(before: list[MetadataAnswer]) -> None:
    state, now = PollingState(), 0.0
    for answer in before:
        state = state.after(state.candidates[-1], answer, now)
        assert now < state.due <= now + 300
        assert set(state.candidates) == set(CLOUDS)
        now = state.due
    firsts = []
    for _ in range(3):
        firsts.append(state.candidates[0])
        state = state.after(state.candidates[0], MetadataAnswer.SILENCE, now)
    assert set(firsts) == set(CLOUDS)


@given(st.lists(st.sampled_from(MetadataAnswer), max_size=20), st.sampled_from(CLOUDS))
def test_a_cloud_that_has_answered_is_polled_each_time(
    later: list[MetadataAnswer], known_cloud: Cloud
) -> None:
    state = PollingState().after(known_cloud, MetadataAnswer.NO_NOTICE, 5.0)
    for answer in later:
        assert state.candidates == (known_cloud,)
        assert state.due <= 5.0
        state = state.after(known_cloud, answer, 5.0)

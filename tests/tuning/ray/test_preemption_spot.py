"""The notices of EC2, GCP and Azure: when which cloud is asked, and each metadata service on loopback."""

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
    found = {"EventId": "A", "EventType": kind, "EventStatus": "Scheduled", "Resources": machines}
    return json.dumps({"DocumentIncarnation": 1, "Events": [found] if machines else []})


#: Of each cloud, what its service answers without a notice and with one; None: 404.
SAYS: dict[str, tuple[str | None, str]] = {
    "EC2": (None, '{"action": "terminate", "time": "2026-11-26T08:22:00Z"}'),
    "GCP": ("FALSE", "TRUE"),
    "Azure": (events("Preempt"), events("Preempt", "other_1", "Spot_0")),
}

WAYS = {
    "EC2": "/latest/meta-data/spot/instance-action",
    "GCP": "/computeMetadata/v1/instance/preempted",
    "Azure": "/metadata/scheduledevents",
}


class Service(ThreadingHTTPServer):
    """The metadata service of a cloud, which may be slow or busy; of no cloud, it knows no path."""

    daemon_threads = True

    def __init__(self, cloud: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Respond)
        self.cloud = cloud
        self.says = SAYS[cloud][0] if cloud in SAYS else None
        self.status: int | None = None
        self.asked: list[str] = []
        self.quick = threading.Event()
        self.quick.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def announce(self) -> None:
        self.says = SAYS[self.cloud][1]


class Respond(BaseHTTPRequestHandler):
    server: Service

    def do_PUT(self) -> None:
        is_token = self.server.cloud == "EC2" and self.path == "/latest/api/token"
        self._say("secret" if is_token and self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else None)

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        known = {
            "EC2": self.headers["X-aws-ec2-metadata-token"] == "secret",
            "GCP": self.headers["Metadata-Flavor"] == "Google",
            "Azure": self.headers["Metadata"] == "true" and "api-version" in parse_qs(address.query),
        }
        if not known.get(self.server.cloud):
            self._say(None)
        elif self.server.cloud == "Azure" and address.path == "/metadata/instance/compute/name":
            self._say("spot_0")
        else:
            self._say(self.server.says if address.path == WAYS[self.server.cloud] else None)

    def _say(self, text: str | None) -> None:
        self.server.asked.append(self.path)
        self.server.quick.wait(LONGEST_WAIT)
        self.send_response(self.server.status or (404 if text is None else 200))
        if self.server.cloud == "GCP":
            self.send_header("Metadata-Flavor", "Google")
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
        """Nothing."""

    def handle(self) -> None:
        with suppress(ConnectionError):  # who asked did not wait for a slow answer
            super().handle()


class Looks:
    """A machine's looks for its notice, under a simulated clock."""

    def __init__(self, url: str, timeouts: tuple[float, ...] = (LONGEST_WAIT,)) -> None:
        self.now = 0.0
        self.spot = SpotNotice(url, timeouts=timeouts, clock=lambda: self.now)

    def look(self, after: float = 3.0) -> str | None:
        self.now += after
        cloud = self.spot.announced()
        return cloud.name if cloud else None


@pytest.fixture(params=["EC2"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with serving(request.param) as service:
        yield service


@contextmanager
def serving(cloud: str, port: int = 0) -> Iterator[Service]:
    with Service(cloud, port) as service:
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield service
        service.quick.set()
        service.shutdown()
        thread.join()


@pytest.mark.parametrize("service", list(SAYS), indirect=True)
def test_each_clouds_notice_is_detected(service: Service) -> None:
    looks = Looks(service.url)
    assert looks.look() is None
    asked = len(service.asked)
    assert looks.look() is None
    assert {urlsplit(path).path for path in service.asked[asked:]} <= {
        WAYS[service.cloud],
        "/latest/api/token" if service.cloud == "EC2" else "",
    }, "only its own cloud is asked once that is known"
    service.announce()
    assert looks.look() == service.cloud


@pytest.mark.parametrize("service", list(SAYS), indirect=True)
def test_a_slow_answer_does_not_disable_the_detection(service: Service) -> None:
    looks = Looks(service.url, timeouts=(0.05, LONGEST_WAIT))
    service.quick.clear()
    service.announce()
    assert looks.look() is None
    service.quick.set()
    assert service.cloud in [looks.look() for _ in range(3)]


@pytest.mark.parametrize("service", list(SAYS), indirect=True)
def test_a_known_service_is_polled_each_time_despite_errors(service: Service) -> None:
    looks = Looks(service.url)
    assert looks.look() is None
    service.status = 503
    for _ in range(5):
        assert looks.look() is None
    service.status = None
    service.announce()
    assert looks.look() == service.cloud


def test_a_proxy_is_not_used(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    service.announce()
    assert Looks(service.url).look() == "EC2"


@pytest.mark.parametrize(
    ("service", "says"),
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
def test_other_answers_are_not_notices(service: Service, says: str) -> None:
    service.says = says
    looks = Looks(service.url)
    assert looks.look() is None
    assert looks.look() is None


def test_a_service_that_does_not_speak_http_gives_no_notice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def babble() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        assert Looks(f"http://127.0.0.1:{server.getsockname()[1]}").look() is None
        thread.join()


def test_an_unreachable_service_is_polled_again_later() -> None:
    with reserved_port() as port:
        looks = Looks(f"http://127.0.0.1:{port}")
        assert looks.look() is None
        with serving("EC2", port) as service:
            service.announce()
            assert looks.look(after=0.0) is None
            assert service.asked == [], "too soon"
            assert [looks.look() for _ in range(2)][-1] == "EC2"


def test_outside_a_cloud_requests_become_rare() -> None:
    """A day of a laptop, on which each request hangs until its time limit."""
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
def test_a_cloud_that_has_answered_is_polled_each_time(later: list[MetadataAnswer], known: Cloud) -> None:
    state = PollingState().after(known, MetadataAnswer.NO_NOTICE, 5.0)
    for answer in later:
        assert state.candidates == (known,)
        assert state.due <= 5.0
        state = state.after(known, answer, 5.0)

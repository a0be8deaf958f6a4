"""EC2's notice, from a metadata service on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tune_rescon.tuning.ray.preemption import SpotNotice

NOTICE = '{"action": "terminate", "time": "2026-11-26T08:22:00Z"}'


class Service(HTTPServer):
    """Knows its tokens, and a notice or none."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.notice: str | None = None
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/latest"


class Answer(BaseHTTPRequestHandler):
    server: Service

    def do_PUT(self) -> None:
        seconds = self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._say("secret" if self.path == "/latest/api/token" and seconds else None)

    def do_GET(self) -> None:
        known = self.headers["X-aws-ec2-metadata-token"] == "secret"
        asked = self.path == "/latest/meta-data/spot/instance-action"
        self._say(self.server.notice if known and asked else None)

    def _say(self, text: str | None) -> None:
        self.server.asked.append(self.path)
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
        """Nothing."""


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as service:
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield service
        service.shutdown()
        thread.join()


def test_a_notice_is_seen_when_it_comes(service: Service) -> None:
    spot = SpotNotice(service.url)
    assert not spot.came()
    assert not spot.came()
    service.notice = NOTICE
    assert spot.came()


def test_no_proxy_is_asked(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    service.notice = NOTICE
    assert SpotNotice(service.url).came()


@pytest.mark.parametrize("notice", ["<html>Welcome to the hotel</html>", "{}", "[]", '{"action": "none"}'])
def test_what_is_no_notice_is_none(notice: str, service: Service) -> None:
    service.notice = notice
    assert not SpotNotice(service.url).came()


def test_where_nobody_answers_nobody_is_asked_again(service: Service) -> None:
    spot = SpotNotice(f"http://127.0.0.1:{closed_port()}/latest")
    assert not spot.came()
    spot._service = service.url
    assert not spot.came()
    assert service.asked == []


def test_who_has_answered_before_is_asked_again(service: Service) -> None:
    spot = SpotNotice(service.url)
    assert not spot.came()
    spot._service = f"http://127.0.0.1:{closed_port()}/latest"
    assert not spot.came()
    spot._service, service.notice = service.url, NOTICE
    assert spot.came()


def closed_port() -> int:
    with Service() as service:
        return service.server_port

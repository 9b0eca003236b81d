"""The page over HTTP, of a real server."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from served import ServerProcess, infer, queries

pytestmark = pytest.mark.slow


def frames(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_the_page_loads_nothing_from_elsewhere_and_changes_nothing(server: ServerProcess) -> None:
    page = httpx.get(f"{server.url}/ui", follow_redirects=True)
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert "://" not in page.text
    for name, kind in (("page.js", "text/javascript"), ("page.css", "text/css")):
        file = httpx.get(f"{server.url}/ui/{name}")
        assert (file.status_code, file.headers["content-type"].split(";")[0]) == (200, kind)
    about = httpx.get(f"{server.url}/ui/about").json()
    assert about == {"title": "model", "repository": False}
    assert httpx.post(f"{server.url}/ui/control", json={"type": "kill"}).status_code == 404
    assert httpx.post(f"{server.url}/ui/about").status_code == 405


@pytest.mark.parametrize("path", ["/ui/", "/ui/about", "/ui/events", "/ui/page.js"])
def test_pages_of_others_that_lead_here_are_refused(server: ServerProcess, path: str) -> None:
    for headers in (
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"X-Forwarded-For": "192.0.2.1"},  # a proxy on this machine gives its own Host
    ):
        answer = httpx.get(f"{server.url}{path}", headers=headers)
        assert answer.status_code == 403
        assert "127.0.0.1" in answer.json()["error"]


def test_the_events_say_what_the_server_does(server: ServerProcess) -> None:
    with httpx.stream("GET", f"{server.url}/ui/events", timeout=60) as events:
        assert events.headers["content-type"] == "text/event-stream"
        assert "access-control-allow-origin" not in events.headers
        stream = frames(events)
        first = next(stream)
        assert first["ready"]
        assert [cell["state"] for cell in first["instances"]] == ["up"] * 3
        with httpx.Client(base_url=server.url) as client:
            assert infer(client, queries(4)).is_success
        points = (frame["points"] for frame in stream)
        answered = next(each[-1] for each in points if each and each[-1]["answered"])
        assert sum(answered["answers"].values()) > 0
        assert answered["answered"]["p50"] >= 20


def test_a_server_that_stops_ends_the_events_and_waits_for_no_watcher(plain: Path) -> None:
    options = ("--ui", "--policy", "none", "--instances", "1")
    with (
        ServerProcess(str(plain), *options) as server,
        httpx.stream("GET", f"{server.url}/ui/events", timeout=60) as events,
    ):
        stream = frames(events)
        next(stream)
        server.signal(signal.SIGTERM)
        assert all("ready" in frame for frame in stream)
        assert server.wait() == 0

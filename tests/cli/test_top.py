"""parm top shows what a server does."""

import asyncio
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

import forked
from parity_models.cli.top import show
from parity_models.cli.top_view import Seen, view
from parity_models.errors import UserError
from parity_models.serving.page.frames import (
    Event,
    GateView,
    InstanceView,
    PageFrame,
    Percentiles,
    Point,
    RequestView,
    Tail,
)
from served import ServerProcess, write_linear_bundle

pytestmark = pytest.mark.slow

FAST, SLOW = Percentiles(100, 10.0, 20.0, 30.0), Percentiles(100, 10.0, 200.0, 300.0)


def frame(*events: Event, at: float = 1.0, **fields: Any) -> PageFrame:
    seen: dict[str, Any] = {
        "model": "digits", "policy": "adaptive", "ready": True, "further_instances": 0,
        "instances": (
            InstanceView(1, "0", "a", ("deployed",), "up", True, "deployed", 5.0, 40.0),
            InstanceView(2, "1", "b", ("deployed",), "gone", why="was ended by signal 9"),
        ),
        "queued": {"deployed": 3, "backup": 1}, "asked": 120.0, "failed": 0.0, "busy": 0.5,
        "answers": {"model": 95.0, "backup": 5.0},
        "answered": Tail(FAST, FAST), "alone": Tail(SLOW, SLOW), "own": 4, "bounds": 0,
        "gates": (GateView("backup", 0.99, 0.9, False, 50, 40, 50, 40),),
        "requests": (RequestView(7, "backup", "0", (11,), (11,), "answered", 4.0),),
        "requests_sent": 1, "events": events,
        "points": (Point(at, 120.0, 4, 0.5, {}, 0.0, FAST, SLOW),),
    }  # fmt: skip
    return PageFrame(at=at, **(seen | fields))


def text_of(seen: Seen) -> str:
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(view(seen))
    return capture.get()


def test_one_look_tells_what_a_server_does() -> None:
    seen = Seen()
    seen.add(frame(Event(1, 0.0, "left", "instance 1 left: it was ended by signal 9")))
    text = text_of(seen)
    for told in (
        "digits", "policy adaptive", "120.0 queries/s", "4 waiting", "50% busy", "slow", "gone",
        "20.0", "200.0", "model 95.0%, backup 5.0%", "80.0% of 50 agree", "promises 99.0%",
        "GATE CLOSED", "answered", "instance 1 left",
    ):  # fmt: skip
        assert told in text


def test_what_is_told_twice_is_shown_once_and_old_events_give_way() -> None:
    seen = Seen()
    for number in range(1, 30):
        event = Event(number, 0.0, "left", f"instance {number} left")
        seen.add(frame(event, at=float(number)))
        seen.add(frame(event, at=float(number)))
    text = text_of(seen)
    assert text.count("instance 29 left") == 1
    assert "instance 9 left" not in text
    assert len(seen.p99) == 29


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    bundle = write_linear_bundle(tmp_path_factory.mktemp("bundle"))
    with ServerProcess(str(bundle), "--ui", "--policy", "none", "--instances", "2") as server:
        yield server


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return forked.run("top", *arguments, timeout=60)


def test_it_shows_a_real_server(server: ServerProcess) -> None:
    shown = run(server.url, "--once")
    assert shown.returncode == 0, shown.stderr
    assert "policy none" in shown.stdout
    assert shown.stdout.count(" up ") == 2


async def test_it_draws_frame_after_frame_until_the_server_ends() -> None:
    first, second = frame(at=1.0), frame(at=2.0, model="changed")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        for each in (first, second):
            writer.write(b"data: " + msgspec.json.encode(each) + b"\n\n")
        writer.close()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}"
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=100, height=60)
    with pytest.raises(UserError, match="has ended"):
        await show(console, url, once=False)
    other.close()
    text = drawn.getvalue()
    assert text.index("digits") < text.index("changed")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:1", "no server answers"),
    ],
)
def test_what_cannot_be_watched_is_said(url: str, why: str) -> None:
    shown = run(url, "--once")
    assert shown.returncode == 2
    assert why in shown.stderr


def test_of_a_server_without_a_page_it_shows_what_the_metrics_tell(
    tmp_path: Path,
) -> None:
    bundle = write_linear_bundle(tmp_path)
    with ServerProcess(str(bundle), "--policy", "none", "--instances", "2") as server:
        shown = run(server.url, "--once")
    assert shown.returncode == 0, shown.stderr
    assert "model  ready" in " ".join(shown.stdout.split(" "))
    assert "2 of the model are up" in shown.stdout


async def test_a_server_with_neither_page_nor_metrics_is_said_to_need_one() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    shown = await asyncio.to_thread(run, f"http://127.0.0.1:{port}", "--once")
    other.close()
    assert shown.returncode == 2
    assert "--ui" in shown.stderr

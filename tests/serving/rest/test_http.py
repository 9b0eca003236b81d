"""HTTP as clients speak it, well and badly, over real sockets: bounded in time and in size."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parity_models.models.tensor import TensorSpec
from parity_models.scheduling import Source
from parity_models.serving.asgi import rest_app
from parity_models.serving.asked import Answers
from parity_models.serving.errors import OverloadedError
from parity_models.serving.http.server import HttpServer, listen, url_of
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.rest import Rest
from parity_models.serving.served_model import ServedModel

MODEL = ServedModel("model", TensorSpec("x", "FP32", (4,)), TensorSpec("y", "FP32", (4,)), 2000)
INFER = "/v2/models/model/infer"


class Echo:
    """A frontend whose answers are its inputs, `times` over, once it may answer."""

    ready = True
    quarantined = ()

    def __init__(self, times: int = 1) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.asked = 0
        self.cancelled = 0
        self._times = times

    async def infer(
        self, rows: NDArray[Any], timeout: float | None, *, tenant: str | None, exact: bool
    ) -> Answers:
        self.asked += 1
        try:
            await self.may.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if rows[0, 0] < 0:
            raise OverloadedError("overloaded: too much waits", retry_after=-float(rows[0, 0]))
        return Answers(np.tile(rows, (1, self._times)), [Source.MODEL] * len(rows))


class Served:
    """A server over an echo, and what a test needs to know of it."""

    def __init__(self, limits: Limits, echo: Echo) -> None:
        self.echo = echo
        self.metrics = Metrics()
        self.budget = ByteBudget(limits.max_in_flight)
        rest = Rest(echo, MODEL, self.metrics, limits, self.budget)
        self.server = HttpServer(rest, self.metrics)
        self.socket = listen("127.0.0.1", 0)
        self.url = url_of(self.socket)
        self.port = self.socket.getsockname()[1]
        self.server.start(self.socket)

    async def connect(self) -> "Client":
        return Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=2**24))

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))

    async def answer(self, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of the next answer."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        size = 0 if head else int(headers.get("content-length", 0))
        return int(lines[0].split()[1]), headers, await self.reader.readexactly(size)

    async def error(self) -> tuple[int, str]:
        """Status and text of the next answer, which is an error, and the connection's last."""
        status, headers, content = await self.answer()
        assert headers["connection"] == "close"
        assert await self.rest() == b""
        return status, json.loads(content)["error"]

    async def rest(self) -> bytes:
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def serving(echo: Echo | None = None, **limits: Any) -> AsyncIterator[Served]:
    served = Served(Limits(**limits), echo or Echo())
    try:
        yield served
    finally:
        served.echo.may.set()
        await served.server.stop()
    assert served.budget.held == 0


async def eventually(condition: Callable[[], bool], otherwise: str) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(otherwise)


def body(*values: float) -> bytes:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": list(values) or [0.0] * 4}
    return json.dumps({"inputs": [tensor]}).encode()


def binary(rows: NDArray[np.float32]) -> bytes:
    """A whole request with binary data both ways."""
    parameters = {"binary_data_size": rows.nbytes}
    tensor = {"name": "x", "shape": rows.shape, "datatype": "FP32", "parameters": parameters}
    message = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    head = json.dumps(message).encode()
    length = f"Inference-Header-Content-Length: {len(head)}\r\n"
    return post(head + rows.tobytes(), length)


def post(content: bytes, more: str = "", path: str = INFER, version: str = "1.1") -> bytes:
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\n{more}Content-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def get(path: str = "/v2/health/live", more: str = "", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()


Loop = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Loop:
    return uvloop.run if request.param == "uvloop" else asyncio.run


# HTTP/1.1


def test_connections_are_kept_and_closed_as_http_says(run: Loop) -> None:
    async def test() -> None:
        async with serving() as served:
            client = await served.connect()
            for _ in range(3):
                client.send(post(body(1, 2, 3, 4)))
                status, headers, content = await client.answer()
                assert status == 200
                assert json.loads(content)["outputs"][0]["data"] == [1, 2, 3, 4]
                assert "connection" not in headers
                assert headers["date"].endswith("gmt")
            client.send(get(method="HEAD"))
            status, headers, _ = await client.answer(head=True)
            assert (status, headers["content-length"]) == (200, "13")
            client.send(get(more="Connection: close\r\n"), get())
            assert (await client.answer())[1]["connection"] == "close"
            assert await client.rest() == b""
            for more, kept in (("", False), ("Connection: keep-alive\r\n", True)):
                client = await served.connect()
                client.send(post(body(), more, version="1.0"))
                status, headers, _ = await client.answer()
                assert status == 200
                assert headers["connection"] == ("keep-alive" if kept else "close")
                if not kept:
                    assert await client.rest() == b""

    run(test())


def test_bodies_come_in_chunks_or_after_leave_was_asked(run: Loop) -> None:
    async def test() -> None:
        async with serving() as served:
            client = await served.connect()
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n"
            client.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            for byte in body(5, 6, 7, 8):
                client.send(b"1\r\n", bytes([byte]), b"\r\n")
                await client.writer.drain()
            client.send(b"0\r\nInference-Header-Content-Length: 1\r\n\r\n")  # a trailer: ignored
            status, _, content = await client.answer()
            assert (status, json.loads(content)["outputs"][0]["data"]) == (200, [5, 6, 7, 8])
            length = len(body())
            client.send(f"{head}Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n".encode())
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(body())
            assert (await client.answer())[0] == 200
            # A client that offers another protocol gets this one.
            client.send(post(body(), "Connection: Upgrade\r\nUpgrade: h2c\r\n"), get())
            assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
            client.send(get("http://anything:80/v2/health/live?at=all"))
            assert (await client.answer())[2] == b'{"live":true}'

    run(test())


def test_pipelined_requests_are_answered_in_order_up_to_a_number(run: Loop) -> None:
    async def test() -> None:
        async with serving() as served:
            client = await served.connect()
            served.echo.may.clear()
            client.send(*(post(body(number, 0, 0, 0)) + get() for number in range(20)))
            await eventually(lambda: served.echo.asked == 1, "no request arrives")
            served.echo.may.set()
            for number in range(20):
                content = json.loads((await client.answer())[2])
                assert content["outputs"][0]["data"][0] == number
                assert (await client.answer())[2] == b'{"live":true}'
            served.echo.may.clear()
            client.send(post(body()), get() * 1000)
            await eventually(lambda: served.echo.asked == 21, "no request arrives")
            served.echo.may.set()
            assert (await client.answer())[0] == 200
            for _ in range(64):
                assert (await client.answer())[0] == 200
            status, error = await client.error()
            assert status == 400
            assert "at most 64 requests ahead of their answers" in error

    run(test())


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "not HTTP/1.1"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400, "not HTTP/1.1"),
        (b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400, "not HTTP/1.1"),
        (b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400, "not HTTP/1.1"),
        (b"Content-Length: +3\r\n\r\nabc", 400, "not HTTP/1.1"),
        (b"Content-Length: 3, 3\r\n\r\nabc", 400, "not HTTP/1.1"),
        (b"Content-Length : 3\r\n\r\nabc", 400, "not HTTP/1.1"),
        (b"Transfer-Encoding: identity\r\n\r\nabc", 501, "'identity' is not read here"),
        (b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "'gzip, chunked'"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, ""),
        (b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "not HTTP/1.1"),
        (b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n", 400, "not HTTP/1.1"),
        (b"Content-Length: 0\r\n\r\nCONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405, "no proxy"),
        (b"X: a\nContent-Length: 0\r\n\r\n", 400, "not HTTP/1.1"),
    ],
)
async def test_what_could_be_read_in_two_ways_ends_the_connection(
    text: bytes, status: int, reason: str
) -> None:
    async with serving() as served:
        client = await served.connect()
        client.send(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode(), text, get())
        if status == 405:
            assert (await client.answer())[0] == 400
        got, error = await asyncio.wait_for(client.error(), 20)
        assert got == status
        assert reason in error
        assert served.echo.asked == 0


# Limits of size


def test_bodies_are_refused_by_their_declared_size_before_they_are_read(run: Loop) -> None:
    async def test() -> None:
        async with serving(max_body=1000) as served:
            for more in ("", "Expect: 100-continue\r\n"):
                client = await served.connect()
                head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: 100000\r\n\r\n"
                client.send(head.encode())
                status, _, content = await client.answer()
                assert status == 413
                assert b"larger than the 1000 bytes" in content
                client.close()
            # A client that sends all the same reads the answer all the same.
            client = await served.connect()
            chunks = b"".join(b"64\r\n" + bytes(100) + b"\r\n" for _ in range(18))
            client.send(f"POST {INFER} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            client.send(chunks)
            status, _, content = await client.answer()
            assert (status, b"larger than the 1000 bytes" in content) == (413, True)
            client.close()
            # A small body that nobody wants costs no connection.
            client = await served.connect()
            client.send(post(body(), path="/v2/models/other/infer"), get())
            assert [(await client.answer())[0] for _ in range(2)] == [404, 200]
            assert served.echo.asked == 0
            assert served.counted("parm_requests_total", code="413") == 3
            assert served.counted("parm_requests_total", code="404") == 1

    run(test())


def test_all_requests_in_flight_share_a_budget_of_bytes(run: Loop) -> None:
    async def test() -> None:
        async with serving(max_body=1000, max_in_flight=1500) as served:
            served.echo.may.clear()
            padded = body() + b" " * (800 - len(body()))
            first, second = await served.connect(), await served.connect()
            first.send(post(padded))
            await eventually(lambda: served.echo.asked == 1, "no request arrives")
            assert served.budget.held == 800
            second.send(post(padded))
            status, headers, content = await second.answer()
            assert (status, headers["retry-after"]) == (503, "1")
            assert b"800 more would exceed the 1500 this server holds at once" in content
            second.send(get())  # what is small goes on
            assert (await second.answer())[0] == 200
            served.echo.may.set()
            assert (await first.answer())[0] == 200
            second.send(post(padded))
            assert (await second.answer())[0] == 200
            # What comes in chunks is paid for as it comes, and given back when it does not.
            served.echo.may.clear()
            first.send(f"POST {INFER} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            first.send(b"3e8\r\n" + bytes(1000) + b"\r\n")
            await eventually(lambda: served.budget.held == 1000, "nothing is paid for")
            first.close()
            await eventually(lambda: served.budget.held == 0, "nothing is given back")

    run(test())


async def test_trailers_beyond_the_limit_are_refused() -> None:
    async with serving() as served:
        client = await served.connect()
        client.send(f"POST {INFER} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        client.send(b"2\r\n{}\r\n0\r\nTrailer: ")
        for _ in range(100):
            client.send(b"x" * 10_000)
            await asyncio.sleep(0)
        status, _, content = await client.answer()
        assert (status, b"longer than 65536 bytes" in content) == (431, True)
        client.close()


async def test_headers_beyond_the_limit_are_refused() -> None:
    async with serving() as served:
        for more in ("X: " + "y" * 70_000, "".join(f"X-{i}: y\r\n" for i in range(8000))):
            client = await served.connect()
            client.send(f"GET /v2 HTTP/1.1\r\n{more}\r\n\r\n".encode())
            status, error = await client.error()
            assert status == 431
            assert "longer than 65536 bytes" in error


def test_connections_beyond_the_limit_are_told_so_until_one_leaves(run: Loop) -> None:
    async def test() -> None:
        async with serving(max_connections=3) as served:
            clients = [await served.connect() for _ in range(3)]
            for client in clients:
                client.send(get())
                assert (await client.answer())[0] == 200
            refused = await served.connect()
            refused.send(post(body()))
            status, headers, content = await refused.answer()
            assert (status, headers["connection"]) == (503, "close")
            assert int(headers["retry-after"]) >= 1
            assert "the server takes at most 3 connections" in json.loads(content)["error"]
            probe = await served.connect()
            probe.send(get())
            assert (await probe.answer())[0] == 200
            assert served.counted("parm_connections_ended_total", limit="max_connections") == 2
            assert served.echo.asked == 0
            clients.pop().close()
            await eventually(lambda: len(served.server._connections) == 2, "nobody has left")
            again = await served.connect()
            again.send(post(body()))
            assert (await again.answer())[0] == 200
            for client in clients:
                client.send(post(body()))
                assert (await client.answer())[0] == 200

    run(test())


def test_silent_connections_beyond_the_limit_keep_nobody_from_the_answer(run: Loop) -> None:
    async def test() -> None:
        async with serving(max_connections=1) as served:
            first = await served.connect()
            first.send(get())
            assert (await first.answer())[0] == 200
            silent = [await served.connect() for _ in range(40)]
            last = await served.connect()
            last.send(post(body()))
            async with asyncio.timeout(8):  # there is room for 16 at a time
                assert (await last.answer())[0] == 503
                for client in silent:
                    status, headers, _ = await client.answer()
                    assert (status, headers["connection"]) == (503, "close")
            first.send(get())
            assert (await first.answer())[0] == 200

    run(test())


def test_1100_connections_at_once_are_served_or_refused_and_all_recovers() -> None:
    async def test() -> None:
        async with serving(head_timeout=2) as served:
            address = ("127.0.0.1", served.port)
            sockets = [socket.socket() for _ in range(1100)]
            for each in sockets:
                each.setblocking(False)
                await asyncio.get_running_loop().sock_connect(each, address)
            await eventually(lambda: len(served.server._connections) >= 1024, "too few get in")
            statuses = []
            for each in (*sockets[:3], sockets[1023], sockets[1024], sockets[1039]):
                each.setblocking(False)
                await asyncio.get_running_loop().sock_sendall(each, get("/v2"))
                answer = await asyncio.get_running_loop().sock_recv(each, 1000)
                statuses.append(int(answer.split()[1]))
            assert statuses == [200] * 4 + [503] * 2
            assert len(served.server._connections) <= 1024 + 16
            for each in sockets:
                each.close()
            await eventually(lambda: not served.server._connections, "connections are left")
            client = await served.connect()
            client.send(get())
            assert (await client.answer())[0] == 200

    uvloop.run(test())


# Limits of time


def test_slow_headers_and_slow_bodies_end_with_408(run: Loop) -> None:
    async def test() -> None:
        async with serving(head_timeout=0.3, body_timeout=0.3) as served:
            dripping, halting = await served.connect(), await served.connect()

            async def drip() -> None:
                dripping.send(b"GET /v2 HTTP/1.1\r\nX-Slow: ")
                while True:
                    dripping.send(b"x")
                    await asyncio.sleep(0.02)

            drops = asyncio.create_task(drip())
            halting.send(post(bytes(500))[:-400])
            late_head, late_body = [
                await asyncio.wait_for(client.answer(), 20) for client in (dripping, halting)
            ]
            drops.cancel()
            assert late_head[0] == late_body[0] == 408
            assert b"headers did not come whole within the head_timeout of 0.3 s" in late_head[2]
            assert b"body did not come whole within the body_timeout of 0.3 s" in late_body[2]
            for client in (dripping, halting):
                client.close()
            for limit in ("head timeout", "body timeout"):
                assert served.counted("parm_connections_ended_total", limit=limit) == 1
            assert served.counted("parm_requests_total", code="408") == 1

    run(test())


@pytest.mark.parametrize("late", ["headers", "body"])
def test_a_late_request_is_refused_after_the_answers_to_those_before_it(
    run: Loop, late: str
) -> None:
    async def test() -> None:
        async with serving(head_timeout=0.2, body_timeout=0.2) as served:
            served.echo.may.clear()
            client = await served.connect()
            whole = post(body())
            client.send(whole, whole[:30] if late == "headers" else whole[:-10])
            await asyncio.sleep(1)  # several looks at what is late
            served.echo.may.set()
            assert (await client.answer())[0] == 200
            status, error = await client.error()
            assert status == 408
            assert f"the request's {late} did not come whole" in error
            limit = "head timeout" if late == "headers" else "body timeout"
            assert served.counted("parm_connections_ended_total", limit=limit) == 1
            assert served.counted("parm_connections_ended_total", limit="idle timeout") == 0

    run(test())


def test_idle_connections_are_closed_and_busy_ones_are_not(run: Loop) -> None:
    async def test() -> None:
        async with serving(idle_timeout=0.3, head_timeout=0.3) as served:
            silent, idle, busy = [await served.connect() for _ in range(3)]
            served.echo.may.clear()
            busy.send(post(body()))
            idle.send(get())
            assert (await idle.answer())[0] == 200
            assert await silent.rest() == b""
            assert await idle.rest() == b""
            assert served.counted("parm_connections_ended_total", limit="idle timeout") == 2
            served.echo.may.set()
            assert (await busy.answer())[0] == 200

    run(test())


def test_a_client_that_does_not_read_is_cut_off_and_holds_the_budget_till_then(run: Loop) -> None:
    async def test() -> None:
        async with serving(Echo(times=1000), write_timeout=0.4) as served:
            client = await served.connect()
            transport = client.writer.transport
            # A StreamWriter says that it has a WriteTransport; that of a socket reads, too.
            transport.pause_reading()  # type: ignore[attr-defined]
            rows = np.zeros((2000, 4), np.float32)
            for _ in range(20):
                client.send(binary(rows))  # each answer has 32 MB
            await eventually(lambda: served.budget.held > 2**24, "answers are not counted")
            assert served.echo.asked < 5
            await eventually(lambda: not served.server._connections, "it is not cut off")
            assert served.budget.held == 0
            assert served.counted("parm_connections_ended_total", limit="write timeout") == 1

    run(test())


# Ends


def test_a_client_that_goes_away_has_its_query_abandoned(run: Loop) -> None:
    async def test() -> None:
        async with serving() as served:
            served.echo.may.clear()
            client = await served.connect()
            client.send(post(body()), post(body()))
            await eventually(lambda: served.echo.asked == 1, "no request arrives")
            client.close()
            await eventually(lambda: served.echo.cancelled == 1, "nothing is cancelled")
            client = await served.connect()
            client.send(post(bytes(100))[:-50])
            await eventually(lambda: served.budget.held == 100, "no request arrives")
            client.close()
            await eventually(lambda: served.budget.held == 0, "the budget is not given back")
            assert served.counted("parm_requests_total", code="499") == 2
            assert served.echo.asked == 1

    run(test())


def test_a_client_that_sends_no_more_gets_the_answers_to_what_it_has_sent(run: Loop) -> None:
    async def test() -> None:
        async with serving() as served:
            for version in ("1.1", "1.0"):
                served.echo.may.clear()
                both = served.echo.asked + 1

                def has_come(both: int = both) -> bool:
                    return served.echo.asked == both

                client = await served.connect()
                keep = "Connection: keep-alive\r\n"
                begun = f"POST / HTTP/{version}\r\n".encode()
                client.send(*[post(body(), keep, version=version)] * 2, begun)
                client.writer.write_eof()
                await eventually(has_come, "none")
                await asyncio.sleep(0.6)
                served.echo.may.set()
                if version == "1.1":
                    assert (await client.answer())[0] == 100
                assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
                assert await client.rest() == b""
            assert served.echo.cancelled == 0
            client = await served.connect()
            client.send(get())
            client.writer.write_eof()
            assert (await client.answer())[0] == 200
            assert await client.rest() == b""

    run(test())


def test_a_client_that_sends_no_more_and_then_goes_away_has_its_query_abandoned(run: Loop) -> None:
    async def test() -> None:
        async with serving() as served:
            served.echo.may.clear()
            client = await served.connect()
            client.send(post(body()))
            client.writer.write_eof()
            assert (await client.answer())[0] == 100
            await asyncio.sleep(0.4)
            assert served.echo.cancelled == 0
            linger = struct.pack("ii", 1, 0)
            there = client.writer.get_extra_info("socket")
            there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.close()
            await eventually(lambda: served.echo.cancelled == 1, "nothing is cancelled")

    run(test())


def test_a_refusal_says_when_to_try_again_in_whole_seconds(run: Loop) -> None:
    async def test() -> None:
        async with serving() as served:
            client = await served.connect()
            for seconds, header in ((0.01, "1"), (1.0, "1"), (2.2, "3")):
                client.send(post(body(-seconds, 0, 0, 0)))
                status, headers, _ = await client.answer()
                assert (status, headers["retry-after"]) == (503, header)

    run(test())


def test_a_server_that_stops_finishes_what_is_under_way(run: Loop) -> None:
    async def test() -> None:
        async with serving() as served:
            idle, busy = await served.connect(), await served.connect()
            served.echo.may.clear()
            idle.send(get())
            assert (await idle.answer())[0] == 200
            busy.send(post(body()))
            await eventually(lambda: served.echo.asked == 1, "no request arrives")
            served.server.drain()
            late = await served.connect()
            late.send(get("/v2/health/ready"))
            status, headers, _ = await late.answer()
            assert (status, headers["connection"]) == (200, "close")
            stopping = asyncio.create_task(served.server.stop())
            assert await idle.rest() == b""
            served.echo.may.set()
            status, headers, _ = await busy.answer()
            assert (status, headers["connection"]) == (200, "close")
            await asyncio.wait_for(stopping, 3)

    run(test())


def test_a_server_that_stops_answers_those_that_wait_to_be_accepted(run: Loop) -> None:
    async def test() -> None:
        async with serving() as served:
            waiting = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(100)]
            for each in waiting[:-1]:
                each.sendall(get())
            await served.server.stop()  # which begins before the loop sees any of them
            for each in waiting[:-1]:
                answer = each.recv(1000)
                assert answer.startswith(b"HTTP/1.1 200 OK")
                assert b"connection: close" in answer
            assert waiting[-1].recv(1000) == b""
            for each in waiting:
                each.close()

    run(test())


def test_a_request_that_crosses_the_end_of_its_connection_resets_nothing(run: Loop) -> None:
    async def test() -> None:
        async with serving() as served:
            prompt, late = await served.connect(), await served.connect()
            for client in (prompt, late):
                client.send(get())
                assert (await client.answer())[0] == 200
            stopping = asyncio.create_task(served.server.stop())
            await asyncio.sleep(0)
            prompt.send(get())
            status, headers, _ = await prompt.answer()
            assert (status, headers["connection"]) == (200, "close")
            while not late.reader.at_eof():
                await asyncio.sleep(0.001)
            late.send(get())
            await asyncio.sleep(0.05)
            assert await late.reader.read() == b""  # and no ConnectionResetError
            late.close()
            await asyncio.wait_for(stopping, 3)

    run(test())


# Whatever comes

PIECES = st.lists(
    st.sampled_from(
        [
            get(),
            get("/v2/models/model"),
            post(body()),
            post(b"{}", path="/v2/models/x/infer"),
            b"POST / HTTP/1.1\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Content-Length: 5\r\n",
            b"\r\n",
            b"5\r\nhello\r\n",
            b"0\r\n\r\n",
        ]
    )
    | st.binary(max_size=20),
    max_size=6,
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pieces=PIECES, cut=st.integers(1, 40))
def test_arbitrary_bytes_in_any_pieces_hurt_nobody(
    pieces: list[bytes], cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    text = b"".join(pieces)

    async def test() -> None:
        async with serving() as served:
            client = await served.connect()
            for start in range(0, len(text), cut):
                client.send(text[start : start + cut])
                await asyncio.sleep(0)
            client.writer.write_eof()
            answers = await asyncio.wait_for(client.rest(), 20)
            assert not answers or answers.startswith(b"HTTP/1.1 ")
            other = await served.connect()
            other.send(post(body()))
            assert (await other.answer())[0] == 200
        assert not caplog.records

    uvloop.run(test())


# As an ASGI application


async def test_the_asgi_application_is_the_same_service() -> None:
    echo = Echo()
    app = rest_app(echo, MODEL, Metrics(), Limits(max_body=1000))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        response = await client.post(INFER, content=body(1, 2, 3, 4))
        assert response.json()["outputs"][0]["data"] == [1, 2, 3, 4]
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        assert (await client.head("/v2")).content == b""
        response = await client.post(INFER, content=bytes(1001))
        assert (response.status_code, "1000 bytes" in response.json()["error"]) == (413, True)
        assert (await client.post(INFER, content=body(-3, 0, 0, 0))).headers["retry-after"] == "3"
        assert (await client.get("/nowhere")).status_code == 404


async def test_a_client_that_leaves_the_asgi_application_has_its_query_abandoned() -> None:
    echo, metrics = Echo(), Metrics()
    app = rest_app(echo, MODEL, metrics)
    echo.may.clear()
    messages = iter([{"type": "http.request", "body": body()}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": INFER, "headers": []}
    await app(scope, receive, send)
    assert not sent
    assert metrics.registry.get_sample_value("parm_requests_total", {"code": "499"}) == 1


async def test_an_application_that_is_mounted_under_a_path_answers_there() -> None:
    app = rest_app(Echo(), MODEL, Metrics(), Limits())
    transport = httpx.ASGITransport(app=app, root_path="/coded")
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        assert (await client.get("/coded/v2/health/live")).status_code == 200
        assert (await client.get("/v2/health/live")).status_code == 200

"""The HTTP layer reads what h11 reads: the same requests, in the same order, or fewer."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from unittest.mock import Mock

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_models.serving.errors import RequestError
from parity_models.serving.http import HttpConnection, HttpServer
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.rest import Request, Response, Rest, error_response

pytestmark = pytest.mark.slow

Read = tuple[str, str, bytes]
"""The method, target and body of a request."""


class Recorder:
    """A service that takes all requests and notes them."""

    limits, metrics = Limits(max_body=10**6), Metrics()

    def __init__(self) -> None:
        self.budget = ByteBudget(10**7)
        self.read: list[Read] = []

    def begin(self, request: Request, size: int) -> None:
        request.max_body, request.budget = 10**6, self.budget

    async def answer(self, request: Request) -> Response:
        self.read.append((request.method, request.target, bytes(request.body)))
        return Response(200, b"")

    def refused(self, request: Request, error: RequestError) -> Response:
        return error_response(str(error), error.status)

    def abandoned(self, request: Request) -> None:
        pass


def silent_transport() -> Any:
    """One whose client reads nothing, and sends what the test says."""
    answers = {"get_write_buffer_size.return_value": 0, "is_closing.return_value": False}
    return Mock(asyncio.Transport, **answers)


async def read_here(pieces: Sequence[bytes]) -> list[Read]:
    recorder = Recorder()
    rest = cast(Rest, recorder)
    connection = HttpConnection(HttpServer(rest), "127.0.0.1", None)
    connection.connection_made(silent_transport())
    for piece in pieces:
        connection.data_received(piece)
        await asyncio.sleep(0)
    for _ in range(20):  # the answers to pipelined requests wait for one another
        await asyncio.sleep(0)
    connection.connection_lost(None)
    assert recorder.budget.held == 0
    return recorder.read


def read_by_h11(text: bytes) -> tuple[list[Read], bool]:
    """Return the requests up to one of HTTP/1.0, after which h11 closes, and whether one came."""
    connection, found = h11.Connection(h11.SERVER, max_incomplete_event_size=10**6), []
    connection.receive_data(text)
    request, body = None, b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                found.append((request.method.decode(), request.target.decode("latin-1"), body))
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if request.http_version == b"1.0":
                    return found, True
                connection.start_next_cycle()
            else:
                return found, False
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return found, False


FRAMING = (b"Content-Length: 5", b"Content-Length: 0", b"Transfer-Encoding: chunked")
BODIES = (b"hello", b"", b"5\r\nhello\r\n0\r\n\r\n")
CHUNKS = (b"5;x=y\r\nhello\r\n0\r\nT: x\r\n\r\n", b"5 \r\n", b"5\r\nhello0\r\n\r\n")
GOOD = (b"Connection: close", b"Connection: keep-alive", b"Expect: 100-continue", b"X:\ty\t")
STRANGE = (
    *(b"host: y:80", b"Host:", b"Content-Length: 5, 5", b"Content-Length: +5", b"X: \xff"),
    *(b"Content-Length: 99999999999999999999", b"Content-Length : 5", b" folded", b": no", b"no"),
    *(b"Transfer-Encoding: identity", b"transfer-encoding: Chunked", b"X: a\rb", b"X: a\0b"),
    *(b"Transfer-Encoding: chunked, chunked", b"Connection: Upgrade", b"Upgrade: h2c"),
)


def one_of(draw: st.DrawFn, usual: Sequence[bytes], strange: Sequence[bytes]) -> bytes:
    return draw(st.sampled_from(strange if draw(st.integers(0, 9)) == 0 else usual))


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = one_of(draw, [b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS"], [b"get", b"G@T"])
    target = one_of(draw, [b"/", b"/v2?x=y", b"http://h/a"], [b"*", b"/\xff", b"/a b", b""])
    version = one_of(draw, [b"HTTP/1.1", b"HTTP/1.0"], [b"HTTP/1.2", b"http/1.1", b""])
    framing, body = draw(st.sampled_from([*zip(FRAMING, BODIES, strict=True), (b"X: y", b"")]))
    headers = [one_of(draw, [b"Host: x"], STRANGE), one_of(draw, [framing], FRAMING)]
    headers += [one_of(draw, GOOD, STRANGE) for _ in range(draw(st.integers(0, 2)))]
    end = one_of(draw, [b"\r\n"], [b"\n", b"\r"])
    head = end.join([method + b" " + target + b" " + version, *headers, b"", b""])
    return head + one_of(draw, [body], [*BODIES, *CHUNKS])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    text = b"".join(draw(st.lists(requests(), min_size=1, max_size=3)))
    for _ in range(max(0, draw(st.integers(-3, 2)))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=3)) + text[at + draw(st.integers(0, 2)) :]
    return text


@given(streams(), st.integers(1, 200))
@settings(max_examples=300, deadline=None, derandomize=True)
async def test_no_request_is_read_that_h11_reads_otherwise(text: bytes, cut: int) -> None:
    pieces = [text[at : at + cut] for at in range(0, len(text), cut)]
    here, (there, old) = await read_here(pieces), read_by_h11(text)
    assert (here[: len(there)] if old else here) == there[: len(here)]

"""Requests that are refused over HTTP: with the reason, and counted by the limit that they met.

Nothing that two readers could understand in two ways (RFC 9112) is answered, so that no request can
hide in another."""

import asyncio
from typing import Any

import pytest

from http_served import INFER, Served, body, get, post, serving
from parity_models.serving.errors import DeadlineError, InferenceError, Refused, UnavailableError

LIVE = b"GET /v2/health/live HTTP/1.1\r\n"
POST = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode()
KEPT_OLD = POST.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\n"
BODY = body()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SIZE = b"%x\r\n" % len(BODY)
CHUNKS = SIZE + BODY + b"\r\n0\r\n\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"

REFUSED = {
    # Section 3.2
    "no Host": LIVE + b"\r\n",
    "two Hosts": LIVE + b"Host: x\r\nHost: x\r\n\r\n",
    "a space in Host": LIVE + b"Host: x y\r\n\r\n",
    "two hosts in one Host": LIVE + b"Host: x, y\r\n\r\n",
    "no ASCII in Host": LIVE + b"Host: \xc3\xa4\r\n\r\n",
    # Section 2.2
    "lines end in LF": LIVE.replace(b"\r", b"") + b"Host: x\n\n",
    "a line ends in CR": LIVE + b"Host: x\rX: y\r\n\r\n",
    "CR in a value": LIVE + b"Host: x\r\nX: a\rb\r\n\r\n",
    "NUL in a value": LIVE + b"Host: x\r\nX: a\0b\r\n\r\n",
    "space before the first header": LIVE + b" X: y\r\nHost: x\r\n\r\n",
    # Section 3
    "a space in the target": LIVE.replace(b"live", b"li ve") + b"Host: x\r\n\r\n",
    "a space after the version": LIVE.replace(b"1.1", b"1.1 ") + b"Host: x\r\n\r\n",
    "HTTP/0.9": b"GET /v2/health/live\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a method in lower case": b"g" + LIVE[1:] + b"Host: x\r\n\r\n",
    # Section 5
    "space before the colon": LIVE + b"Host: x\r\nX : y\r\n\r\n",
    "a tab before the colon": POST + b"Transfer-Encoding\t: chunked\r\n\r\n" + CHUNKS,
    "a folded line": LIVE + b"Host: x\r\nX: a\r\n b\r\n\r\n",
    "no name": LIVE + b"Host: x\r\n: y\r\n\r\n",
    "no colon": LIVE + b"Host: x\r\nX\r\n\r\n",
    # Section 6
    "a length and a coding": POST + LENGTH + CHUNKED + b"\r\n" + CHUNKS,
    "two lengths": POST + LENGTH + b"Content-Length: 1\r\n\r\n" + BODY,
    "a list of lengths": POST + b"Content-Length: 1, 1\r\n\r\n" + BODY,
    "a signed length": POST + LENGTH.replace(b": ", b": +") + b"\r\n" + BODY,
    "a length in base 16": POST + b"Content-Length: 0x%x\r\n\r\n" % len(BODY) + BODY,
    "no length": POST + b"Content-Length:\r\n\r\n" + BODY,
    "chunked twice": POST + CHUNKED + CHUNKED + b"\r\n" + CHUNKS,
    "chunked, chunked": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNKS,
    "no coding": POST + b"Transfer-Encoding:\r\n" + LENGTH + b"\r\n" + BODY,
    "chunks in HTTP/1.0": KEPT_OLD + CHUNKED + b"\r\n" + CHUNKS,
    "an upgrade of both": POST + UPGRADE + LENGTH + CHUNKED + b"\r\n" + CHUNKS,
    # Section 7.1
    "a signed chunk": POST + CHUNKED + b"\r\n+" + CHUNKS,
    "space after a chunk's size": POST + CHUNKED + b"\r\n" + CHUNKS.replace(b"\r", b" \r", 1),
    "a chunk that ends in LF": POST + CHUNKED + b"\r\n" + CHUNKS.replace(b"\r", b"", 1),
    "CR in an extension": POST + CHUNKED + b"\r\n" + CHUNKS.replace(b"\r", b";a\rb\r", 1),
    "a chunk longer than its size": POST + CHUNKED + b"\r\n" + SIZE + BODY + b"XX0\r\n\r\n",
    "a chunk of 2^68 bytes": POST + CHUNKED + b"\r\n100000000000000" + CHUNKS,
    "a length as a trailer": POST + CHUNKED + b"\r\n" + CHUNKS[:-2] + LENGTH + b"\r\n",
}

ANSWERED = {
    "a port": LIVE + b"Host: x:8000\r\n\r\n",
    "no port after a colon": LIVE + b"Host: x:\r\n\r\n",
    "IPv6": LIVE + b"Host: [::1]:8000\r\n\r\n",
    "an empty Host": LIVE + b"Host:\r\n\r\n",
    "HTTP/1.0 kept alive": LIVE.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\n\r\n",
    "an empty line before": b"\r\n" + LIVE + b"Host: x\r\n\r\n",
    "an absolute target": b"GET http://x/v2/health/live HTTP/1.1\r\nHost: y\r\n\r\n",
    "a body of a GET": LIVE + b"Host: x\r\nContent-Length: 3\r\n\r\nabc",
    "space after values": POST + b"Transfer-Encoding: \t chunked  \r\n\r\n" + CHUNKS,
    "capitals": POST + b"TRANSFER-ENCODING: ChUnKeD\r\n\r\n" + CHUNKS,
    "an extension": POST + CHUNKED + b"\r\n" + CHUNKS.replace(b"\r", b";a=b\r", 1),
    "a Host as a trailer": POST + CHUNKED + b"\r\n" + CHUNKS[:-2] + b"Host: y\r\n\r\n",
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=list(REFUSED))
async def test_it_is_refused_once_and_nothing_after_it_is_read(sent: bytes) -> None:
    async with serving() as served:
        client = await served.connect()
        client.send(sent, post(BODY))
        status, error = await asyncio.wait_for(client.error(), 20)
        assert status == 400, error
        assert served.echo.asked == 0
        assert served.counted("parm_refused_total", why="http") == 1


@pytest.mark.parametrize("sent", ANSWERED.values(), ids=list(ANSWERED))
async def test_it_is_answered_and_so_is_what_comes_after_it(sent: bytes) -> None:
    async with serving() as served:
        client = await served.connect()
        assert (await client.ask(sent, get("/v2")))[0] == 200
        assert b'"extensions"' in (await client.answer())[2]


LOAD = "/v2/repository/models/model/load"
CASES = {
    Refused.HTTP: (b"nonsense\r\n\r\n", 400, "HTTP/1.1"),
    Refused.HEAD_SIZE: (b"GET /v2 HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431, "65536"),
    Refused.CONNECT: (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 405, "not a proxy"),
    Refused.TRANSFER_CODING: (
        get(INFER, "Transfer-Encoding: gzip, chunked\r\n", "POST"),
        501,
        "transfer coding",
    ),
    Refused.CONTENT_ENCODING: (
        get(INFER, "Content-Encoding: br\r\nContent-Length: 1\r\n", "POST") + b".",
        415,
        "content encoding",
    ),
    Refused.NOT_FOUND: (get("/nowhere"), 404, "nothing is at /nowhere"),
    Refused.METHOD: (post(b"", path="/v2"), 405, "method POST"),
    Refused.FORBIDDEN: (post(b"", "Origin: http://evil\r\n", LOAD), 403, ""),
    Refused.INVALID: (post(b"[]"), 400, ""),
    Refused.COSTLY: (post(b"," * 900_000), 413, ""),
    Refused.MAX_BODY: (
        get(INFER, "Content-Length: 1000001\r\n", "POST"),
        413,
        "1000000 bytes this server takes at once (max_body)",
    ),
    Refused.ADMISSION: (post(body(-2, 0, 0, 0)), 503, "too much waits"),
    Refused.HEAD_TIMEOUT: (b"GET /v2 HTTP/1.1\r\nX", 408, "head_timeout of 0.4 s"),
    Refused.BODY_TIMEOUT: (
        get(INFER, "Content-Length: 9\r\n", "POST"),
        408,
        "body_timeout of 0.3 s",
    ),
}


def refused(served: Served) -> dict[str, float]:
    """Return the counts of refusals that are not 0, by reason."""
    counts = {each.value: served.counted("parm_refused_total", why=each) for each in Refused}
    return {why: count for why, count in counts.items() if count}


@pytest.mark.parametrize(("why", "case"), CASES.items(), ids=list(CASES))
async def test_it_is_counted_once_and_told(why: Refused, case: tuple[bytes, int, str]) -> None:
    sent, status, text = case
    short: dict[Refused, dict[str, Any]] = {
        Refused.HEAD_TIMEOUT: {"head_timeout": 0.4},
        Refused.BODY_TIMEOUT: {"body_timeout": 0.3},
    }
    async with serving(max_body=10**6, **short.get(why, {})) as served:
        client = await served.connect()
        told, _, content = await client.ask(sent)
        assert (told, text in content.decode()) == (status, True), content
        client.close()
        assert refused(served) == {why: 1}


async def test_failures_have_statuses_of_their_own() -> None:
    failures = [
        (DeadlineError("no answer within 1 s"), 504),
        (UnavailableError("stopping"), 503),
        (InferenceError("the model raised"), 500),
    ]
    async with serving() as served:
        client = await served.connect()
        for served.echo.error, status in failures:
            told, _, content = await client.ask(post(BODY))
            assert (told, str(served.echo.error) in content.decode()) == (status, True)

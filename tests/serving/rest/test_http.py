"""HTTP as clients speak it, well and badly, over real sockets: messages in all their forms."""

import asyncio
import json

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from http_served import INFER, Loop, body, eventually, get, post, serving

pytestmark = pytest.mark.slow


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
            client.close()
            other.close()
        assert not caplog.records

    uvloop.run(test())

"""HTTP over real sockets is bounded in bytes and in connections."""

import asyncio
import json

import pytest

from http_served import INFER, Loop, body, eventually, get, post, serving

pytestmark = pytest.mark.slow

CHUNKED = get(INFER, "Transfer-Encoding: chunked\r\n", "POST")


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
            client.send(CHUNKED)
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
            assert (status, headers["retry-after"] in ("1", "2")) == (503, True)
            assert b"800 more would exceed the 1500 this server holds at once" in content
            assert b"(max_in_flight)" in content
            assert served.counted("parm_refused_total", why="max_in_flight") == 1
            second.send(get())  # what is small goes on
            assert (await second.answer())[0] == 200
            served.echo.may.set()
            assert (await first.answer())[0] == 200
            second.send(post(padded))
            assert (await second.answer())[0] == 200
            # What comes in chunks is paid for as it comes, and given back when it does not.
            served.echo.may.clear()
            first.send(CHUNKED)
            first.send(b"3e8\r\n" + bytes(1000) + b"\r\n")
            await eventually(lambda: served.budget.held == 1000, "nothing is paid for")
            first.close()
            await eventually(lambda: served.budget.held == 0, "nothing is given back")

    run(test())


async def test_trailers_beyond_the_limit_are_refused() -> None:
    async with serving() as served:
        client = await served.connect()
        client.send(CHUNKED)
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
            client.send(get("/v2", f"{more}\r\n"))
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
            assert served.counted("parm_refused_total", why="max_connections") == 2
            assert served.echo.asked == 0
            clients.pop().close()
            await eventually(lambda: served.server.connections == 2, "nobody has left")
            again = await served.connect()
            again.send(post(body()))
            assert (await again.answer())[0] == 200
            for client in clients:
                client.send(post(body()))
                assert (await client.answer())[0] == 200

    run(test())


def test_silent_connections_beyond_the_limit_keep_nobody_from_the_answer(run: Loop) -> None:
    async def test() -> None:
        async with serving(max_connections=1, head_timeout=600) as served:
            first = await served.connect()
            first.send(get())
            assert (await first.answer())[0] == 200
            silent = [await served.connect() for _ in range(40)]
            last = await served.connect()
            last.send(post(body()))
            async with asyncio.timeout(60):  # there is room for 16 at a time
                assert (await last.answer())[0] == 503
                for client in silent:
                    status, headers, _ = await client.answer()
                    assert (status, headers["connection"]) == (503, "close")
            first.send(get())
            assert (await first.answer())[0] == 200

    run(test())

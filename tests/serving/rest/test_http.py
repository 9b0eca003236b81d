"""HTTP as clients speak it, well and badly, over real sockets: messages, limits, times, endings."""

import asyncio
import json
import socket

import numpy as np
import pytest

from http_served import INFER, Client, Echo, Served, binary, body, eventually, get, post, serving

pytestmark = pytest.mark.slow


# Messages


async def test_connections_are_kept_and_closed_as_http_says() -> None:
    async with serving() as served:
        client = await served.connect()
        for _ in range(3):
            status, headers, content = await client.ask(post(body(1, 2, 3, 4)))
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
            status, headers, _ = await client.ask(post(body(), more, version="1.0"))
            assert status == 200
            assert headers["connection"] == ("keep-alive" if kept else "close")
            if not kept:
                assert await client.rest() == b""


async def test_bodies_come_in_chunks_or_after_leave_was_asked() -> None:
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
        assert (await client.ask(body()))[0] == 200
        # A client that offers another protocol gets this one.
        client.send(post(body(), "Connection: Upgrade\r\nUpgrade: h2c\r\n"), get())
        assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
        client.send(get("http://anything:80/v2/health/live?at=all"))
        assert (await client.answer())[2] == b'{"live":true}'


async def test_pipelined_requests_are_answered_in_order_up_to_a_number() -> None:
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


# Limits

CHUNKED = get(INFER, "Transfer-Encoding: chunked\r\n", "POST")


async def test_bodies_are_refused_by_their_declared_size_before_they_are_read() -> None:
    async with serving(max_body=1000) as served:
        for more in ("", "Expect: 100-continue\r\n"):
            client = await served.connect()
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: 100000\r\n\r\n"
            status, _, content = await client.ask(head.encode())
            assert status == 413
            assert b"larger than the 1000 bytes" in content
            client.close()
        # A client that sends all the same reads the answer all the same.
        client = await served.connect()
        chunks = b"".join(b"64\r\n" + bytes(100) + b"\r\n" for _ in range(18))
        client.send(CHUNKED)
        status, _, content = await client.ask(chunks)
        assert (status, b"larger than the 1000 bytes" in content) == (413, True)
        client.close()
        # A small body that nobody wants costs no connection.
        client = await served.connect()
        client.send(post(body(), path="/v2/models/other/infer"), get())
        assert [(await client.answer())[0] for _ in range(2)] == [404, 200]
        assert served.echo.asked == 0
        assert served.counted("parm_requests_total", code="413") == 3
        assert served.counted("parm_requests_total", code="404") == 1


async def test_all_requests_in_flight_share_a_budget_of_bytes() -> None:
    async with serving(max_body=1000, max_in_flight=1500) as served:
        served.echo.may.clear()
        padded = body() + b" " * (800 - len(body()))
        first, second = await served.connect(), await served.connect()
        first.send(post(padded))
        await eventually(lambda: served.echo.asked == 1, "no request arrives")
        assert served.budget.held > 800  # and the answer
        status, headers, content = await second.ask(post(padded))
        assert (status, headers["retry-after"] in ("1", "2")) == (503, True)
        assert b"800 more would exceed the 1500 this server holds at once" in content
        assert b"(max_in_flight)" in content
        assert served.counted("parm_refused_total", why="max_in_flight") == 1
        second.send(get())  # what is small goes on
        assert (await second.answer())[0] == 200
        served.echo.may.set()
        assert (await first.answer())[0] == 200
        assert (await second.ask(post(padded)))[0] == 200
        # What comes in chunks is paid for as it comes, and given back when it does not.
        served.echo.may.clear()
        first.send(CHUNKED)
        first.send(b"3e8\r\n" + bytes(1000) + b"\r\n")
        await eventually(lambda: served.budget.held == 1000, "nothing is paid for")
        first.close()
        await eventually(lambda: served.budget.held == 0, "nothing is given back")


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


async def idle(served: Served, address: str = "127.0.0.1") -> Client:
    client = await served.connect(address=address)
    assert (await client.ask(get()))[0] == 200
    return client


async def test_the_longest_idle_connection_makes_room_for_a_new_one() -> None:
    async with serving(max_connections=3, head_timeout=600) as served:
        clients = [await idle(served) for _ in range(3)]
        silent = [await served.connect() for _ in range(40)]
        new = await served.connect()
        assert (await new.ask(post(body())))[0] == 200
        for client in (*clients, *silent[:30]):
            assert await client.rest() == b""
        assert served.server.connections <= 3
        assert served.counted("parm_connections_ended_total", limit="max_connections") >= 40
        assert served.counted("parm_refused_total", why="max_connections") == 0


async def test_a_flood_from_one_address_ends_no_connection_from_another() -> None:
    async with serving(max_connections=4) as served:
        other = await idle(served, "127.0.0.2")
        flood = [await idle(served) for _ in range(20)]
        assert (await other.ask(post(body())))[0] == 200
        assert await flood[0].rest() == b""


async def test_health_and_metrics_are_answered_while_all_connections_are_busy() -> None:
    async with serving(max_connections=2) as served:
        served.echo.may.clear()
        busy = [await served.connect() for _ in range(2)]
        for client in busy:
            client.send(post(body()))
        await eventually(lambda: served.echo.asked == 2, "no request arrives")
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics"):
            probe = await served.connect()
            status, headers, _ = await probe.ask(get(path))
            assert (status, headers["connection"]) == (200, "close")
        refused = await served.connect()
        status, headers, content = await refused.ask(post(body()))
        assert (status, headers["connection"]) == (503, "close")
        assert int(headers["retry-after"]) >= 1
        assert "at most 2 connections (max_connections), and all are" in content.decode()
        assert served.counted("parm_refused_total", why="max_connections") == 1
        served.echo.may.set()
        for client in busy:
            assert (await client.answer())[0] == 200


# Times


async def test_headers_that_drip_in_end_with_408() -> None:
    async with serving(head_timeout=2) as served:
        client = await served.connect()

        async def drip() -> None:
            client.send(b"GET /v2 HTTP/1.1\r\nX-Slow: ")
            while True:
                client.send(b"x")
                await asyncio.sleep(0.02)

        drops = asyncio.create_task(drip())
        status, _, content = await asyncio.wait_for(client.answer(), 60)
        drops.cancel()
        assert status == 408
        assert b"headers did not arrive within the head_timeout of 2 s" in content
        client.close()
        assert served.counted("parm_connections_ended_total", limit="head timeout") == 1


@pytest.mark.parametrize("late", ["headers", "body"])
async def test_a_late_request_is_refused_after_the_answers_to_those_before_it(late: str) -> None:
    async with serving(head_timeout=2, body_timeout=2) as served:
        served.echo.may.clear()
        client = await served.connect()
        whole = post(body())
        client.send(whole, whole[:30] if late == "headers" else whole[:-10])
        await asyncio.sleep(3)  # several looks at what is late
        served.echo.may.set()
        assert (await client.answer())[0] == 200
        status, error = await client.error()
        assert status == 408
        assert f"the request's {late} did not arrive" in error
        limit = "head timeout" if late == "headers" else "body timeout"
        assert served.counted("parm_connections_ended_total", limit=limit) == 1
        assert served.counted("parm_connections_ended_total", limit="idle timeout") == 0


async def test_idle_connections_are_closed_and_busy_ones_are_not() -> None:
    async with serving(idle_timeout=1, head_timeout=1) as served:
        silent, idle, busy = [await served.connect() for _ in range(3)]
        served.echo.may.clear()
        busy.send(post(body()))
        assert (await idle.ask(get()))[0] == 200
        assert await silent.rest() == b""
        assert await idle.rest() == b""
        assert served.counted("parm_connections_ended_total", limit="idle timeout") == 2
        served.echo.may.set()
        assert (await busy.answer())[0] == 200


async def test_a_client_that_does_not_read_is_cut_off_and_holds_the_budget_till_then() -> None:
    async with serving(Echo(times=1000), write_timeout=0.4) as served:
        client = await served.connect()
        transport = client.writer.transport
        transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport reads, too
        rows = np.zeros((2000, 4), np.float32)
        for _ in range(20):
            client.send(binary(rows))  # each answer has 32 MB
        await eventually(lambda: served.budget.held > 2**24, "answers are not counted")
        assert served.echo.asked < 5
        await eventually(lambda: not served.server.connections, "it is not cut off")
        assert served.budget.held == 0
        assert served.counted("parm_connections_ended_total", limit="write timeout") == 1


@pytest.mark.parametrize(("requests", "more"), [(2, ""), (1, "Connection: close\r\n")])
async def test_a_client_that_reads_slowly_gets_all_answers(requests: int, more: str) -> None:
    """However long that takes, if it takes something in each write timeout."""
    async with serving(Echo(times=1000), idle_timeout=0.3, write_timeout=0.6) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=2**16)
        request = binary(np.zeros((2000, 4), np.float32)).replace(
            b"\r\n", b"\r\n%b" % more.encode(), 1
        )
        writer.write(request * requests)
        size, due = 0, 32_000_000 * requests
        while size < due and (piece := await reader.read(2**16)):
            size += len(piece)
            await asyncio.sleep(0.01 if size < 1.5e7 else 0)
        assert size >= due
        writer.close()


# Endings


async def test_a_client_that_goes_away_has_its_query_abandoned() -> None:
    async with serving() as served:
        served.echo.may.clear()
        client = await served.connect()
        client.send(post(body()), post(body()))
        await eventually(lambda: served.echo.asked == 1, "no request arrives")
        client.close()
        await eventually(lambda: served.echo.cancelled == 1, "nothing is cancelled")
        client = await served.connect()
        client.send(post(bytes(100))[:-50])
        await eventually(lambda: served.budget.held == 50, "no request arrives")
        client.close()
        await eventually(lambda: served.budget.held == 0, "the budget is not given back")
        assert served.counted("parm_requests_total", code="499") == 2
        assert served.echo.asked == 1


async def test_a_server_that_stops_finishes_what_is_under_way() -> None:
    async with serving() as served:
        idle, busy = await served.connect(), await served.connect()
        served.echo.may.clear()
        assert (await idle.ask(get()))[0] == 200
        busy.send(post(body()))
        await eventually(lambda: served.echo.asked == 1, "no request arrives")
        served.server.closing = True
        late = await served.connect()
        status, headers, _ = await late.ask(get("/v2/health/ready"))
        assert (status, headers["connection"]) == (200, "close")
        stopping = asyncio.create_task(served.server.stop(grace=600))
        assert await idle.rest() == b""
        served.echo.may.set()
        status, headers, _ = await busy.answer()
        assert (status, headers["connection"]) == (200, "close")
        await asyncio.wait_for(stopping, 60)


async def test_a_server_that_stops_answers_those_that_wait_to_be_accepted() -> None:
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


async def test_a_request_that_crosses_the_end_of_its_connection_resets_nothing() -> None:
    async with serving() as served:
        prompt, late = await served.connect(), await served.connect()
        for client in (prompt, late):
            assert (await client.ask(get()))[0] == 200
        stopping = asyncio.create_task(served.server.stop(grace=600))
        await asyncio.sleep(0)
        status, headers, _ = await prompt.ask(get())
        assert (status, headers["connection"]) == (200, "close")
        while not late.reader.at_eof():
            await asyncio.sleep(0.001)
        late.send(get())
        await asyncio.sleep(0.05)
        assert await late.reader.read() == b""  # and no ConnectionResetError
        late.close()
        await asyncio.wait_for(stopping, 60)

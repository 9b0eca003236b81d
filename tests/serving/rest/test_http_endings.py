"""Connections over real sockets end by either side, and no query is lost or left behind."""

import asyncio
import gc
import socket

import pytest

from http_served import Loop, body, eventually, get, post, serving
from parity_models.serving.http import HttpConnection

pytestmark = pytest.mark.slow


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
            await eventually(lambda: served.budget.held == 50, "no request arrives")
            client.close()
            await eventually(lambda: served.budget.held == 0, "the budget is not given back")
            assert served.counted("parm_requests_total", code="499") == 2
            assert served.echo.asked == 1

    run(test())


def nothing_left() -> bool:
    """Are there no connections, ended or not?"""
    return not any(isinstance(each, HttpConnection) for each in gc.get_objects())


def test_connections_that_have_ended_leave_no_garbage_to_search_for(run: Loop) -> None:
    async def test() -> None:
        async with serving() as served:
            for _ in range(5):
                client = await served.connect()
                client.send(post(body()), post(bytes(100))[:-50])
                assert (await client.answer())[0] == 200
                client.close()
                del client
            await eventually(lambda: served.server.connections == 0, "they do not end")
            # The loop may hold the last of them for a moment; a cycle would hold it for ever.
            await eventually(nothing_left, "they leave garbage")

    gc.collect()
    gc.disable()
    try:
        run(test())
    finally:
        gc.enable()


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
            stopping = asyncio.create_task(served.server.stop(grace=600))
            assert await idle.rest() == b""
            served.echo.may.set()
            status, headers, _ = await busy.answer()
            assert (status, headers["connection"]) == (200, "close")
            await asyncio.wait_for(stopping, 60)

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
            stopping = asyncio.create_task(served.server.stop(grace=600))
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
            await asyncio.wait_for(stopping, 60)

    run(test())

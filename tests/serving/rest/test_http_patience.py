"""HTTP over real sockets is bounded in time: slow, idle and deaf clients."""

import asyncio

import numpy as np
import pytest

from http_served import Echo, Loop, binary, body, eventually, get, post, serving

pytestmark = pytest.mark.slow


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
        async with serving(idle_timeout=1, head_timeout=1) as served:
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
            await eventually(lambda: not served.server.connections, "it is not cut off")
            assert served.budget.held == 0
            assert served.counted("parm_connections_ended_total", limit="write timeout") == 1

    run(test())


def test_what_ends_late_connections_goes_on_after_an_error(
    run: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def labels(self, limit: str) -> None:
            raise ZeroDivisionError("nobody foresaw this")

    async def test() -> None:
        async with serving(idle_timeout=0.2) as served:
            well = served.metrics.connections_ended
            vars(served.metrics)["connections_ended"] = Broken()
            for _ in range(2):
                clients = []
                for _ in range(3):
                    clients.append(await served.connect())
                    clients[-1].send(get("/v2"))
                    assert (await clients[-1].answer())[0] == 200
                for client in clients:
                    assert await asyncio.wait_for(client.rest(), 20) == b""
            assert "nobody foresaw this" in caplog.text
            vars(served.metrics)["connections_ended"] = well
            client = await served.connect()
            client.send(get("/v2"))
            assert (await client.answer())[0] == 200
            assert await asyncio.wait_for(client.rest(), 20) == b""
            assert served.counted("parm_connections_ended_total", limit="idle timeout") == 1

    run(test())

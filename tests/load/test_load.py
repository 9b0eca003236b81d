"""The load generator sends what is due when it is due, and tells what became of every query."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import web

from load_served import CLASSES, answer, ignore, say_it_back, serving
from parity_models.load import LoadSpec, offer_load
from parity_models.load.report import report_of
from parity_models.load.target import NoAnswerError, target
from parity_models.scheduling import Source


@pytest.mark.slow
async def test_every_query_is_sent_once_in_order_and_its_answer_is_judged(data: str) -> None:
    seen: list[int] = []

    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        seen.append(int(row.argmax()))
        return answer(row, "reconstruction" if row.argmax() == 0 else "model")

    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=data, rate=400, count=100, warm_up=20, seed=3)
        result = await offer_load(spec, ignore)
        again = await offer_load(spec, ignore)
    drawn = np.random.default_rng((3, 1)).integers(CLASSES, size=120)
    assert sorted(seen) == sorted([*drawn, *drawn])
    counted = drawn[20:]
    np.testing.assert_array_equal(result.score, counted != CLASSES - 1)
    np.testing.assert_array_equal(result.came_from(Source.RECONSTRUCTION), counted == 0)
    report = report_of(spec, result)
    assert (report.answered, report.errors) == (100, {})
    assert report.accuracy == pytest.approx((counted != CLASSES - 1).mean())
    assert report.sources["reconstruction"].count == (counted == 0).sum()
    assert (result.send_delay >= 0).all()
    assert (result.latency > result.send_delay).all()
    np.testing.assert_array_equal(result.scheduled, again.scheduled)
    np.testing.assert_array_equal(
        result.came_from(Source.RECONSTRUCTION), again.came_from(Source.RECONSTRUCTION)
    )


async def test_a_request_is_sent_when_it_is_written_and_not_if_nobody_is_there() -> None:
    told: list[str] = []

    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        told.append("arrived")
        response = answer(row)
        response.force_close()
        return response

    async with AsyncExitStack() as stack:
        async with serving(handle) as url:
            asked = await stack.enter_async_context(target(url, "model"))
            ask = asked.prepare({"input": np.zeros((1, CLASSES), np.float32)})
            assert told == []
            await ask(lambda: told.append("sent"))
            assert told == ["sent", "arrived"]
        with pytest.raises(NoAnswerError, match="connection"):
            await ask(lambda: told.append("sent"))
    assert told == ["sent", "arrived"]


async def test_a_stalled_server_is_charged_for_every_query_due_meanwhile(data: str) -> None:
    """No answer goes out before all queries are in: a client that waits would wait forever."""
    count = 40
    arrived = 0
    everyone_is_here = asyncio.Event()

    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        nonlocal arrived
        arrived += 1
        if arrived == count:
            everyone_is_here.set()
        await everyone_is_here.wait()
        return answer(row)

    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=data, rate=400, count=count)
        result = await offer_load(spec, ignore)
    assert result.answered.all()
    assert (result.latency >= result.scheduled[-1] - result.scheduled).all()


async def test_errors_are_counted_by_kind_and_the_load_goes_on(data: str) -> None:
    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        match int(row.argmax()):
            case 0:
                return web.json_response({"error": "too many"}, status=503)
            case 1:
                return web.Response(body=b"what?")
            case 2:
                assert request.transport is not None
                request.transport.close()
        return answer(row)

    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=data, rate=500, count=80)
        result = await offer_load(spec, ignore)
    errors = result.errors()
    assert set(errors) == {"HTTP 503", "malformed answer", "connection: ServerDisconnectedError"}
    assert sum(errors.values()) + result.answered.sum() == 80
    assert report_of(spec, result).errors == errors
    assert np.isnan(result.score[~result.answered]).all()


async def test_a_silent_server_times_out_and_the_number_in_flight_is_bounded(data: str) -> None:
    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=data, rate=1000, count=9, timeout=0.5, max_in_flight=4)
        result = await offer_load(spec, ignore)
    assert result.errors() == {"timeout": 4, "not sent, 4 in flight": 5}
    report = report_of(spec, result)
    assert (report.answered, report.latency, report.accuracy) == (0, None, None)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("kept", [0, 2**28])
async def test_requests_hold_batches_and_every_row_is_judged(
    data: str, binary: bool, kept: int
) -> None:
    """Whether outputs are kept for it until the load is over, or are too large for that."""
    seen: list[np.ndarray[Any, Any]] = []

    async def handle(request: web.Request, rows: np.ndarray[Any, Any]) -> web.Response:
        assert rows.shape == (3, CLASSES)
        seen.append(rows.argmax(axis=1))
        return answer(rows, "reconstruction,model,default", binary)

    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=data, binary=binary, batch=3, rate=900, count=59)
        result = await offer_load(spec, ignore, max_kept=kept)
        few = msgspec.structs.replace(spec, count=20, warm_up=39)
        warm = await offer_load(few, ignore, max_kept=kept)
    assert len(seen) == 20 + 13 + 7
    assert len(result) == 60
    right = sorted((rows != CLASSES - 1).tolist() for rows in seen[:20])
    assert sorted(result.score.reshape(20, 3).tolist()) == right
    np.testing.assert_array_equal(result.score[39:], warm.score)
    for slot, source in enumerate((Source.RECONSTRUCTION, Source.MODEL, Source.DEFAULT)):
        np.testing.assert_array_equal(result.came_from(source), np.arange(60) % 3 == slot)
    assert (np.diff(result.scheduled.reshape(20, 3), axis=1) == 0).all()


async def test_servers_that_name_no_source_and_data_without_labels_will_do(tmp_path: Path) -> None:
    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        return answer(row, source=None, binary=False)

    np.save(tmp_path / "data.npy", np.eye(CLASSES, dtype=np.float32))
    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=str(tmp_path / "data.npy"), rate=500, count=20)
        result = await offer_load(spec, ignore)
    assert result.came_from(Source.MODEL).all()
    assert np.isnan(result.score).all()


@pytest.mark.parametrize("answered", [b"{}", b'{"outputs": []}', b"[" * 1000, b"x" * 10**6])
async def test_garbage_is_a_malformed_answer(data: str, answered: bytes) -> None:
    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        return web.Response(body=answered)

    async with serving(handle) as url:
        result = await offer_load(LoadSpec(url=url, data=data, rate=500, count=5), ignore)
    assert set(result.errors()) == {"malformed answer"}


async def test_values_are_taken_as_labels_though_one_query_has_no_score(tmp_path: Path) -> None:
    path = str(tmp_path / "data.npz")
    rows = np.eye(CLASSES, dtype=np.float32)
    np.savez(path, inputs=rows, labels=rows)
    async with serving(say_it_back) as url:
        spec = LoadSpec(url=url, data=path, metric="r2", rate=200, count=4)
        result = await offer_load(spec, ignore)
    assert result.answered.all()
    assert np.isnan(result.score).all()

"""The load generator sends what is due when it is due, and tells what became of every query."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import web

from parity_models.bench.latency import summarise
from parity_models.bench.load import LoadSpec, offer_load, offer_load_from_own_process
from parity_models.bench.load_result import LoadResult
from parity_models.errors import LoadError
from parity_models.scheduling import Source
from parity_models.simulation.arrivals import poisson_arrivals

CLASSES = 4
Handler = Callable[[web.Request, np.ndarray[Any, Any]], Awaitable[web.Response]]


def answer(row: np.ndarray[Any, Any], source: str = "model") -> web.Response:
    """The protocol's binary answer that says of a row what the row says."""
    head = msgspec.json.encode(
        {
            "model_name": "model",
            "parameters": {"source": source},
            "outputs": [{"name": "output", "datatype": "FP32", "shape": [1, CLASSES]}],
        }
    )
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return web.Response(body=head + row.tobytes(), headers=headers)


async def say_it_back(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
    return answer(row)


@asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[str]:
    """A server whose model is `handle`; yields its URL."""

    async def metadata(request: web.Request) -> web.Response:
        tensor = {"datatype": "FP32", "shape": [-1, CLASSES]}
        return web.json_response(
            {"inputs": [{"name": "input", **tensor}], "outputs": [{"name": "output", **tensor}]}
        )

    async def infer(request: web.Request) -> web.Response:
        body = await request.read()
        length = int(request.headers["Inference-Header-Content-Length"])
        (tensor,) = msgspec.json.decode(body[:length])["inputs"]
        assert tensor["shape"] == [1, CLASSES]
        assert tensor["parameters"]["binary_data_size"] == len(body) - length
        return await handle(request, np.frombuffer(body[length:], np.float32))

    app = web.Application()
    app.add_routes(
        [web.get("/v2/models/model", metadata), web.post("/v2/models/model/infer", infer)]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
def data(tmp_path: Path) -> str:
    """One row for each class; the last one's label is wrong."""
    path = tmp_path / "data.npz"
    labels = np.array([*range(CLASSES - 1), 0])
    np.savez(path, inputs=np.eye(CLASSES, dtype=np.float32), labels=labels)
    return str(path)


def ignore() -> None:
    """Nothing waits for the start."""


def test_arrivals_are_poisson_and_the_seed_fixes_them() -> None:
    arrivals = poisson_arrivals(200, 20_000, seed=1)
    gaps = np.diff(arrivals)
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.05)
    np.testing.assert_array_equal(arrivals, poisson_arrivals(200, 20_000, seed=1))
    assert (arrivals != poisson_arrivals(200, 20_000, seed=2)).all()


async def test_every_query_is_sent_once_in_order_and_its_answer_is_judged(data: str) -> None:
    seen: list[int] = []

    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        seen.append(int(row.argmax()))
        return answer(row, "reconstruction" if row.argmax() == 0 else "model")

    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=data, rate=500, count=100, warm_up=20, seed=3)
        result = await offer_load(spec, ignore)
        again = await offer_load(spec, ignore)
    assert len(seen) == 2 * 120
    counted = np.array(seen[20:120])
    summary = summarise(result)
    assert (summary.answered, summary.errors) == (100, 0)
    assert summary.accuracy == pytest.approx((counted != CLASSES - 1).mean())
    assert summary.reconstructed_share == pytest.approx((counted == 0).mean())
    assert summary.p50_ms <= summary.p99_ms <= summary.p999_ms
    assert summary.gap_ms == pytest.approx(summary.p999_ms - summary.p50_ms)
    assert (result.send_delay >= 0).all()
    assert (result.latency > result.send_delay).all()
    np.testing.assert_array_equal(result.scheduled, again.scheduled)
    np.testing.assert_array_equal(
        result.came_from(Source.RECONSTRUCTION), again.came_from(Source.RECONSTRUCTION)
    )


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
    assert summarise(result).errors == sum(errors.values())
    assert np.isnan(result.score[~result.answered]).all()


async def test_a_silent_server_times_out_and_the_number_in_flight_is_bounded(data: str) -> None:
    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=data, rate=1000, count=9, timeout=0.5, max_in_flight=4)
        result = await offer_load(spec, ignore)
    assert result.errors() == {"timeout": 4, "not sent, 4 in flight": 5}
    with pytest.raises(LoadError, match="no query was answered"):
        summarise(result)


async def test_a_load_in_its_own_process_says_when_it_starts(data: str, tmp_path: Path) -> None:
    seen_at_start = []
    seen = 0

    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        nonlocal seen
        seen += 1
        return answer(row)

    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=data, rate=200, count=50, warm_up=50)
        result = await offer_load_from_own_process(spec, lambda: seen_at_start.append(seen))
    assert len(seen_at_start) == 1
    assert 0 < seen_at_start[0] < 100
    assert seen == 100
    assert result.answered.all()
    result.save(tmp_path / "result.npz")
    assert summarise(LoadResult.load(tmp_path / "result.npz")) == summarise(result)


async def test_a_load_that_cannot_be_offered_says_why(data: str, tmp_path: Path) -> None:
    wrong_shape, pickled = str(tmp_path / "shape.npz"), str(tmp_path / "pickled.npz")
    np.savez(wrong_shape, inputs=np.zeros((3, 7), np.float32), labels=np.zeros(3))
    np.savez(pickled, inputs=np.array([{}], dtype=object), labels=np.zeros(1))
    async with serving(say_it_back) as url:
        for change, reason in [
            ({"model": "other"}, "has no model 'other'"),
            ({"data": wrong_shape}, "the model takes rows of"),
            ({"data": pickled}, "neither an .npy file nor an .npz file with inputs"),
            ({"data": str(tmp_path / "missing.npz")}, "cannot read"),
            ({"url": "http://127.0.0.1:1"}, "no server answers"),
        ]:
            spec = LoadSpec(**{"url": url, "data": data, "rate": 10, "count": 1, **change})
            with pytest.raises(LoadError, match=reason):
                await offer_load(spec, ignore)
        with pytest.raises(LoadError, match="has no model 'other'"):
            await offer_load_from_own_process(
                LoadSpec(url=url, data=data, rate=10, count=1, model="other"), ignore
            )
    with pytest.raises(LoadError, match="not a load's result"):
        LoadResult.load(Path(data))

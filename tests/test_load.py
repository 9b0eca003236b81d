"""The load generator sends what is due when it is due, and tells what became of every query."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from parity_models.bench.latency import summarise
from parity_models.bench.load import (
    Direct,
    LoadSpec,
    lasting,
    offer_load,
    offer_load_from_own_process,
)
from parity_models.bench.load.rest import rest_target
from parity_models.bench.load.target import NoAnswerError
from parity_models.bench.load_report import report_of, write_histogram, write_latencies
from parity_models.bench.load_result import LoadResult
from parity_models.errors import LoadError
from parity_models.scheduling import Source
from parity_models.serving.server import ServeOptions
from parity_models.simulation.arrivals import poisson_arrivals

CLASSES = 4
Handler = Callable[[web.Request, np.ndarray[Any, Any]], Awaitable[web.Response]]


def answer(
    rows: np.ndarray[Any, Any], source: str | None = "model", binary: bool = True
) -> web.Response:
    """The protocol's answer that says of rows (n, CLASSES) or (CLASSES,) what they say."""
    rows = rows.reshape(-1, CLASSES)
    output = {"name": "output", "datatype": "FP32", "shape": rows.shape}
    message: dict[str, Any] = {"model_name": "model", "outputs": [output]}
    if source is not None:
        message["parameters"] = {"source": source}
    if not binary:
        output["data"] = rows.ravel().tolist()
        return web.json_response(body=msgspec.json.encode(message))
    head = msgspec.json.encode(message)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return web.Response(body=head + rows.tobytes(), headers=headers)


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
        length = int(request.headers.get("Inference-Header-Content-Length", len(body)))
        (tensor,) = msgspec.json.decode(body[:length])["inputs"]
        assert (tensor["name"], tensor["datatype"]) == ("input", "FP32")
        if "data" in tensor:
            rows = np.array(tensor["data"], np.float32)
        else:
            assert tensor["parameters"]["binary_data_size"] == len(body) - length
            rows = np.frombuffer(body[length:], np.float32)
        shape = tuple(tensor["shape"])
        return await handle(request, rows.reshape(shape if shape[0] > 1 else shape[1:]))

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


async def test_a_request_is_sent_when_it_is_written_and_not_if_nobody_is_there() -> None:
    told: list[str] = []

    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        told.append("arrived")
        response = answer(row)
        response.force_close()
        return response

    async with AsyncExitStack() as stack:
        async with serving(handle) as url:
            target = await stack.enter_async_context(rest_target(url, "model", 1, True))
            ask = target.prepare(np.zeros((1, CLASSES), np.float32))
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


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("kept", [0, 2**28])
async def test_requests_hold_batches_and_every_row_is_judged(
    data: str, binary: bool, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether outputs are kept for it until the load is over, or are too large for that."""
    monkeypatch.setattr("parity_models.bench.load.generator.MAX_KEPT", kept)
    seen: list[np.ndarray[Any, Any]] = []

    async def handle(request: web.Request, rows: np.ndarray[Any, Any]) -> web.Response:
        assert rows.shape == (3, CLASSES)
        seen.append(rows.argmax(axis=1))
        return answer(rows, "reconstruction,model,default", binary)

    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=data, binary=binary, batch=3, rate=900, count=59)
        result = await offer_load(spec, ignore)
        warm = await offer_load(msgspec.structs.replace(spec, count=20, warm_up=39), ignore)
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
    (kind,) = result.errors()
    assert kind in ("malformed answer", "connection: ClientPayloadError")


async def test_values_are_taken_as_labels_though_one_query_has_no_score(tmp_path: Path) -> None:
    path = str(tmp_path / "data.npz")
    rows = np.eye(CLASSES, dtype=np.float32)
    np.savez(path, inputs=rows, labels=rows)
    async with serving(say_it_back) as url:
        spec = LoadSpec(url=url, data=path, metric="r2", rate=200, count=4)
        result = await offer_load(spec, ignore)
    assert result.answered.all()
    assert np.isnan(result.score).all()


async def test_several_processes_send_one_schedule(data: str) -> None:
    seen: list[int] = []

    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        seen.append(int(row.argmax()))
        return answer(row, "reconstruction" if row.argmax() == 0 else "model")

    starts = []
    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=data, rate=300, count=100, warm_up=11)
        alone = await offer_load(spec, ignore)
        expected, seen = seen, []
        together = await offer_load_from_own_process(
            msgspec.structs.replace(spec, processes=3), lambda: starts.append(len(seen))
        )
    assert len(starts) == 1
    assert sorted(seen) == sorted(expected)
    np.testing.assert_allclose(together.scheduled, alone.scheduled)
    np.testing.assert_array_equal(together.outcome, alone.outcome)
    np.testing.assert_array_equal(together.score, alone.score)


async def test_what_a_generator_says_before_it_fails_is_told(data: str) -> None:
    script = "print('ready', flush=True); input(); print('3 1'); print('no space'); exit(1)"
    spec = LoadSpec(url="http://127.0.0.1:1", data=data, rate=10, count=5, processes=2)
    with pytest.raises(LoadError, match="no space"):
        await offer_load_from_own_process(spec, ignore, prefix=(sys.executable, "-c", script))


async def test_a_load_that_is_stopped_keeps_what_there_is(data: str) -> None:
    stop = asyncio.Event()
    seen = 0

    async def handle(request: web.Request, row: np.ndarray[Any, Any]) -> web.Response:
        nonlocal seen
        seen += 1
        if seen == 30:
            stop.set()
            await asyncio.Event().wait()
        return answer(row)

    async with serving(handle) as url:
        spec = LoadSpec(url=url, data=data, rate=100, count=100_000, timeout=600, processes=2)
        result = await offer_load_from_own_process(spec, ignore, stop=stop)
    assert 29 <= result.answered.sum() < 100_000
    assert result.errors() == {"interrupted": 1}
    assert len(result) == seen


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
    labels = str(tmp_path / "labels.npy")
    np.save(labels, np.zeros(2, int))
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
            ({"url": "127.0.0.1:8000"}, "is no server's address"),
            ({"url": "http://[::1"}, "is no server's address"),
            ({"url": "http://localhost:99999"}, "is no server's address"),
            ({"labels": labels}, "4 inputs, but 2 labels"),
            ({"metric": "iou"}, "the labels do not fit the model"),
            ({"metric": "best"}, "no metric is called 'best'"),
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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rate": 0}, "rate must be from 0.001 to 1e+06, got 0"),
        ({"rate": float("nan")}, "got nan"),
        ({"rate": None}, "needs a rate or a trace"),
        ({"trace": "times.txt"}, "needs a rate or a trace file, and not both"),
        ({"count": 0}, "count must be"),
        ({"batch": 0}, "batch must be"),
        ({"max_in_flight": 1000}, "max in flight must be from 1 to 512"),
        ({"timeout": -1}, "timeout must be"),
        ({"direct": Direct("bundle", ServeOptions()), "processes": 2}, "several processes"),
    ],
)
def test_loads_that_make_no_sense_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(LoadError, match=re.escape(reason)):
        LoadSpec(**{"data": "", "rate": 10, "count": 1, **change})


# Schedules


@given(
    st.lists(st.floats(0, 1e5), min_size=1, max_size=50).map(sorted),
    st.sampled_from([0, 1.7e9]),
    st.sampled_from([0.5, 1, 20]),
)
def test_a_trace_is_sent_as_it_was_recorded(
    tmp_path_factory: pytest.TempPathFactory, times: list[float], since: float, speed: float
) -> None:
    path = tmp_path_factory.mktemp("trace") / "times.txt"
    path.write_text("# seconds\n" + "".join(f"{since + time!r}\n" for time in times))
    spec = LoadSpec(data="", trace=str(path), speed=speed, count=len(times))
    np.testing.assert_allclose(spec.due(), (np.array(times) - times[0]) / speed, atol=1e-5)
    assert lasting(spec, 0, inf).count == len(times)
    with pytest.raises(LoadError, match=f"has {len(times)} requests, but"):
        msgspec.structs.replace(spec, count=len(times) + 1).due()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("1\n3\n2\n", "is not in order: its time 3 is before the one above"),
        ("1\ntwo\n", "must have one number per line"),
        ("1 2\n3 4\n", "must have one number per line, not 2"),
        ("1\n2 3\n", "must have one number per line"),
        ("0\nnan\n", "not finite"),
        ("0\ninf\n", "not finite"),
        ("\x00\xff\x00", "must have one number per line"),
        (None, "cannot read the trace"),
    ],
)
def test_a_trace_that_is_none_is_refused(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "times.txt"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(LoadError, match=reason):
        LoadSpec(data="", trace=str(path), count=1).due()


@given(
    rate=st.floats(1, 1000),
    warm_up=st.floats(0, 2),
    duration=st.floats(0.1, 2),
    batch=st.integers(1, 4),
)
def test_warm_up_and_duration_are_kept(
    rate: float, warm_up: float, duration: float, batch: int
) -> None:
    spec = LoadSpec(data="", rate=rate, count=1, batch=batch)
    arrivals = poisson_arrivals(rate / batch, 10_000, seed=0)
    counted = (arrivals >= warm_up) & (arrivals < warm_up + duration)
    if not counted.any():
        with pytest.raises(LoadError, match="no query is due"):
            lasting(spec, warm_up, duration)
        return
    lasted = lasting(spec, warm_up, duration)
    assert lasted.warm_up == batch * (arrivals < warm_up).sum()
    assert lasted.count == batch * counted.sum()
    np.testing.assert_allclose(lasted.due()[lasted.warm_up_requests :], arrivals[counted])


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_times_that_make_no_sense_are_refused(seconds: float) -> None:
    spec = LoadSpec(data="", rate=10, count=1)
    for warm_up, duration in ((seconds, 1), (0, seconds)):
        with pytest.raises(LoadError, match="must be 0 seconds or more"):
            lasting(spec, warm_up, duration)
    with pytest.raises(LoadError, match="more than 10,000,000 queries"):
        lasting(spec, 0, 1e9)


# Results


def some_result(queries: int, seed: int) -> LoadResult:
    """Made up: of each ten queries two without an answer, one of them not sent."""
    rng = np.random.default_rng(seed)
    outcome = np.arange(queries) % 10 % 6
    latency = rng.lognormal(-5, 1, queries)
    return LoadResult(
        scheduled=np.sort(rng.random(queries)),
        send_delay=np.where(outcome == 5, np.nan, rng.random(queries) * 1e-4),
        latency=np.where(outcome == 5, np.nan, latency),
        score=np.where(outcome >= len(Source), np.nan, rng.integers(2, size=queries)),
        outcome=outcome.astype(np.int16),
        outcomes=np.array([*Source, f"HTTP 50{seed}", "not sent, 4 in flight"]),
    )


def test_results_of_several_processes_are_put_together_in_order() -> None:
    parts = [some_result(50, seed) for seed in range(3)]
    merged = LoadResult.merge(parts)
    assert (np.diff(merged.scheduled) >= 0).all()
    assert len(merged) == 150
    joined: dict[str, int] = {}
    for part in parts:
        for kind, count in part.errors().items():
            joined[kind] = joined.get(kind, 0) + count
        row = int(np.flatnonzero(merged.scheduled == part.scheduled[7])[0])
        assert merged.latency[row] == part.latency[7]
        assert merged.outcomes[merged.outcome[row]] == part.outcomes[part.outcome[7]]
    assert merged.errors() == joined
    for source in Source:
        assert merged.came_from(source).sum() == sum(r.came_from(source).sum() for r in parts)


def test_a_report_adds_up_and_its_histogram_reads_back(tmp_path: Path) -> None:
    result = some_result(20_000, seed=1)
    report = report_of(LoadSpec(data="", rate=1, count=20_000), result)
    assert report.answered + sum(report.errors.values()) == report.queries == 20_000
    assert sum(source.count for source in report.sources.values()) == report.answered
    assert report.latency is not None
    answered = np.sort(result.latency[result.answered]) * 1e3
    for percent, ms in [
        (50, report.latency.p50_ms),
        (90, report.latency.p90_ms),
        (99, report.latency.p99_ms),
        (99.5, report.latency.p995_ms),
        (99.9, report.latency.p999_ms),
        (100, report.latency.max_ms),
    ]:
        rank = round(percent / 100 * (report.answered - 1))
        around = answered[max(0, rank - 1) : rank + 2]
        assert 0.998 * around[0] <= ms <= 1.002 * around[-1]
    assert report.histogram is not None
    histogram = HdrHistogram.decode(report.histogram)
    assert histogram.get_total_count() == report.answered
    assert histogram.get_value_at_percentile(99) / 1e3 == report.latency.p99_ms
    write_histogram(tmp_path / "load.hgrm", result)
    assert "Percentile" in (tmp_path / "load.hgrm").read_text()


def test_a_report_of_nothing_is_one(tmp_path: Path) -> None:
    nothing = some_result(0, seed=0)
    report = report_of(LoadSpec(data="", rate=1, count=5), nothing)
    assert (report.queries, report.answered, report.throughput) == (0, 0, 0.0)
    assert report.latency is report.histogram is report.send_delay is None
    write_latencies(tmp_path / "none.parquet", nothing)
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0


def test_every_query_is_in_the_parquet_file(tmp_path: Path) -> None:
    result = some_result(60, seed=1)
    write_latencies(tmp_path / "latencies.parquet", result)
    rows = pq.read_table(tmp_path / "latencies.parquet").to_pylist()
    assert len(rows) == 60
    for query, row in enumerate(rows):
        kind = str(result.outcomes[result.outcome[query]])
        answered = kind in tuple(Source)
        assert row["scheduled"] == result.scheduled[query]
        assert row["source"] == (kind if answered else None)
        assert row["error"] == (None if answered else kind)
        assert row["correct"] == (result.score[query] if answered else None)
        if kind.startswith("not sent"):
            assert row["sent"] is row["latency"] is None
        else:
            assert row["latency"] == result.latency[query]
            assert row["sent"] == result.scheduled[query] + result.send_delay[query]

"""The load generator sends what is due when it is due, and knows the fate of every query. When that
is is drawn, replayed from a trace, or refused."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from parity_models.errors import LoadError, UserError, options_as_flags
from parity_models.load import LoadSpec, offer_load
from parity_models.load.result import report_of
from parity_models.load.target import Queries, Target
from parity_models.roles import Source
from parity_models.serving.client import Client
from parity_models.serving.protocol import ModelMetadata
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


@asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[str]:
    """A server whose model is `handle`; yields its URL."""

    async def metadata(request: web.Request) -> web.Response:
        tensor = {"datatype": "FP32", "shape": [-1, CLASSES]}
        return web.json_response(
            {
                "name": "model",
                "inputs": [{"name": "input", **tensor}],
                "outputs": [{"name": "output", **tensor}],
            }
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


Rows = np.ndarray[Any, Any]
LONG = 600.0
"""A timeout, in seconds, that no test meets."""


@pytest.fixture
def data(tmp_path: Path) -> str:
    """One row for each class; the last one's label is wrong."""
    path = tmp_path / "data.npz"
    labels = np.array([*range(CLASSES - 1), 0])
    np.savez(path, inputs=np.eye(CLASSES, dtype=np.float32), labels=labels)
    return str(path)


def load(url: str, data: str, **fields: Any) -> LoadSpec:
    usual: dict[str, Any] = {"model": "model", "binary": True, "rate": 10, "timeout": LONG}
    return LoadSpec(url=url, inputs=data, **usual | fields)


class Answering:
    """A handler that reconstructs class 0, and remembers the classes of the rows in `seen`."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def __call__(self, request: web.Request, row: Rows) -> web.Response:
        self.seen.append(int(row.argmax()))
        return answer(row, "reconstruction" if row.argmax() == 0 else "model")


async def test_every_query_is_sent_once_and_its_answer_is_judged(data: str) -> None:
    handle = Answering()
    async with serving(handle) as url:
        spec = load(url, data, rate=400, queries=100, warm_up=20, seed=3)
        result = await offer_load(spec)
        again = await offer_load(spec)
    drawn = np.random.default_rng((3, 1)).integers(CLASSES, size=120)
    assert sorted(handle.seen) == sorted([*drawn, *drawn])
    counted = drawn[20:]
    np.testing.assert_array_equal(result.score, counted != CLASSES - 1)
    np.testing.assert_array_equal(result.came_from(Source.RECONSTRUCTION), counted == 0)
    report = report_of(spec, result)
    assert (report.planned, report.answered, report.errors) == (100, 100, {})
    assert report.accuracy == pytest.approx((counted != CLASSES - 1).mean())
    assert report.sources["reconstruction"].count == (counted == 0).sum()
    assert (result.send_delay >= 0).all()
    assert (result.latency > result.send_delay).all()
    np.testing.assert_array_equal(result.scheduled, again.scheduled)
    np.testing.assert_array_equal(result.outcome, again.outcome)


async def test_a_stalled_server_is_charged_for_every_query_due_meanwhile(data: str) -> None:
    """No answer goes out before all queries are in: a client that waits would wait forever."""
    count = 40
    arrived = 0
    everyone_is_here = asyncio.Event()

    async def handle(request: web.Request, row: Rows) -> web.Response:
        nonlocal arrived
        arrived += 1
        if arrived == count:
            everyone_is_here.set()
        await everyone_is_here.wait()
        return answer(row)

    async with serving(handle) as url:
        result = await offer_load(load(url, data, rate=400, queries=count))
    assert result.answered.all()
    assert (result.latency >= result.scheduled[-1] - result.scheduled).all()


async def test_errors_are_counted_by_kind_and_the_load_goes_on(data: str) -> None:
    other = {"name": "output", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}
    other_shape = msgspec.json.encode({"outputs": [other]})
    garbage = cycle((b"{}", b'{"outputs": []}', b"[" * 1000, b"x" * 10**6, other_shape))

    async def handle(request: web.Request, row: Rows) -> web.Response:
        match int(row.argmax()):
            case 0:
                return web.json_response({"error": "too many"}, status=503)
            case 1:
                return web.Response(body=next(garbage))
            case 2:
                assert request.transport is not None
                request.transport.close()
        return answer(row)

    async with serving(handle) as url:
        spec = load(url, data, rate=500, queries=80)
        result = await offer_load(spec)
    errors = result.errors()
    assert set(errors) == {"HTTP 503", "malformed answer", "connection: ServerDisconnectedError"}
    assert sum(errors.values()) + result.answered.sum() == 80
    assert report_of(spec, result).errors == errors
    assert np.isnan(result.score[~result.answered]).all()


async def test_a_silent_server_times_out_and_the_number_in_flight_is_bounded(data: str) -> None:
    async def handle(request: web.Request, row: Rows) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(handle) as url:
        spec = load(url, data, rate=1e4, queries=9, timeout=0.5, connections=4)
        result = await offer_load(spec)
    assert result.errors() == {"timeout": 4, "not sent, 4 in flight": 5}
    report = report_of(spec, result)
    assert (report.answered, report.latency, report.accuracy) == (0, None, None)


@pytest.mark.parametrize("binary", [True, False])
async def test_requests_hold_batches_and_every_row_is_judged(data: str, binary: bool) -> None:
    seen: list[Rows] = []

    async def handle(request: web.Request, rows: Rows) -> web.Response:
        assert rows.shape == (3, CLASSES)
        seen.append(rows.argmax(axis=1))
        return answer(rows, "reconstruction,model,backup", binary)

    async with serving(handle) as url:
        spec = load(url, data, binary=binary, batch=3, rate=900, queries=59)
        result = await offer_load(spec)
        warm = await offer_load(replace(spec, queries=20, warm_up=39))
    assert len(seen) == 20 + 13 + 7
    assert len(result) == 60
    right = sorted((rows != CLASSES - 1).tolist() for rows in seen[:20])
    assert sorted(result.score.reshape(20, 3).tolist()) == right
    np.testing.assert_array_equal(result.score[39:], warm.score)
    for slot, source in enumerate((Source.RECONSTRUCTION, Source.MODEL, Source.BACKUP)):
        np.testing.assert_array_equal(result.came_from(source), np.arange(60) % 3 == slot)
    assert (np.diff(result.scheduled.reshape(20, 3), axis=1) == 0).all()


async def test_servers_may_name_no_source(tmp_path: Path) -> None:
    async def handle(request: web.Request, row: Rows) -> web.Response:
        return answer(row, source=None, binary=False)

    rows = str(tmp_path / "data.npy")
    np.save(rows, np.eye(CLASSES, dtype=np.float32))
    async with serving(handle) as url:
        result = await offer_load(load(url, rows, rate=500, queries=10))
    assert result.came_from(Source.MODEL).all()
    assert np.isnan(result.score).all()


async def read(path: Path, arrays: dict[str, Rows], *row: int) -> Queries:
    """Queries of these arrays for a model of these inputs and outputs, whose rows have a shape."""
    np.savez(path, allow_pickle=False, **arrays)
    names = [name for name in arrays if name != "labels"]
    datatype = {np.dtype(np.float32): "FP32", np.dtype(int): "INT64"}[arrays[names[0]].dtype]
    tensors = [{"name": x, "datatype": datatype, "shape": [-1, *row]} for x in names]
    described = {"name": "model", "inputs": tensors, "outputs": tensors}
    async with Client("http://127.0.0.1:1") as client:
        target = Target(client, msgspec.convert(described, ModelMetadata), True)
        return Queries.read(load("", str(path)), target)


async def test_queries_are_cut_to_the_longest_in_their_request(tmp_path: Path) -> None:
    ids = np.array([[1, 2, 0, 0], [1, 2, 3, 0]])
    arrays = {"ids": ids, "mask": (ids > 1).astype(int)}
    queries = await read(tmp_path / "texts.npz", arrays, -1)
    for rows, length in (([0, 0], 2), ([0, 1], 3)):
        taken = queries.take(np.array(rows))
        assert [each.shape for each in taken.values()] == [(2, length)] * 2


async def test_one_of_several_inputs_may_be_called_inputs(tmp_path: Path) -> None:
    rows = np.ones((3, 2), np.float32)
    queries = await read(tmp_path / "rows.npz", {"inputs": rows, "mask": rows}, 2)
    assert list(queries.inputs) == ["inputs", "mask"]


@pytest.mark.parametrize("row", [(-1,), (1,), (2, 2)])
async def test_labels_of_outputs_without_classes_are_to_be_left_out(
    tmp_path: Path, row: tuple[int, ...]
) -> None:
    rows = np.ones((3, *(abs(each) for each in row)), np.float32)
    with options_as_flags(), pytest.raises(LoadError, match=r"leave them out$"):
        await read(tmp_path / "rows.npz", {"x": rows, "labels": np.zeros(3, int)}, *row)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": "other"}, "has no model 'other'"),
    ({"data": "wrong-shape.npz"}, "the model takes 'input' FP32"),
    ({"data": "pickled.npz"}, "holds Python objects"),
    ({"data": "missing.npz"}, "there is no missing.npz"),
    ({"url": "http://127.0.0.1:1"}, "no server answers"),
    ({"url": "127.0.0.1:8000"}, "is not a server's address"),
    ({"url": "http://[::1"}, "is not a server's address"),
    ({"labels": "labels.npy"}, "the labels do not fit the model: .*2 labels for 4 inputs"),
]


async def test_a_load_that_cannot_be_offered_is_refused_with_the_reason(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("labels.npy", np.zeros(2, int))
    np.savez("wrong-shape.npz", inputs=np.zeros((3, 7), np.float32), labels=np.zeros(3))
    np.savez("pickled.npz", inputs=np.array([{}], dtype=object), labels=np.zeros(1))
    async with serving(Answering()) as url:
        for change, reason in REFUSED:
            with pytest.raises(UserError, match=reason):
                await offer_load(load(**{"url": url, "data": data} | change))


# Schedules


def spec(**fields: Any) -> LoadSpec:
    return LoadSpec(**{"inputs": "queries.npy", "rate": 10, **fields})


def trace(path: Path, **fields: Any) -> LoadSpec:
    return spec(rate=None, trace=str(path), **fields)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rate": 0}, "rate must be a number, from 0.001 to 1e+06; got 0"),
        ({"rate": float("nan")}, "got nan"),
        ({"rate": None}, "give rate= or trace="),
        ({"trace": "times.txt"}, "and not both"),
        ({"inputs": ""}, "say which queries to send"),
        ({"queries": 0}, "queries must be"),
        ({"batch": 0}, "batch must be"),
        ({"connections": 1000}, "connections must be a whole number, from 1 to 512"),
        ({"timeout": -1}, "timeout must be"),
        ({"duration": 0}, "duration must be a number, above 0"),
    ],
)
def test_loads_that_make_no_sense_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=re.escape(reason)):
        spec(**change)


@given(
    st.lists(st.floats(0, 1e5), min_size=1, max_size=50).map(sorted), st.sampled_from([0, 1.7e9])
)
def test_a_trace_is_sent_as_it_was_recorded(
    tmp_path_factory: pytest.TempPathFactory, times: list[float], since: float
) -> None:
    path = tmp_path_factory.mktemp("trace") / "times.txt"
    path.write_text("# seconds\n" + "".join(f"{since + time!r}\n" for time in times))
    np.testing.assert_allclose(trace(path).due, np.array(times) - times[0], atol=1e-5)
    with pytest.raises(LoadError, match=f"has {len(times)} requests, but"):
        _ = trace(path, queries=len(times) + 1).due
    with pytest.raises(LoadError, match="no query is due after the warm-up"):
        _ = trace(path, warm_up=len(times)).due


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("# nothing\n", "must have one time"),
        ("1\n3\n2\n", "in order"),
        ("1 2\n3 4\n", "must have one time"),
        ("1\n2 3\n", "must have one number per line"),
        ("0\nnan\n", "finite"),
        ("0\n1\ninf\n", "finite"),
        ("\x00\xff\x00", "must have one number per line"),
        (None, "cannot read the trace"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "times.txt"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(LoadError, match=reason):
        _ = trace(path).due
    with pytest.raises(LoadError, match="more than 10,000,000 queries"):
        _ = spec(duration=1e9).due


@given(
    rate=st.floats(1, 1000),
    warm_up=st.integers(0, 50),
    duration=st.floats(0.1, 2),
    batch=st.integers(1, 4),
)
def test_a_load_lasts_for_its_time(rate: float, warm_up: int, duration: float, batch: int) -> None:
    load = spec(rate=rate, warm_up=warm_up, duration=duration, batch=batch)
    first = -(-warm_up // batch)
    assert load.warm_up_requests == first
    arrivals = poisson_arrivals(rate / batch, 10_000, seed=0)
    end = duration + (arrivals[first - 1] if first else 0.0)
    wanted = arrivals[arrivals < end]
    if len(wanted) == first:
        with pytest.raises(LoadError, match="no query is due"):
            _ = load.due
        return
    np.testing.assert_array_equal(load.due, wanted)
    counted = replace(load, duration=None, queries=5)
    np.testing.assert_array_equal(counted.due, arrivals[: first + -(-5 // batch)])
    assert msgspec.json.decode(msgspec.json.encode(load), type=LoadSpec) == load

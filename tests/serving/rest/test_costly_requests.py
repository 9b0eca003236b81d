"""Requests that cost the server far more than the client are refused before they cost anything;
metrics cost a share of the time."""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from msgspec import Raw
from prometheus_client.core import GaugeMetricFamily

from http_served import INFER, binary, body, eventually, get, post, serving
from parity_models.roles import Source
from parity_models.serving.errors import InvalidRequestError, TooLargeError
from parity_models.serving.inference import InferRequest
from parity_models.serving.models import Result, ServedModel
from parity_models.serving.rest import SHARE, Request, Scrapes
from parity_models.serving.rest_codec import read_array, read_request, write_response
from parity_models.tensors.signature import Signature, TensorSpec
from rest_bodies import done

X = TensorSpec("x", "FP32", (64,))
MODEL = ServedModel("model", Signature.of(X, TensorSpec("y", "FP32", (2,))), max_rows=1000)
MANY = 2**19
"""More values than a request to the model has, in fewer bytes than it may have."""


def infer(**changes: Any) -> bytes:
    """A request whose JSON has these values in place of its own."""
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1000, 64], "data": [0]}
    # A shape that comes first says how much may follow, wherever it is.
    message: dict[str, Any] = {"anything": {"shape": [1000]}}
    for key, value in changes.items():
        (tensor if key in tensor else message)[key] = value
    return json.dumps(message | {"inputs": [tensor]}, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"data": [0] * MANY},
        {"shape": [1] * MANY},
        {"outputs": [{}] * MANY},
        {"parameters": {"tenant": [0] * MANY}},
        {"parameters": {"anything": [0] * MANY}},
    ],
    ids=["data", "shape", "outputs", "tenant", "anything"],
)
def test_json_of_too_many_values_is_refused_unread(changes: dict[str, Any]) -> None:
    with pytest.raises(TooLargeError, match=r"the request has \d+ values in its JSON; 1000 rows"):
        read_request(infer(**changes), None, MODEL)


@pytest.mark.parametrize("changes", [{"shape": [1] * 1000}, {"outputs": [{"name": "y"}] * 1000}])
def test_lists_that_are_no_data_are_short(changes: dict[str, Any]) -> None:
    """Those that data leave room for took a third of a second, and an error of megabytes."""
    with pytest.raises(
        InvalidRequestError, match=r"Expected `array` of length <= 64 - at"
    ) as error:
        read_request(infer(**changes), None, MODEL)
    assert len(str(error.value)) < 100


async def turns(counted: list[int]) -> None:
    counted.append(1)


NUMBERS = np.arange(200_000, dtype=np.float32).reshape(100, 20, 100)


@pytest.mark.parametrize("data", [NUMBERS.tolist(), NUMBERS.ravel().tolist()])
@pytest.mark.parametrize("indent", [None, 1])
def test_large_json_is_read_in_slices(data: list[Any], indent: int | None) -> None:
    counted: list[int] = []
    text = Raw(json.dumps(data, indent=indent).encode())
    read = read_array(text, "FP32", NUMBERS.shape, "it", partial(turns, counted))
    np.testing.assert_array_equal(done(read), NUMBERS)
    assert len(counted) > 5


@pytest.mark.parametrize(
    ("shape", "change", "wrong"),
    [
        ((100, 20, 99), lambda text: text, "another shape"),
        ((100, 2000), lambda text: text, "another shape"),
        ((10**4, 10**4, 10**4), lambda text: text, "another shape"),
        ((100, 20, 100), lambda text: text.replace(b"99.0]", b"99.0,[]]", 1), "another shape"),
        ((100, 20, 100), lambda text: text.replace(b" 7.0", b" null", 1), "Expected `float`"),
        ((100, 20, 100), lambda text: text.replace(b" 7.0", b' "7"', 1), "another shape"),
        ((100, 20, 100), lambda text: text.replace(b" 7.0", b" 1e39", 1), "numbers beyond FP32"),
    ],
)
def test_large_json_of_another_shape_or_type_is_refused(
    shape: tuple[int, ...], change: Callable[[bytes], bytes], wrong: str
) -> None:
    text = Raw(change(json.dumps(NUMBERS.tolist()).encode()))
    with pytest.raises(InvalidRequestError, match=wrong):
        done(read_array(text, "FP32", shape, "it"))


def wide(values: int, rows: int, **parameters: bool) -> InferRequest:
    outputs = TensorSpec("y", "FP32", (values,))
    model = ServedModel("model", Signature.of(X, outputs), max_rows=1000)
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 64], "data": [0] * 64 * rows}
    message = {"inputs": [tensor], "parameters": parameters}
    return read_request(json.dumps(message).encode(), None, model)


def test_large_answers_are_written_in_slices() -> None:
    asked = wide(50_000, 2)
    outputs = np.arange(100_000, dtype=np.float32).reshape(2, -1)
    result, counted = Result(outputs, [Source.MODEL] * 2), list[int]()
    head, _ = done(write_response(asked, result, partial(turns, counted)))
    assert json.loads(head)["outputs"][0]["data"] == list(range(100_000))
    assert len(counted) > 7


def test_an_answer_too_large_for_json_is_refused_and_binary_named() -> None:
    asked = wide(65_536, 100)
    with pytest.raises(TooLargeError, match=r"6553600 values, and JSON .*\(binary_data_output"):
        asked.measure_answer()
    asked = wide(65_536, 100, binary_data_output=True)
    assert asked.measure_answer() == 2 * 4 * 6_553_600


async def test_answers_are_charged_to_the_budget_before_they_are_computed() -> None:
    async with serving(max_body=4000, max_in_flight=6000) as served:
        client = await served.connect()
        served.echo.may.clear()
        client.send(binary(np.zeros((40, 4), np.float32)))
        await eventually(lambda: served.echo.asked == 1, "no request arrives")
        assert served.budget.held > 3 * 640
        other = await served.connect()
        assert (await other.ask(binary(np.zeros((90, 4), np.float32))))[0] == 503
        status, _, content = await other.ask(binary(np.zeros((200, 4), np.float32)))
        assert (status, b"its answer take 6400 bytes" in content) == (413, True)
        served.echo.may.set()
        assert (await client.answer())[0] == 200
        assert served.echo.asked == 1


LARGE = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1000,4],"data":['


async def test_a_large_request_is_refused_by_its_first_bytes() -> None:
    async with serving() as served:
        served.echo.room = 999
        client = await served.connect()
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n".encode()
        client.send(head, LARGE, b"x" * 1000)
        refused = "parm_refused_total"
        await eventually(lambda: served.counted(refused, why="admission") == 1, "not refused")
        assert served.budget.held == 0
        client.send(b"x" * (299_000 - len(LARGE)))  # which is dropped, unread and not held
        status, headers, content = await client.answer()
        assert (status, headers["retry-after"]) == (503, "1")
        assert b"too much waits" in content
        assert served.echo.asked == 0
        status, _, content = await client.ask(
            post(LARGE.replace(b"1000", b"2001") + b"x" * 100_000)
        )
        assert (status, b"2001 rows, this server takes up to 2000" in content) == (413, True)
        served.echo.room = 1000
        client.send(post(LARGE + b"0," * 150_000 + b"0]}]}"))
        assert (await client.answer())[0] == 413  # for its values: they are read now


async def test_a_client_that_comes_back_too_early_is_refused_when_it_should_have_come() -> None:
    async with serving() as served:
        served.echo.room, served.echo.retry_after = 0, 1000.0
        client, other = await served.connect(), await served.connect()
        large = post(LARGE + b"x" * 100_000)
        assert (await client.ask(large))[0] == 503
        client.send(large)
        refused = "parm_refused_total"
        await eventually(lambda: served.counted(refused, why="admission") == 2, "not refused")
        assert (await other.ask(get()))[0] == 200
        answer = asyncio.ensure_future(client.answer())
        for _ in range(100):
            await asyncio.sleep(0)
        assert not answer.done()
        answer.cancel()


async def test_json_has_a_limit_of_its_own() -> None:
    async with serving(max_json=1000) as served:
        client = await served.connect()
        status, _, content = await client.ask(post(b" " * 1001))
        assert (status, b"(max_json); send binary data" in content) == (413, True)
        assert (await client.ask(binary(np.zeros((100, 4), np.float32))))[0] == 200


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (b'{"inputs":[],"inputs":[{%s}]}', 'key "inputs" more than once'),
        (b'{"inputs":[{"shape":[9,9],%s}]}', 'key "shape" more than once'),
        (b'{"id":"shape","parameters":{"tenant":"inputs"},"inputs":[{%s}]}', ""),
    ],
)
def test_a_key_that_is_given_twice_is_refused(text: bytes, wrong: str) -> None:
    tensor = b'"name":"x","datatype":"FP32","shape":[1,64],"data":[' + b"0," * 63 + b"0]"
    if not wrong:
        assert read_request(text % tensor, None, MODEL).count == 1
        return
    with pytest.raises(InvalidRequestError, match=wrong):
        read_request(text % tensor, None, MODEL)


async def test_declared_length_alone_does_not_keep_others_out() -> None:
    async with serving(max_body=900, max_in_flight=1000) as served:
        idle = [await served.connect() for _ in range(20)]
        for each in idle:
            each.send(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{{".encode())
        await eventually(lambda: served.budget.held == 20, "they do not arrive")
        client = await served.connect()
        assert (await client.ask(post(body())))[0] == 200
        idle[0].send(b" " * 400)
        await eventually(lambda: served.budget.held == 420, "it does not arrive")
        client.send(post(b" " * 900))  # there is no room for as much
        status, _, content = await client.answer()
        assert (status, b"900 more would exceed the 1000" in content) == (503, True)
        # Nor is there for all that those send that have begun.
        for each in idle:
            each.send(b" " * 200)
        refused = "parm_requests_total"
        await eventually(lambda: served.counted(refused, code="503") > 5, "nobody is refused")
        assert served.budget.held <= 1000
        for each in idle:
            each.close()


@pytest.mark.parametrize("version", ["1.x", "nothing", "9" * 5000, "1.0.0.\xe9"])
async def test_metrics_are_told_whatever_version_is_accepted(version: str) -> None:
    async with serving() as served:
        client = await served.connect()
        for kind in ("text/plain", "application/openmetrics-text"):
            accept = f"Accept: {kind}; version={version}\r\n"
            status, _, content = await client.ask(get("/metrics", accept))
            assert status == 200
            assert b"parm_requests" in content


async def test_web_pages_load_and_unload_no_models() -> None:
    async with serving() as served:
        client = await served.connect()
        for what in ("load", "unload"):
            path = f"/v2/repository/models/model/{what}"
            for origin in ("http://evil.example", "null"):
                status, _, content = await client.ask(post(b"{}", f"Origin: {origin}\r\n", path))
                assert (status, b"web pages" in content) == (403, True)
        load = post(b" " * 2**17, path="/v2/repository/models/model/load")
        assert (await client.ask(load))[0] == 413


# Metrics are written for a share of the time only, and are never older than the question


OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


class Written:
    """Metrics that say how often they were written, which takes 20 ms of computing."""

    def __init__(self) -> None:
        self.times = 0
        self.spent = 0.0
        self.scrapes = Scrapes(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        began = time.thread_time()
        while time.thread_time() < began + 0.02:
            pass
        self.times += 1
        self.spent += 0.02
        yield GaugeMetricFamily("times", "Times.", value=self.times)

    async def ask(self, accept: str = "text/plain") -> int:
        request = Request("GET", "/metrics", [(b"accept", accept.encode())])
        found = re.search(rb"^times (\d+)", (await self.scrapes(request)).content, re.MULTILINE)
        assert found is not None
        return int(found[1])


async def test_metrics_take_a_share_of_the_time() -> None:
    written, began = Written(), time.monotonic()
    for asked in range(1, 4):
        assert await written.ask() == asked
    assert written.spent - 0.02 <= SHARE * (time.monotonic() - began)


async def test_all_who_wait_get_what_is_written_once() -> None:
    written = Written()
    assert await written.ask() == 1
    asked = [asyncio.create_task(written.ask()) for _ in range(100)]
    assert await asyncio.gather(*asked) == [2] * 100


async def test_a_client_that_goes_keeps_no_other_waiting() -> None:
    written = Written()
    assert await written.ask() == 1
    gone, stays = (asyncio.create_task(written.ask()) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == 2


async def test_each_format_has_an_answer_of_its_own() -> None:
    written = Written()
    answers = await asyncio.gather(written.ask(), written.ask(OPEN_METRICS), written.ask())
    assert answers[0] == answers[2] != answers[1]

"""The answer of a stand-in is what each client library would have returned, over real sockets."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from numpy.typing import NDArray

import parity_models as pm
from late_targets import CalmLate
from parity_models.bundle.bundle import Bundle
from parity_models.errors import UserError
from served import INFER, infer_message, predictions, queries
from string_models import CLASSES, predict, texts, write_string_bundle
from triton_requests import grpc_input, http_input

pytestmark = pytest.mark.slow

ROWS = queries(2)
KNOWN = 60

Infer = Callable[[], Awaitable[Any]]
Open = Callable[[AsyncExitStack, str, str], Awaitable[Infer]]
"""Opens a client for a server's HTTP and gRPC addresses; returns its call."""


async def of_httpx(stack: AsyncExitStack, url: str, grpc_url: str) -> Infer:
    client = await stack.enter_async_context(httpx.AsyncClient(base_url=url))
    return lambda: client.post(INFER, json=infer_message(ROWS))


async def of_aiohttp(stack: AsyncExitStack, url: str, grpc_url: str) -> Infer:
    session = await stack.enter_async_context(aiohttp.ClientSession(url))

    async def infer() -> Any:
        async with session.post(INFER, json=infer_message(ROWS)) as response:
            response.raise_for_status()
            return await response.json()

    return infer


async def of_triton_http(stack: AsyncExitStack, url: str, grpc_url: str) -> Infer:
    client = tritonclient.http.aio.InferenceServerClient(url.removeprefix("http://"))
    stack.push_async_callback(client.close)
    return lambda: client.infer("model", [http_input(ROWS)])


async def of_triton_grpc(stack: AsyncExitStack, url: str, grpc_url: str) -> Infer:
    client = tritonclient.grpc.aio.InferenceServerClient(grpc_url.removeprefix("grpc://"))
    stack.push_async_callback(client.close)
    return lambda: client.infer("model", [grpc_input(ROWS)])


def array_in(value: Any) -> NDArray[Any]:
    """The output in an answer, as the users of each client read it."""
    if isinstance(value, httpx.Response):
        assert value.raise_for_status().status_code == 200
        value = value.json()
    if isinstance(value, dict):
        (tensor,) = value["outputs"]
        assert (tensor["name"], tensor["datatype"]) == ("output", "FP32")
        return np.array(tensor["data"], np.float32).reshape(tensor["shape"])
    found: NDArray[Any] = value.as_numpy("output")
    return found


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    """The address of a server that never answers."""

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(2**16):
            pass
        writer.close()

    server = await asyncio.start_server(ignore, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@pytest.mark.parametrize("open_client", [of_httpx, of_aiohttp, of_triton_http, of_triton_grpc])
async def test_a_stand_in_answers_alike(bundle: Bundle, silent: str, open_client: Open) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            pm.serve(bundle, policy="none", instances=1, port=0, grpc_port=0)
        )
        assert server.grpc_url is not None
        infer = await open_client(stack, server.url, server.grpc_url)
        hanging = await open_client(stack, f"http://{silent}", silent)
        late = await stack.enter_async_context(CalmLate(bundle, differ=0.01))
        for _ in range(KNOWN):
            await late(infer, ROWS)
        answer = await late(hanging, ROWS)
        assert answer.source == "backup"
        np.testing.assert_allclose(
            array_in(answer.value), 2 * predictions(ROWS), rtol=1e-3, atol=1e-5
        )


def of_triton_http_in_threads(url: str, grpc_url: str) -> Callable[[], Any]:
    """Its client belongs to a thread, so each thread makes its own."""
    own = threading.local()

    def infer() -> Any:
        if not hasattr(own, "client"):
            own.client = tritonclient.http.InferenceServerClient(url.removeprefix("http://"))
        return own.client.infer("model", [http_input(ROWS)])

    return infer


def of_triton_grpc_in_threads(url: str, grpc_url: str) -> Callable[[], Any]:
    client = tritonclient.grpc.InferenceServerClient(grpc_url.removeprefix("grpc://"))
    return lambda: client.infer("model", [grpc_input(ROWS)])


@pytest.mark.parametrize("open_client", [of_triton_http_in_threads, of_triton_grpc_in_threads])
def test_a_stand_in_answers_blocking_clients_alike(
    bundle: Bundle, open_client: Callable[[str, str], Callable[[], Any]]
) -> None:
    with CalmLate(bundle, differ=0.1) as late:
        with pm.serve(bundle, policy="none", instances=1, port=0, grpc_port=0) as server:
            infer = open_client(server.url, str(server.grpc_url))
            with ThreadPoolExecutor(4) as threads:
                answers = [*threads.map(lambda _: late.call(infer, ROWS), range(20))]
        np.testing.assert_allclose(
            array_in(next(each for each in answers if each.source == "model").value),
            predictions(ROWS),
            rtol=1e-3,
            atol=1e-5,
        )
        answer = late.call(infer, ROWS)  # the server is gone
    assert answer.source == "backup"
    np.testing.assert_allclose(array_in(answer.value), 2 * predictions(ROWS), rtol=1e-3, atol=1e-5)


async def test_an_http_error_is_a_late_answer(bundle: Bundle) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            pm.serve(bundle, policy="none", instances=1, port=0)
        )
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=server.url))
        late = await stack.enter_async_context(CalmLate(bundle, differ=0.01))

        def wrong() -> Awaitable[httpx.Response]:
            return client.post("/v2/models/other/infer", json=infer_message(ROWS))

        answer = await late(wrong, ROWS)
        assert (answer.source, answer.value.status_code) == ("model", 404)
        await late(lambda: client.post(INFER, json=infer_message(ROWS)), ROWS)
        answer = await late(wrong, ROWS)
        assert (answer.source, answer.value.status_code) == ("backup", 200)


async def test_late_takes_a_text_or_a_list(tmp_path: Path) -> None:
    asked = texts(3)

    async def prompt() -> Any:
        await asyncio.sleep(0.001)
        return {"probabilities": predict(asked)["probabilities"]}

    async def hang() -> Any:
        await asyncio.sleep(60)

    rows = asked[:, 0].tolist()
    async with CalmLate(write_string_bundle(tmp_path), differ=1.0) as late:
        for _ in range(60):
            await late(prompt, text=rows)
        several = await late(hang, text=rows)
        one = await late(hang, text=rows[0])
        assert several.source == one.source == "backup"
        for given, found in ((rows, several), (rows[:1], one)):
            classes = found.value["probabilities"].argmax(axis=1)
            assert [CLASSES[each] for each in classes] == [*predict(asked[: len(given)])["label"]]
        with pytest.raises(UserError, match="give rows or a text, not both"):
            await late(hang, rows, text=rows)

"""Servers for loads: their model says the rows back, or what a test wants."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
from aiohttp import web

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


def ignore() -> None:
    """Nothing waits for the start."""

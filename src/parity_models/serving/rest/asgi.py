"""The service as an ASGI application, for mounting into another server (Ray Serve's, say).

Time limits, connections and pipelining are that server's business; bodies and the bytes in flight
are bounded here. https://asgi.readthedocs.io/en/latest/specs/www.html
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from parity_models.serving.errors import RequestError
from parity_models.serving.request_log import REQUEST_ID
from parity_models.serving.rest.messages import Request, Response
from parity_models.serving.rest.service import Rest

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class AsgiApp:
    """Carries requests to the service; a client that goes away has its request cancelled.

    Raises ValueError for connections of anything but HTTP.
    """

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):  # there is nothing to do at either
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        if scope["type"] != "http":
            raise ValueError(f"only HTTP is spoken here, not {scope['type']}")
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        raw = raw.removeprefix(scope.get("root_path", "").encode())  # where it is mounted
        request = Request(scope["method"], raw.decode("latin-1"), scope["headers"])
        try:
            response = await self._answer(request, receive)
        except RequestError as error:
            response = self._rest.refused(request, error)
        finally:
            request.release()
        if response is not None:
            await _send(response, request, send)

    async def _answer(self, request: Request, receive: Receive) -> Response | None:
        """Return the answer, or None where the client went away before there was one."""
        length = request.headers.get("content-length", "")
        self._rest.begin(request, int(length) if length.isascii() and length.isdigit() else 0)
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self._rest.abandoned(request)
                return None
            request.add(message.get("body", b""))
            more = message.get("more_body", False)
        answering = asyncio.ensure_future(self._rest.answer(request))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not answering.done():
                answering.cancel()
        with suppress(asyncio.CancelledError):
            return await answering
        return None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(response: Response, request: Request, send: Send) -> None:
    headers = [
        *response.headers,
        (b"content-length", b"%d" % sum(map(len, (response.content, *response.more)))),
        (REQUEST_ID.encode(), request.log.id.encode()),
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    content = (b"",) if request.method == "HEAD" else (response.content, *response.more)
    for left, piece in enumerate(content, 1 - len(content)):
        await send({"type": "http.response.body", "body": bytes(piece), "more_body": left < 0})

"""Race the Open Inference Protocol's requests of an httpx client."""

import re
from typing import Any

import httpx
import msgspec

from parity_models.late.driver import LateAnswer
from parity_models.late.late import Late
from parity_models.late.values import PlainRequest
from parity_models.roles import Source


class LateTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Race a client's requests for predictions of one model, and send all others as they are.

        httpx.AsyncClient(transport=pm.LateTransport(late, "model", httpx.AsyncHTTPTransport()))

    Requests with parameters or binary tensors, streamed ones, and those for other outputs than
    stand-ins give are not raced. Answers have the headers `x-parm-source` and `x-parm-agreement`.

    Args:
        late: Makes the calls to this model.
        model: The model's name in URLs.
        transport: Sends the requests, of an httpx.Client or of an httpx.AsyncClient.

    """

    def __init__(
        self, late: Late, model: str, transport: httpx.BaseTransport | httpx.AsyncBaseTransport
    ) -> None:
        options: Any = {"transport": transport, "auth": httpx.Auth()}
        self._late, self._client = late, httpx.Client(**options)
        self._async_client = httpx.AsyncClient(**options)
        self._path = re.compile(rf".*/v2/models/{re.escape(model)}(/versions/[^/]+)?/infer")

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        message, send = self._message(request), self._client.send
        if message is None:
            return send(request, stream=True)
        return _response(message, self._late.call(lambda *_: send(request), message.arrays))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        message, send = self._message(request), self._async_client.send
        if message is None:
            return await send(request, stream=True)
        return _response(message, await self._late(lambda *_: send(request), message.arrays))

    def _message(self, request: httpx.Request) -> PlainRequest | None:
        """Return a request that stand-ins could answer; None for any other."""
        if not self._path.fullmatch(request.url.path):
            return None
        try:
            message = msgspec.json.decode(request.content, type=PlainRequest)
        except (msgspec.DecodeError, httpx.RequestNotRead):
            return None
        backup = self._late._client.backup
        if backup is None or message.outputs == [{"name": backup.output.name}]:
            return message
        return None if message.outputs or backup.other_outputs else message

    def close(self) -> None:
        self._client.close()

    async def aclose(self) -> None:
        await self._async_client.aclose()


def _response(message: PlainRequest, answer: LateAnswer) -> httpx.Response:
    """Return the answer to a request, with headers that name its source."""
    response: httpx.Response = answer.value
    if answer.source == Source.BACKUP:  # unread, so that the client measures `elapsed`
        body = response.json() | ({"id": message.id} if message.id else {})
        stream = httpx.ByteStream(msgspec.json.encode(body))
        response = httpx.Response(200, headers={"content-type": "application/json"}, stream=stream)
    response.headers.setdefault("x-parm-source", answer.source)
    response.headers.setdefault("x-parm-agreement", f"{answer.agreement:.6g}")
    return response

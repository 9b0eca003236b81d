"""Race the Open Inference Protocol's requests of an httpx client."""

import re
from datetime import timedelta
from functools import partial
from time import monotonic as now
from typing import Any, cast

import httpx
import msgspec

from parity_models.late.driver import LateAnswer
from parity_models.late.late import Late
from parity_models.late.values import arrays_in
from parity_models.roles import Source


class LateTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Race a client's requests for predictions of one model, and send all others as they are.

        httpx.AsyncClient(transport=pm.LateTransport(late, "model", httpx.AsyncHTTPTransport()))

    Requests with parameters or binary tensors, and those for other outputs than stand-ins give, are
    not raced. Answers have the headers `x-parm-source` and `x-parm-agreement`.

    Args:
        late: Makes the calls to this model.
        model: The model's name in URLs.
        transport: Sends the requests, of an httpx.Client or of an httpx.AsyncClient.

    """

    def __init__(
        self, late: Late, model: str, transport: httpx.BaseTransport | httpx.AsyncBaseTransport
    ) -> None:
        self._late, self._inner = late, cast(Any, transport)
        self._path = re.compile(rf".*/v2/models/{re.escape(model)}(/versions/[^/]+)?/infer")

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        def call(*_: Any) -> Any:
            response = self._inner.handle_request(request)
            response.read()
            response.request = request
            return response

        started, raced = now(), self._path.fullmatch(request.url.path)
        message = self._message(request.read()) if raced else None
        if message is None:
            return cast(httpx.Response, self._inner.handle_request(request))
        return message.response(self._late.call(call, partial(arrays_in, message.inputs)), started)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        async def call(*_: Any) -> Any:
            response = await self._inner.handle_async_request(request)
            await response.aread()
            response.request = request
            return response

        started, raced = now(), self._path.fullmatch(request.url.path)
        message = self._message(await request.aread()) if raced else None
        if message is None:
            return cast(httpx.Response, await self._inner.handle_async_request(request))
        return message.response(await self._late(call, partial(arrays_in, message.inputs)), started)

    def _message(self, body: bytes) -> "_Message | None":
        """Return a request that stand-ins could answer; None for any other."""
        try:
            message = msgspec.json.decode(body, type=_Message)
        except msgspec.DecodeError:
            return None
        backup, wanted = self._late._client.backup, message.outputs
        if backup and (wanted or backup.other_outputs) and wanted != [{"name": backup.output.name}]:
            return None
        with_parameters = message.parameters or any("parameters" in x for x in message.inputs)
        return None if with_parameters else message

    def close(self) -> None:
        self._inner.close()

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    """A request for predictions."""

    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]] = []
    parameters: dict[str, Any] = {}
    id: str = ""
    model_name: str = ""

    def response(self, answer: LateAnswer, started: float) -> httpx.Response:
        """Return the answer to this request, which was sent at `started`."""
        response: httpx.Response = answer.value
        if answer.source == Source.BACKUP and self.id:
            response = httpx.Response(200, json={"id": self.id, **response.json()})
        response.headers.setdefault("x-parm-source", answer.source)
        response.headers.setdefault("x-parm-agreement", f"{answer.agreement:.6g}")
        response.elapsed = timedelta(seconds=now() - started)
        return response

"""Who may call: those who show a token, and whoever asks for the server's health."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health_pb2

from parity_models.serving.errors import UnauthorizedError
from parity_models.serving.grpc.refusals import code_of
from parity_models.serving.grpc.service import SERVICE, Context
from parity_models.serving.metrics import Metrics
from parity_models.serving.tokens import Tokens

_HEALTH = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/"
_OPEN = (f"/{SERVICE.full_name}/ServerLive", f"/{SERVICE.full_name}/ServerReady")

_Handler = Any
"""grpc.RpcMethodHandler, which is generic in its stub alone."""


class TokensShown(grpc.aio.ServerInterceptor):
    """Refuses calls whose metadata `authorization` holds none of the `tokens`, unread."""

    def __init__(self, tokens: Tokens, metrics: Metrics) -> None:
        self._tokens = tokens
        self._metrics = metrics
        self._refusing: _Handler = grpc.stream_unary_rpc_method_handler(_refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        details: grpc.HandlerCallDetails,
    ) -> _Handler:
        method = str(details.method)
        if method in _OPEN or method.startswith(_HEALTH):
            return await continuation(details)
        shown = [value for key, value in details.invocation_metadata if key == "authorization"]
        if len(shown) == 1 and self._tokens.admits(str(shown[0])):
            return await continuation(details)
        self._metrics.unauthorized.inc()
        return self._refusing


async def _refuse(messages: AsyncIterator[bytes], context: Context) -> NoReturn:
    error = UnauthorizedError()
    await context.abort(code_of(error), str(error))
    raise AssertionError("abort raises")

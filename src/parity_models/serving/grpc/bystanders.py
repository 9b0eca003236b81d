"""Health and reflection: the services beside the protocol's own, within limits of their own.

Left to gRPC, their calls wait for a message without a limit of time, whatever of it they hold by
then, and health is watched for as long as a client likes. gRPC takes so many calls at a time, of
all kinds: those of a stranger, who needs no token for health, would keep all predictions out.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from parity_models.serving.errors import DeadlineError, InvalidRequestError, RequestError
from parity_models.serving.grpc.calls import Calls
from parity_models.serving.grpc.methods import abort
from parity_models.serving.grpc.refusals import code_of, metadata_of, text_of
from parity_models.serving.grpc.service import SERVICE, Context
from parity_models.serving.metrics import Metrics

_OWN = f"/{SERVICE.full_name}/"

_Handler = Any
"""grpc.RpcMethodHandler, which is generic in its stub alone."""


class BystandersBounded(grpc.aio.ServerInterceptor):
    """Bounds other services than the protocol's own as `calls` has it: the time and the bytes of
    their messages, and the number of their streams. What it refuses, `metrics` count.

    So they all take streams of messages. On the wire, one message is no different from that.
    """

    def __init__(self, calls: Calls, metrics: Metrics) -> None:
        self._calls = calls
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        details: grpc.HandlerCallDetails,
    ) -> _Handler:
        handler = await continuation(details)
        if handler is None or str(details.method).startswith(_OWN):
            return handler
        coding = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_unary is not None:
            answered = self._answered(handler.unary_unary)
            return grpc.stream_unary_rpc_method_handler(answered, *coding)
        streamed = self._streamed(handler.unary_stream or handler.stream_stream, handler)
        return grpc.stream_stream_rpc_method_handler(streamed, *coding)

    def _answered(self, answer: Any) -> Any:
        async def answered(messages: AsyncIterator[Any], context: Context) -> Any:
            try:
                message = await _decoded(self._calls.read(messages))
            except RequestError as error:
                await self._refuse(context, error)
            return await answer(message, context)

        return answered

    def _streamed(self, answers: Any, handler: _Handler) -> Any:
        async def streamed(messages: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            try:
                with self._calls.lasting():
                    several = handler.request_streaming
                    asked = (
                        self._all(messages)
                        if several
                        else await _decoded(self._calls.read(messages))
                    )
                    async for answer in answers(asked, context):
                        yield answer
            except RequestError as error:
                await self._refuse(context, error)

        return streamed

    async def _all(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The messages, until one does not come in time."""
        try:
            while True:
                yield await _decoded(self._calls.next(messages))
        except (DeadlineError, InvalidRequestError, StopAsyncIteration):
            return

    async def _refuse(self, context: Context, error: RequestError) -> NoReturn:
        if error.why is not None:
            self._metrics.refusals.labels(error.why).inc()
        await abort(context, code_of(error), text_of(error), metadata_of(error))


async def _decoded(message: Awaitable[Any]) -> Any:
    try:
        return await message
    except DecodeError as error:
        raise InvalidRequestError("the message is none of those that the method takes") from error

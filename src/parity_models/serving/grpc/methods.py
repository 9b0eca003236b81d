"""The methods of the service as gRPC calls them: within the limits of calls, with gRPC's errors."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode

from parity_models.serving.errors import RequestError, TooLargeError
from parity_models.serving.grpc.calls import Calls
from parity_models.serving.grpc.connections import Connections
from parity_models.serving.grpc.expected_size import MAX_BESIDE
from parity_models.serving.grpc.refusals import code_of, metadata_of, text_of
from parity_models.serving.grpc.service import (
    SERVICE,
    Context,
    InferenceService,
    read_message,
)
from parity_models.serving.grpc.unread import UnreadAnswers
from parity_models.serving.request_log import (
    CURRENT,
    REQUEST_ID,
    TRACEPARENT,
    TRACESTATE,
    RequestLog,
)

if TYPE_CHECKING:
    from parity_models.serving.tracing import Tracing

_log = logging.getLogger(__name__)

_QUIET = ("ServerLive", "ServerReady")
"""Methods that are called again and again, and are in no access log."""

_Method = Callable[[AsyncIterator[bytes], Context], Awaitable[Message]]


def handler_of(
    service: InferenceService,
    calls: Calls,
    connections: Connections,
    unread: UnreadAnswers,
    tracing: "Tracing | None" = None,
) -> grpc.GenericRpcHandler:
    """What gRPC calls for each method of the service.

    All take a stream of one message, so that they can refuse it unread. On the wire that is no
    different.
    """

    def sent(answer: _Method) -> _Method:
        async def answered(messages: AsyncIterator[bytes], context: Context) -> Message:
            try:
                connections.admit(context.peer())
                message = await answer(messages, context)
            except RequestError as error:
                service.refused(error)
                raise
            size = message.ByteSize()
            service.sent(size)
            unread.sent(context, size)
            return message

        return answered

    async def infer(messages: AsyncIterator[bytes], context: Context) -> Message:
        with service.counting() as counted, calls.one():
            data = await calls.read(messages)
            service.received(len(data))
            with calls.holding(len(data)) as held:
                asked = service.asked(service.read(data), context, counted)
                del data
                held.shrink_to(asked.request.rows.nbytes)
                return await service.answer(asked, context)

    methods: dict[str, _Method] = {
        method.name: partial(
            _read_and_answered,
            calls,
            service.received,
            GetMessageClass(method.input_type),
            getattr(service, method.name),
        )
        for method in SERVICE.methods
    }
    methods["ModelInfer"] = infer
    return grpc.method_handlers_generic_handler(
        SERVICE.full_name,
        {
            method.name: grpc.stream_unary_rpc_method_handler(
                guarded(logged(method.name, sent(methods[method.name]), tracing)),
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
            for method in SERVICE.methods
        },
    )


async def _read_and_answered(
    calls: Calls,
    received: Callable[[float], None],
    kind: type[Message],
    answer: Callable[[Any, Context], Awaitable[Message]],
    messages: AsyncIterator[bytes],
    context: Context,
) -> Message:
    data = await calls.read(messages)
    received(len(data))
    if len(data) > MAX_BESIDE:
        raise TooLargeError(
            f"the message has {len(data)} bytes; without a tensor it has at most {MAX_BESIDE}"
        )
    return await answer(read_message(kind, data), context)


def logged(name: str, answer: _Method, tracing: "Tracing | None") -> _Method:
    """The method with its request's id, sent back where the client gave one, its line in the access
    log and, for inference, its span."""
    traced = tracing if name == "ModelInfer" else None

    async def answered(messages: AsyncIterator[bytes], context: Context) -> Message:
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        given = metadata.get(REQUEST_ID)
        log = RequestLog("gRPC", name, given, metadata.get(TRACEPARENT), metadata.get(TRACESTATE))
        CURRENT.set(log)
        ended = StatusCode.INTERNAL
        try:
            if given is not None:
                await context.send_initial_metadata(((REQUEST_ID, log.id),))
            with nullcontext() if traced is None else traced.request(log, metadata):
                message = await answer(messages, context)
            ended = StatusCode.OK
            return message
        except RequestError as error:
            ended = code_of(error)
            raise
        except asyncio.CancelledError:
            ended = StatusCode.CANCELLED
            raise
        finally:
            if name not in _QUIET:
                log.ended(ended.name)

    return answered


def guarded(answer: _Method) -> _Method:
    """The method, with its errors as gRPC's.

    gRPC itself would log every request that cannot be read, and send the text of any exception to
    the client.
    """

    async def answered(messages: AsyncIterator[bytes], context: Context) -> Message:
        try:
            return await answer(messages, context)
        except RequestError as error:
            await abort(context, code_of(error), text_of(error), metadata_of(error))
        except Exception as error:
            _log.error("a gRPC request failed", exc_info=error)
            text = "the server failed to handle the request; its log says why"
            await abort(context, StatusCode.INTERNAL, text)

    return answered


async def abort(
    context: Context, code: StatusCode, text: str, metadata: tuple[tuple[str, bytes], ...] = ()
) -> NoReturn:
    """End a call with this status; it is no error if its client has just gone."""
    try:
        await context.abort(code, text, metadata)
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # gRPC would log it
        raise asyncio.CancelledError from error

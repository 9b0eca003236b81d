"""The protocol over gRPC, by the gRPC proxy of Ray Serve.

Serve's proxy calls a method of the ingress deployment for a method of a service that it knows.
Messages pass it as bytes: their classes are in a descriptor pool of their own, where Ray's pickle
would not find them.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode

from parity_models.serving.errors import RequestError, TooLargeError
from parity_models.serving.grpc.refusals import code_of, metadata_of, text_of
from parity_models.serving.grpc.service import (
    SERVICE,
    InferenceService,
    read_message,
)
from parity_models.serving.in_flight import Predictor
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import OneModel
from parity_models.serving.refusals import Refused
from parity_models.serving.request_log import (
    CURRENT,
    REQUEST_ID,
    TRACEPARENT,
    TRACESTATE,
    RequestLog,
)
from parity_models.serving.served_model import ServedModel

if TYPE_CHECKING:
    from parity_models.serving.tracing import Tracing

_log = logging.getLogger(__name__)

_TIME_REMAINING = "parm-time-remaining"
"""The metadata that tells a replica, in seconds, how long the client waits yet."""

_Handler = Any
"""grpc.RpcMethodHandler, which is generic in its stub alone."""


def add_inference(servicer: object, server: Any) -> None:
    """For `grpc_servicer_functions` of Serve's gRPC options: the methods that there are."""
    handlers: dict[str, _Handler] = {
        method.name: grpc.unary_unary_rpc_method_handler(getattr(servicer, method.name))
        for method in SERVICE.methods
    }
    server.add_generic_rpc_handlers((_Limited(handlers),))


class _Limited(grpc.ServiceRpcHandler):
    """The `handlers`, by method, for which Serve puts its own when it is given this; these are told
    the client's time limit as metadata, as Serve passes on nothing else of it."""

    def __init__(self, handlers: Mapping[str, _Handler]) -> None:
        service = self.service_name()
        self._method_handlers = {f"/{service}/{name}": each for name, each in handlers.items()}

    def service_name(self) -> str:
        return SERVICE.full_name

    def service(self, details: grpc.HandlerCallDetails) -> _Handler | None:
        handler = self._method_handlers.get(str(details.method))
        if handler is None:
            return None
        answer: Any = handler.unary_unary

        async def limited(request: bytes, context: Any) -> Any:
            return await answer(request, _TimeTold(context))

        coding = (handler.request_deserializer, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(limited, *coding)


class _TimeTold:
    """A call's context, whose metadata says how many seconds the client waits yet."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def invocation_metadata(self) -> list[tuple[str, Any]]:
        given = self._context.invocation_metadata() or ()
        metadata = [(key, value) for key, value in given if key != _TIME_REMAINING]
        seconds = self._context.time_remaining()
        if seconds is not None:
            metadata.append((_TIME_REMAINING, f"{seconds:.6f}"))
        return metadata

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class RayGrpc:
    """Result what Serve's proxy has received; a message holds up to `max_message` bytes."""

    def __init__(
        self,
        frontend: Predictor,
        model: ServedModel,
        metrics: Metrics,
        max_message: int,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._service = InferenceService(OneModel(frontend, model), metrics)
        self._max_message = max_message
        self._tracing = tracing

    async def answer(self, method: str, request: bytes, context: Any) -> Message:
        """The response of a method of the service; where it is an error, an empty one, with the
        status in Serve's `context`."""
        about = SERVICE.methods_by_name[method]
        code, details = StatusCode.INTERNAL, "the server failed to handle the request; see its log"
        try:
            if len(request) > self._max_message:
                raise TooLargeError(
                    f"the message is larger than the {self._max_message} bytes this server takes "
                    "at once (max_body); send fewer rows at once",
                    why=Refused.MAX_BODY,
                )
            message = (
                self._service.read(request)
                if method == "ModelInfer"
                else read_message(GetMessageClass(about.input_type), request)
            )
            with self._traced(method, context):
                response: Message = await getattr(self._service, method)(message, RayCall(context))
            return response
        except RequestError as error:
            self._service.refused(error)
            code, details = code_of(error), text_of(error)
            trailing = metadata_of(error)
            if trailing:
                context.set_trailing_metadata(list(trailing))
        except Exception as error:
            _log.error("a gRPC request failed", exc_info=error)
        context.set_code(code)
        context.set_details(details)
        return GetMessageClass(about.output_type)()

    @contextmanager
    def _traced(self, method: str, context: Any) -> Iterator[None]:
        """The call is answered inside: with its request's id and, for inference, its span."""
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        log = RequestLog(
            "gRPC",
            method,
            metadata.get(REQUEST_ID),
            metadata.get(TRACEPARENT),
            metadata.get(TRACESTATE),
        )
        CURRENT.set(log)
        tracing = self._tracing if method == "ModelInfer" else None
        with nullcontext() if tracing is None else tracing.request(log, metadata):
            yield


class RayCall:
    """What Serve passes on of a call: metadata both ways, the client's time limit among them."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def time_remaining(self) -> float | None:
        told = (value for key, value in self.invocation_metadata() if key == _TIME_REMAINING)
        return next((float(seconds) for seconds in told), None)

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        metadata: Sequence[tuple[str, str]] = self._context.invocation_metadata()
        return metadata

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str]]) -> None:
        self._context.set_trailing_metadata(list(metadata))

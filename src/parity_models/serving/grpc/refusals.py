"""Errors as gRPC says them: a status code, a text and, for refusals, when to try again."""

from math import ceil

from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from parity_models.serving.errors import OverloadedError, RequestError

_CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    404: StatusCode.NOT_FOUND,
    406: StatusCode.FAILED_PRECONDITION,
    413: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    500: StatusCode.INTERNAL,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}

MAX_TEXT, MAX_WIRE = 1000, 3000
"""Characters of an error that surely go through, and their bytes on the wire: they travel in a
header, with a client's names in them."""

DETAILS = "grpc-status-details-bin"
"""The metadata that has a google.rpc.Status."""


def code_of(error: RequestError) -> StatusCode:
    """What the error is in gRPC: RESOURCE_EXHAUSTED where there is too much to do, else what
    stands for its HTTP status."""
    if isinstance(error, OverloadedError):
        return StatusCode.RESOURCE_EXHAUSTED
    return _CODES.get(error.status, StatusCode.INTERNAL)


def text_of(error: RequestError) -> str:
    """What the client is told, cut to what a header holds."""
    text = str(error)[:MAX_TEXT]
    size = 0
    for at, character in enumerate(text):
        # gRPC writes what is no printable ASCII as %XX, byte by byte.
        is_plain = " " <= character <= "~" and character != "%"
        size += 1 if is_plain else 3 * len(character.encode(errors="replace"))
        if size > MAX_WIRE:
            return text[:at]
    return text


def metadata_of(error: RequestError) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata: a google.rpc.Status with RetryInfo, where it is known when it is worth
    trying again (https://github.com/googleapis/googleapis, google/rpc/error_details.proto)."""
    if error.retry_after is None:
        return ()
    status = Status(code=code_of(error).value[0], message=text_of(error))
    delay = Duration()
    delay.FromMilliseconds(ceil(error.retry_after * 1e3))
    status.details.add().Pack(RetryInfo(retry_delay=delay))
    return ((DETAILS, status.SerializeToString()),)

"""When to try again, as a gRPC server says it: google.rpc.RetryInfo in the status's details.

(google/rpc/status.proto and error_details.proto of googleapis; https://aip.dev/194.)
"""

from collections.abc import Iterator
from typing import Any

from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

STATUS_DETAILS = "grpc-status-details-bin"
"""The trailing metadata that holds a google.rpc.Status."""

_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
_DETAILS = 3
_RETRY_DELAY = 1


def retry_info(status: str | bytes) -> float | None:
    """The seconds that a serialized google.rpc.Status asks for; None where it does not."""
    if isinstance(status, str):  # what a server sends is not always what it should be
        return None
    try:
        for detail in _messages(status, _DETAILS):
            each = any_pb2.Any.FromString(detail)
            if each.type_url == _RETRY_INFO:
                for delay in _messages(each.value, _RETRY_DELAY):
                    length = Duration.FromString(delay)
                    return length.seconds + 1e-9 * length.nanos
    except DecodeError:
        pass
    return None


def _messages(message: bytes, field: int) -> Iterator[bytes]:
    """The messages in a field of a message whose type is not compiled in here."""
    fields: Any = UnknownFieldSet(Empty.FromString(message))
    for each in fields:
        if each.field_number == field and isinstance(each.data, bytes):
            yield each.data

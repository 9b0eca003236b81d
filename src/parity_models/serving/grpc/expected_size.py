"""What a message will be once it is parsed, read off its bytes.

Parsed, a message can be forty times as large as its bytes: two bytes make an empty tensor, one
byte makes an int64. The parser has no bounds for that, and while it works, nobody else is served.
So a message that is not small is walked through first: its fields are counted, without looking at
what is in the tensors. https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from parity_models.serving.errors import InvalidRequestError, TooLargeError
from parity_models.serving.grpc.inference_pb2 import (
    DESCRIPTOR,
    InferTensorContents,
    ModelInferRequest,
)
from parity_models.serving.served_model import ServedModel

SMALL = 16 * 2**10
"""Bytes of a message that is parsed without further ado."""

MAX_BESIDE = 64 * 2**10
"""Bytes that a message may have besides the values of its tensors: names, shapes, parameters."""

MAX_FIELDS = 1000
"""Fields that a message may have in all. A tensor's values are one field, if they are packed."""

_INPUTS = ModelInferRequest.DESCRIPTOR.fields_by_name["inputs"].number
_RAW = ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
_CONTENTS = (
    DESCRIPTOR.message_types_by_name["ModelInferRequest"]
    .nested_types_by_name["InferInputTensor"]
    .fields_by_name["contents"]
    .number
)
_BYTES = {
    field.number: width
    for name, width in [("fp32_contents", 4), ("fp64_contents", 8)]
    for field in (InferTensorContents.DESCRIPTOR.fields_by_name[name],)
}
"""Of a value, where all values of a field have the same; else they end with a byte below 128."""

_VARINT, _FIXED64, _BLOCK, _FIXED32 = 0, 1, 2, 5
"""Types of fields on the wire. The two that are missing begin and end groups, which proto3 has
not."""


def check_size(data: bytes, model: ServedModel) -> None:
    """Raises InvalidRequestError or TooLargeError for a ModelInferRequest that would take much more
    than any request that fits the model."""
    if len(data) > SMALL:
        _Walk(model).through(memoryview(data))


class _Field(NamedTuple):
    number: int
    block: memoryview | None
    """What is in the field, if it is a string, a message or packed values."""
    size: int
    """In bytes, with all that says so."""


class _Walk:
    """A walk through one message, which counts what it comes across."""

    def __init__(self, model: ServedModel) -> None:
        self._most_values = model.max_values
        self._fields = 0
        self._beside = 0
        self._values = 0

    def through(self, message: memoryview) -> None:
        for field in self._fields_of(message):
            if field.block is None or field.number not in (_INPUTS, _RAW):
                self._count_beside(field.size)
            elif field.number == _INPUTS:
                self._tensor(field.block)

    def _tensor(self, message: memoryview) -> None:
        for field in self._fields_of(message):
            if field.block is None or field.number != _CONTENTS:
                self._count_beside(field.size)
            else:
                self._contents(field.block)

    def _contents(self, message: memoryview) -> None:
        for field in self._fields_of(message):
            if field.block is None:
                self._values += 1
            elif field.number in _BYTES:
                self._values += len(field.block) // _BYTES[field.number]
            else:
                self._values += int(np.count_nonzero(np.frombuffer(field.block, np.uint8) < 128))
            if self._values > self._most_values:
                raise TooLargeError(
                    f"the request has more than the {self._most_values} values that this server "
                    "takes at once; send several requests"
                )

    def _count_beside(self, size: int) -> None:
        self._beside += size
        if self._beside > MAX_BESIDE:
            raise TooLargeError(
                f"the message has more than {MAX_BESIDE} bytes besides the values of its tensors; "
                "leave out parameters"
            )

    def _fields_of(self, message: memoryview) -> Iterator[_Field]:
        at = 0
        while at < len(message):
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise TooLargeError(
                    f"the message has more than {MAX_FIELDS} fields; send a tensor's values as "
                    "raw_input_contents, or packed"
                )
            start = at
            tag, at = _varint(message, at)
            kind, block = tag & 7, None
            if kind == _VARINT:
                _, at = _varint(message, at)
            elif kind == _BLOCK:
                length, at = _varint(message, at)
                block = message[at : at + length]
                at += length
            elif kind in (_FIXED32, _FIXED64):
                at += 4 if kind == _FIXED32 else 8
            else:
                raise _unreadable()
            if at > len(message):
                raise _unreadable()
            yield _Field(tag >> 3, block, at - start)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _unreadable()
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _unreadable()


def _unreadable() -> InvalidRequestError:
    return InvalidRequestError(f"the request is no {ModelInferRequest.DESCRIPTOR.full_name}")

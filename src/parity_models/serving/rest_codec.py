"""The Open Inference Protocol's REST bodies: bytes to tensors and back.

A request is a JSON object, whose inputs hold their data as (flat or nested, row-major) JSON
arrays or, with the binary tensor data extension, leave it to the bytes after the object: then
the header Inference-Header-Content-Length says where the object ends. Responses likewise.
https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md, and
Triton's docs/protocol/extension_binary_data.md.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Raw, Struct
from numpy.typing import NDArray

from parity_models.models.tensor import DATATYPES, TensorSpec
from parity_models.scheduling import Source
from parity_models.serving.errors import (
    InvalidRequestError,
    NotAcceptableError,
    TooLargeError,
)
from parity_models.serving.served_model import VERSION, InferRequest, ServedModel
from parity_models.serving.tenancy import exact_from, tenant_from
from parity_models.serving.tensor_bytes import little_endian, rows_from_bytes, size_in_bytes

HEADER_LENGTH = "inference-header-content-length"


JSON_OBJECT = 64 * 2**10
"""Bytes that a request's JSON object may have besides the values of a tensor."""

JSON_VALUE = 64
"""Bytes that a value may take in JSON, with the commas, brackets and indentation around it."""


def decode_request(
    body: bytes | bytearray, header_length: str | None, model: ServedModel
) -> InferRequest:
    """Read a request's body; `header_length` is its Inference-Header-Content-Length, if any.

    Binary data is not copied, `rows` is a view of `body`, unless that would keep a body alive that
    is much larger than its tensor. Raises a RequestError (mostly InvalidRequestError) that says
    what is wrong and what is expected.
    """
    end = len(body) if header_length is None else _header_end(header_length, len(body))
    if end > JSON_OBJECT:
        _check_size(body, end, model)
    # A view, since slicing bytes would copy what may be a body of JSON data.
    message = _decode(_REQUEST, memoryview(body)[:end], "the request")
    model.check_inputs([tensor.name for tensor in message.inputs])
    tensor = message.inputs[0]
    rows = model.check_input(tensor.datatype, tensor.shape)
    given = tensor.parameters or _InputParameters()
    model.check_storage(shared_memory=given.shared_memory_region is not None)
    if given.binary_data_size is None:
        if end != len(body):
            raise InvalidRequestError(
                f"{len(body) - end} bytes follow the JSON object, but no input has a "
                "binary_data_size"
            )
        what = f"the data of input {tensor.name!r}"
        if not memoryview(tensor.data):
            raise InvalidRequestError(
                f"input {tensor.name!r} has neither data nor a binary_data_size; give one of them"
            )
        _check_data_size(len(memoryview(tensor.data)), model.input, rows, what)
        array = tensor_from_json(tensor.data, model.input, rows, what)
    else:
        if memoryview(tensor.data):
            raise InvalidRequestError(
                f"input {tensor.name!r} has both data and a binary_data_size; give one of them"
            )
        if header_length is None:
            raise InvalidRequestError(
                f"input {tensor.name!r} has a binary_data_size, which needs the header "
                "Inference-Header-Content-Length"
            )
        array = _from_binary(tensor, given.binary_data_size, model.input, rows, body, end)
    parameters = message.parameters or _RequestParameters()
    return InferRequest(
        message.id,
        array,
        parameters.timeout / 1e6 if parameters.timeout else None,
        _wants_binary(message, model),
        exact_from(parameters.redundancy),
        tenant_from(parameters.tenant),
    )


class RequestReader:
    """Reads requests for `model`, as `decode_request` does.

    Clients repeat the JSON object before their binary data, byte by byte; what it asks for depends
    on nothing else, so objects that were read are remembered: the last few, if they are short.
    """

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._known: dict[bytes, tuple[InferRequest, int]] = {}

    def read(self, body: bytes | bytearray, header_length: str | None) -> InferRequest:
        """Raises a RequestError that says what is wrong and what is expected."""
        if header_length is None:
            return decode_request(body, None, self._model)
        end = _header_end(header_length, len(body))
        if end > _REMEMBERED_SIZE or end == len(body):
            return decode_request(body, header_length, self._model)
        head = bytes(body[:end])
        asked, size = self._known.get(head, (None, 0))
        if asked is not None and len(body) - end == size:
            rows = _rows_after(self._model.input, len(asked.rows), body, end)
            return InferRequest(
                asked.id, rows, asked.timeout, asked.binary, asked.exact, asked.tenant
            )
        asked = decode_request(body, header_length, self._model)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        nothing = np.broadcast_to(np.zeros((), asked.rows.dtype), asked.rows.shape)
        self._known[head] = (replace(asked, rows=nothing), asked.rows.nbytes)
        return asked


def encode_response(
    model: ServedModel, request: InferRequest, outputs: NDArray[Any], sources: Sequence[Source]
) -> tuple[bytes, int | None]:
    """The body of the answer, and the length of its JSON object if binary data follows it.

    `outputs` has shape (n, *output shape), `sources` one source per row. Raises
    NotAcceptableError for values that JSON cannot say.
    """
    spec = model.output
    output = _Output(name=spec.name, datatype=spec.datatype, shape=outputs.shape)
    if request.binary:
        output.parameters = {"binary_data_size": outputs.nbytes}
    else:
        output.data = _to_json(outputs, spec)
    header = msgspec.json.encode(
        _Response(
            model_name=model.name,
            model_version=VERSION,
            id=request.id,
            parameters={"source": ",".join(sources)},
            outputs=(output,),
        )
    )
    if not request.binary:
        return header, None
    return b"".join((header, little_endian(outputs).data)), len(header)


def tensor_from_json(data: Raw, spec: TensorSpec, rows: int, what: str) -> NDArray[Any]:
    """The tensor (rows, *shape of spec) in JSON `data`, flat or nested, not to be written to.

    Raises InvalidRequestError, which calls it `what`.
    """
    shape = (rows, *spec.shape)
    nested = _NESTED.match(memoryview(data)) is not None
    decoder = _data_decoder(spec.datatype, len(shape) if nested else 1)
    values = _decode(decoder, data, what)
    try:
        array = np.array(values, spec.dtype)
    except OverflowError as error:
        raise InvalidRequestError(f"{what} has numbers beyond {spec.datatype}") from error
    except ValueError as error:
        raise InvalidRequestError(
            f"{what} is ragged: the lists of one level must have one length; its shape is "
            f"{list(shape)}"
        ) from error
    if array.shape != (shape if nested else (prod(shape),)):
        raise InvalidRequestError(
            f"{what} has shape {list(array.shape)}; it must be flat, with {prod(shape)} "
            f"elements, or nested as {list(shape)}"
        )
    array.flags.writeable = False
    return array.reshape(shape)


class _InputParameters(Struct):
    binary_data_size: int | None = None
    shared_memory_region: str | None = None


class _Input(Struct):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: _InputParameters | None = None
    data: Raw = Raw()


class _OutputParameters(Struct):
    binary_data: bool | None = None
    shared_memory_region: str | None = None
    classification: int | None = None


class _RequestedOutput(Struct):
    name: str
    parameters: _OutputParameters | None = None


class _RequestParameters(Struct):
    timeout: Annotated[int, Meta(ge=0)] | None = None
    binary_data_output: bool | None = None
    redundancy: Any = None
    tenant: Any = None


class _Request(Struct):
    inputs: tuple[_Input, ...]
    id: str | None = None
    parameters: _RequestParameters | None = None
    outputs: tuple[_RequestedOutput, ...] | None = None


class _Output(Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int] | None = None
    data: list[Any] | None = None


class _Response(Struct, omit_defaults=True):
    model_name: str
    model_version: str
    parameters: dict[str, str]
    outputs: tuple[_Output, ...]
    id: str | None = None


_REQUEST = msgspec.json.Decoder(_Request)
_REMEMBERED, _REMEMBERED_SIZE = 64, 1024
"""JSON objects before binary data that are remembered, and bytes that each may have."""

_SMALL = 4096
"""Bytes of JSON beside a tensor that may well be kept alive with it."""

_SHAPE = re.compile(rb'"shape"\s*:\s*\[\s*(\d{1,18})\s*[,\]]')
_SHAPE_WITHIN = 4096
"""Bytes at a message's beginning and end that are searched for the shape, before or after the
data."""
_NESTED = re.compile(rb"\[\s*\[")


def _decode(decoder: msgspec.json.Decoder[Any], text: Raw | memoryview, what: str) -> Any:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{what} cannot be read: {error}") from error
    except RecursionError as error:
        raise InvalidRequestError(f"{what} cannot be read: it is nested too deeply") from error


def _header_end(header_length: str, size: int) -> int:
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 20):
        raise InvalidRequestError(
            f"Inference-Header-Content-Length is {header_length[:40]!r}, which is not a length "
            "in bytes"
        )
    if int(header_length) > size:
        raise InvalidRequestError(
            f"Inference-Header-Content-Length is {header_length}, but the body has {size} bytes"
        )
    return int(header_length)


def _check_size(body: bytes | bytearray, end: int, model: ServedModel) -> None:
    """Raises TooLargeError for a JSON object that is larger than its tensor can be, as far as that
    can be told without reading it: reading takes a time in which nobody is served."""
    if end < len(body):
        if end > JSON_OBJECT:
            raise TooLargeError(
                f"the JSON object before the binary data has {end} bytes; it may have {JSON_OBJECT}"
            )
        return
    within = body[:_SHAPE_WITHIN] + body[-_SHAPE_WITHIN:]
    # In JSON a quote inside a string is escaped, so this is a key. If there are several, any of
    # them may be the input's.
    shapes = [int(match[1]) for match in _SHAPE.finditer(within)]
    rows = min(max(shapes, default=model.max_rows), model.max_rows)
    _check_data_size(end - JSON_OBJECT, model.input, rows, "the request")


def _check_data_size(size: int, spec: TensorSpec, rows: int, what: str) -> None:
    most = JSON_VALUE * rows * prod(spec.shape) + JSON_OBJECT
    if size > most:
        raise TooLargeError(
            f"{what} has {size} bytes of JSON; {rows} rows of shape {list(spec.shape)} take up to "
            f"{most}"
        )


def _wants_binary(message: _Request, model: ServedModel) -> bool:
    parameters = message.parameters or _RequestParameters()
    outputs = message.outputs or ()
    model.check_outputs([output.name for output in outputs])
    for output in outputs:
        wanted = output.parameters or _OutputParameters()
        model.check_storage(
            shared_memory=wanted.shared_memory_region is not None,
            classification=bool(wanted.classification),
        )
        if wanted.binary_data is not None:
            return wanted.binary_data
    return bool(parameters.binary_data_output)


def _from_binary(
    tensor: _Input,
    size: int,
    spec: TensorSpec,
    rows: int,
    body: bytes | bytearray,
    start: int,
) -> NDArray[Any]:
    expected = size_in_bytes(spec, rows)
    if size != expected:
        raise InvalidRequestError(
            f"input {tensor.name!r} has a binary_data_size of {size}; {spec.datatype} of shape "
            f"{[rows, *spec.shape]} takes {expected} bytes"
        )
    if len(body) - start != expected:
        raise InvalidRequestError(
            f"{len(body) - start} bytes follow the JSON object; input {tensor.name!r} takes "
            f"{expected}"
        )
    return _rows_after(spec, rows, body, start)


def _rows_after(spec: TensorSpec, rows: int, body: bytes | bytearray, start: int) -> NDArray[Any]:
    """The tensor that is the rest of `body`, read-only."""
    data: bytes | memoryview = memoryview(body).toreadonly()[start:]
    if start > max(len(data), _SMALL):
        data = bytes(data)  # a view would keep all of the body alive for these few bytes
    return rows_from_bytes(spec, rows, data)


@cache
def _data_decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    """Reads lists, `depth` levels deep, of numbers that `datatype` can hold."""
    dtype: np.dtype[Any] = DATATYPES[datatype]
    element: Any
    if dtype.kind == "b":
        element = bool
    elif datatype == "UINT64":  # msgspec has no bounds beyond int64; NumPy checks the upper one
        element = Annotated[int, Meta(ge=0)]
    elif dtype.kind in "iu":
        whole = np.iinfo(dtype)
        element = Annotated[int, Meta(ge=int(whole.min), le=int(whole.max))]
    elif datatype == "FP64":
        element = float
    else:
        real = np.finfo(dtype)
        element = Annotated[float, Meta(ge=float(real.min), le=float(real.max))]
    for _ in range(depth):
        element = list[element]
    return msgspec.json.Decoder(element)


def _to_json(outputs: NDArray[Any], spec: TensorSpec) -> list[Any]:
    if spec.dtype.kind == "f" and not np.isfinite(outputs).all():
        raise NotAcceptableError(
            f"output {spec.name!r} has values that are not finite, which JSON cannot say; ask "
            "for binary data (binary_data_output)"
        )
    values: list[Any] = outputs.ravel().tolist()
    return values

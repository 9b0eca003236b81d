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
from itertools import zip_longest
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.models.named_inputs import cut, padded
from parity_models.models.signature import Tensor
from parity_models.models.tensor import TensorSpec
from parity_models.scheduling import Source
from parity_models.serving.errors import InvalidRequestError, TooLargeError
from parity_models.serving.rest.json_tensors import (
    JSON_OBJECT,
    check_json_size,
    json_end,
    json_from_tensor,
    read_json,
    short_value,
    tensor_from_json,
)
from parity_models.serving.rest.protocol import (
    OutputParameters,
    RequestedOutput,
    RequestMessage,
    RequestParameters,
    ResponseMessage,
    TensorMessage,
    TensorParameters,
)
from parity_models.serving.served_model import (
    AskedOutput,
    GivenTensor,
    InferRequest,
    ServedModel,
    WantedOutput,
)
from parity_models.serving.tenancy import exact_from, tenant_from
from parity_models.serving.tensor_bytes import little_endian, rows_from_bytes, size_in_bytes


def decode_request(
    body: bytes | bytearray, header_length: str | None, model: ServedModel
) -> InferRequest:
    """Read a request's body; `header_length` is its Inference-Header-Content-Length, if any.

    Binary data is not copied, `rows` is a view of `body`, unless that would keep a body alive that
    is much larger than its tensor. Raises a RequestError (mostly InvalidRequestError) that says
    what is wrong and what is expected.
    """
    end = len(body) if header_length is None else json_end(header_length, len(body))
    if end > JSON_OBJECT:
        _check_size(body, end, model)
    # A view, since slicing bytes would copy what may be a body of JSON data.
    message = read_json(_REQUEST, memoryview(body)[:end], "the request")
    wanted = message.outputs or ()
    fitting = model.check_request(list(map(_given, message.inputs)), list(map(_wanted, wanted)))
    kind = model.signature.kind(fitting.sizes)
    specs = {spec.name: spec for spec in kind.input.tensors}
    sizes = [
        _binary_size(tensor, specs[tensor.name], fitting.rows, header_length)
        for tensor in message.inputs
    ]
    _check_rest(message, sizes, len(body) - end)
    tensors = {}
    for tensor, size in zip(message.inputs, sizes, strict=True):
        spec = specs[tensor.name]
        if size is None:
            what = f"the data of input {tensor.name!r}"
            check_json_size(tensor.data, spec, fitting.rows, what)
            tensors[tensor.name] = tensor_from_json(tensor.data, spec, fitting.rows, what)
        else:
            tensors[tensor.name] = _rows_at(spec, fitting.rows, body, end, size)
            end += size
    parameters = message.parameters or RequestParameters()
    return InferRequest(
        message.id,
        padded(tensors, model.signature, fitting.sizes),
        parameters.timeout / 1e6 if parameters.timeout else None,
        _asked(message, fitting.outputs),
        exact_from(short_value(parameters.redundancy, "redundancy"))
        or model.is_exact(fitting.outputs),
        tenant_from(short_value(parameters.tenant, "tenant")),
        fitting.sizes,
    )


class RequestReader:
    """Reads requests for `model`, as `decode_request` does.

    Clients repeat the JSON object before their binary data, byte by byte; what it asks for depends
    on nothing else, so objects that were read are remembered: the last few, if they are short.
    """

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        plain = model.signature.plain
        self._plain = None if plain is None or plain.input.is_record else plain.input.tensors[0]
        self._known: dict[bytes, tuple[InferRequest, int]] = {}

    def read(self, body: bytes | bytearray, header_length: str | None) -> InferRequest:
        """Raises a RequestError that says what is wrong and what is expected."""
        if header_length is None:
            return decode_request(body, None, self._model)
        end = json_end(header_length, len(body))
        if self._plain is None or end > _REMEMBERED_SIZE or end == len(body):
            return decode_request(body, header_length, self._model)
        head = bytes(body[:end])
        asked, size = self._known.get(head, (None, 0))
        if asked is not None and len(body) - end == size:
            rows = _rows_at(self._plain, len(asked.rows), body, end, size)
            return InferRequest(
                asked.id, rows, asked.timeout, asked.outputs, asked.exact, asked.tenant
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

    `outputs` are predictions (n, ...) of one kind, `sources` one source per row. Raises
    NotAcceptableError for values that JSON cannot say.
    """
    tensors = cut(outputs, model.signature, request.sizes)
    messages, binary = [], []
    for spec, is_binary in request.outputs:
        values = tensors[spec.name]
        message = TensorMessage(name=spec.name, datatype=spec.datatype, shape=values.shape)
        if is_binary:
            message.parameters = TensorParameters(values.nbytes)
            binary.append(little_endian(values).data)
        else:
            message.data = json_from_tensor(values, spec.name)
        messages.append(message)
    header = msgspec.json.encode(
        ResponseMessage(
            model_name=model.name,
            model_version=model.version,
            id=request.id,
            parameters=model.parameters(sources),
            outputs=tuple(messages),
        )
    )
    if not binary:
        return header, None
    return b"".join((header, *binary)), len(header)


_REQUEST = msgspec.json.Decoder(RequestMessage)
_REMEMBERED, _REMEMBERED_SIZE = 64, 1024
"""JSON objects before binary data that are remembered, and bytes that each may have."""

_SMALL = 4096
"""Bytes of JSON beside a tensor that may well be kept alive with it."""

_SHAPE = re.compile(rb'"shape"\s*:\s*\[\s*(\d{1,18})\s*[,\]]')
_SHAPE_WITHIN = 4096
"""Bytes at a message's beginning and end that are searched for the shape, before or after the
data."""


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
    whole = memoryview(body)
    check_json_size(whole, model.signature.largest.input, rows, "the request", 2 * JSON_OBJECT)


def _given(tensor: TensorMessage) -> GivenTensor:
    parameters = tensor.parameters or TensorParameters()
    shared = parameters.shared_memory_region is not None
    return GivenTensor(tensor.name, tensor.datatype, tensor.shape, shared)


def _wanted(output: RequestedOutput) -> WantedOutput:
    parameters = output.parameters or OutputParameters()
    shared = parameters.shared_memory_region is not None
    return WantedOutput(output.name, shared, bool(parameters.classification))


def _asked(message: RequestMessage, outputs: Sequence[Tensor]) -> Sequence[AskedOutput]:
    """The outputs of the answer, each as the request wants it written."""
    parameters = message.parameters or RequestParameters()
    usual = bool(parameters.binary_data_output)
    asked = []
    for tensor, wanted in zip_longest(outputs, message.outputs or ()):
        said = ((wanted and wanted.parameters) or OutputParameters()).binary_data
        asked.append(AskedOutput(tensor, usual if said is None else said))
    return asked


def _binary_size(
    tensor: TensorMessage, spec: TensorSpec, rows: int, header_length: str | None
) -> int | None:
    """The bytes of an input's binary data; None if it has JSON data. Raises InvalidRequestError."""
    size = (tensor.parameters or TensorParameters()).binary_data_size
    has_data = bool(memoryview(tensor.data))
    if size is None:
        if not has_data:
            raise InvalidRequestError(
                f"input {tensor.name!r} has neither data nor a binary_data_size; give one of them"
            )
        return None
    if has_data:
        raise InvalidRequestError(
            f"input {tensor.name!r} has both data and a binary_data_size; give one of them"
        )
    if header_length is None:
        raise InvalidRequestError(
            f"input {tensor.name!r} has a binary_data_size, which needs the header "
            "Inference-Header-Content-Length"
        )
    expected = size_in_bytes(spec, rows)
    if size != expected:
        raise InvalidRequestError(
            f"input {tensor.name!r} has a binary_data_size of {size}; {spec.datatype} of shape "
            f"{[rows, *spec.shape]} takes {expected} bytes"
        )
    return size


def _check_rest(message: RequestMessage, sizes: Sequence[int | None], rest: int) -> None:
    """Raises InvalidRequestError unless `rest` bytes are what the binary inputs take."""
    if all(size is None for size in sizes):
        if rest:
            raise InvalidRequestError(
                f"{rest} bytes follow the JSON object, but no input has a binary_data_size"
            )
        return
    expected = sum(size or 0 for size in sizes)
    if rest != expected:
        binary = [t.name for t, size in zip(message.inputs, sizes, strict=True) if size is not None]
        said = f"input {binary[0]!r} takes" if len(binary) == 1 else f"inputs {binary} take"
        raise InvalidRequestError(f"{rest} bytes follow the JSON object; {said} {expected}")


def _rows_at(
    spec: TensorSpec, rows: int, body: bytes | bytearray, start: int, size: int
) -> NDArray[Any]:
    """The tensor that is so many bytes of `body`, read-only."""
    data: bytes | memoryview = memoryview(body).toreadonly()[start : start + size]
    if len(body) - size > max(size, _SMALL):
        data = bytes(data)  # a view would keep all of the body alive for these few bytes
    return rows_from_bytes(spec, rows, data)

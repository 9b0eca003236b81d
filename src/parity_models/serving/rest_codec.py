"""Requests and answers of the protocol over REST, as a server reads and writes them.

See `protocol.py` for the messages.
"""

import re
from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw, Struct
from numpy.typing import NDArray

from parity_models.roles import Source
from parity_models.serving.errors import InvalidRequestError, Refused, RefusedError, TooLargeError
from parity_models.serving.inference import InferRequest, LazyTensor, request_of
from parity_models.serving.models import Result, ServedModel
from parity_models.serving.protocol import (
    SLICE,
    SLICE_VALUES,
    RequestMessage,
    ResponseMessage,
    TensorMessage,
    TensorParameters,
    Yield,
    array_from_bytes,
    array_from_json,
    flat_numbers,
    no_wait,
    object_end,
    read_json,
    read_numbers,
    size_in_bytes,
)
from parity_models.tensors.signature import DATATYPES, cut, pack
from parity_models.tensors.texts import BYTES

JSON_OBJECT = 64 * 2**10
"""Bytes that a request's JSON object may have besides the values of its tensors."""

HEAD = 1024
"""First bytes of a body, which are searched for the shape of its tensors."""

SMALL, MAX_KNOWN = 4096, 100
"""Bytes of a message that may be kept in memory along with a tensor, and the number of messages
that are kept without their tensors, so that each is read once."""

_SHAPE = re.compile(rb'"shape"\s*:\s*\[\s*(\d{1,9})\b')
_REQUEST = msgspec.json.Decoder(RequestMessage)

_Input = tuple[str, str, tuple[int, ...], int, int]
"""An input of binary data: its name, datatype and shape, and the first and last byte in a body."""


class Known(Struct, eq=False):
    """A JSON object that was read before, with binary data after it: a request without an id, for
    binary outputs. Clients repeat it, so it is read once.

    `head` is the JSON object of an answer of the model alone, once there was one. `is_plain`: rows
    and answers are single tensors, unchanged from the messages, whose bytes may have any value.
    """

    request: InferRequest
    inputs: list[_Input]
    is_plain: bool
    head: bytes = b""


def read_request(
    body: bytes | bytearray, header_length: str | None, model: ServedModel
) -> InferRequest:
    """Read a request's body, except for its tensors' data; `header_length` is its
    Inference-Header-Content-Length, if any.

    Binary data is copied only if a view would keep a much larger body alive. Raises a RequestError
    (mostly InvalidRequestError) that states the fault and the expectation.
    """
    end = None if header_length is None else object_end(header_length, len(body))
    if end is None or end > SMALL:
        return _read_request(body, end, model)[0]
    head = (bytes(body[:end]), len(body))
    known: Known | None = model.known.get(head)
    if known is not None:
        view = memoryview(body).toreadonly()
        if known.is_plain:
            _, datatype, shape, begin, _ = known.inputs[0]
            rows = np.frombuffer(view, DATATYPES[datatype], offset=begin).reshape(shape)
            return msgspec.structs.replace(known.request, rows=rows)
        tensors = {each[0]: _binary(view, *each) for each in known.inputs}
        return msgspec.structs.replace(known.request, tensors=tensors)
    request, inputs = _read_request(body, end, model)
    is_binary = len(inputs) == len(request.tensors) and all(each.binary for each in request.outputs)
    if is_binary and request.id is None:
        if len(model.known) >= MAX_KNOWN:
            model.known.clear()
        signature = model.signature
        is_plain = (
            signature.plain is not None
            and len(inputs) == len(signature.outputs) == 1
            and signature.inputs[0].datatype not in ("BOOL", BYTES)
            and not signature.outputs[0].is_text
        )
        request.answer_size = request.measure_answer()
        known = Known(msgspec.structs.replace(request, tensors={}), inputs, is_plain)
        known.request.known = request.known = model.known[head] = known
    return request


def _read_request(
    body: bytes | bytearray, end: int | None, model: ServedModel
) -> tuple[InferRequest, list[_Input]]:
    """Return the request in a body whose JSON object has this end, and its inputs of binary
    data."""
    if end is None and len(body) > JSON_OBJECT:
        # Each value takes many times its bytes in memory.
        most, values = model.max_values + JSON_OBJECT, body.count(b",") + 1
        if values > most:
            raise TooLargeError(
                f"the request has {values} values in its JSON; {model.max_rows} rows of "
                f"{model.signature.largest.input} take up to {most}"
            )
    elif end is not None and JSON_OBJECT < end < len(body):
        raise TooLargeError(
            f"the JSON object before the binary data has {end} bytes; it may have {JSON_OBJECT}"
        )
    # A view, since slicing bytes would copy a body of JSON data.
    message = read_json(_REQUEST, memoryview(body)[:end], "the request")
    text = body if end is None else body[: min(end, JSON_OBJECT)]
    if len(text) > 2 * JSON_OBJECT:  # its middle is mostly numbers
        text = text[:JSON_OBJECT] + text[-JSON_OBJECT:]
    for key, most in ((b'"inputs"', 1), (b'"shape"', len(message.inputs))):
        if text.count(key) > most:
            _check_keys(text, key, most)
    outputs = message.outputs or ()
    fitting = model.check_request(
        [(each.name, each.datatype, each.shape) for each in message.inputs],
        [each.name for each in outputs],
    )
    model.check_parameters((each.parameters for each in message.inputs), outputs)
    # The number of rows is known here, and no tensor has been decoded yet.
    rows, specs = fitting.rows, model.signature.kind(fitting.sizes).input.tensors
    spec_of = {each.name: each for each in specs}
    tensors: dict[str, NDArray[Any] | LazyTensor] = {}
    at, binary = len(body) if end is None else end, list[_Input]()
    view = memoryview(body).toreadonly()
    for tensor in message.inputs:
        spec = spec_of[tensor.name]
        size = None if tensor.parameters is None else tensor.parameters.binary_data_size
        shape, due = (rows, *spec.shape), size_in_bytes(spec, rows)
        fits = size is None or (size >= 0 if due is None else size == due)
        if (size is None) != bool(tensor.data) or not fits or (size and end is None):
            of = "" if due is None else f" of {due} bytes"
            raise InvalidRequestError(
                f"input {tensor.name!r} needs either data, or a binary_data_size{of} "
                f"({spec.datatype} of shape {list(shape)}) and the header "
                "Inference-Header-Content-Length"
            )
        if size is None:
            what = f"the data of input {spec.name!r}"
            tensors[spec.name] = partial(read_array, tensor.data, spec.datatype, shape, what)
            continue
        binary.append((spec.name, spec.datatype, shape, at, at + size))
        if at + size <= len(body):  # else it is reported below
            tensors[spec.name] = _binary(view, *binary[-1])
        at += size
    if at != len(body):
        start = end or 0
        raise InvalidRequestError(
            f"{len(body) - start} bytes follow the JSON object; inputs with a binary_data_size "
            f"take {at - start}"
        )
    request = request_of(
        model, fitting, tensors, id=message.id, parameters=message.parameters, outputs=outputs
    )
    return request, binary


def _binary(
    body: memoryview, name: str, datatype: str, shape: tuple[int, ...], begin: int, end: int
) -> NDArray[Any]:
    """Return the tensor in these bytes of a body."""
    data: bytes | memoryview = body[begin:end]
    if len(body) - len(data) > max(len(data), SMALL):
        data = bytes(data)  # a view would keep all of the body alive for these few bytes
    return array_from_bytes(data, datatype, shape, name)


def _check_keys(text: bytes | bytearray, key: bytes, most: int) -> None:
    """Raise InvalidRequestError if an object has a key twice: other readers take the first, and may
    have checked that one. A string that only looks like the key does not count."""
    if len(re.findall(key + rb"\s*:", text)) > most:
        raise InvalidRequestError(
            f"the request has the key {key.decode()} more than once in an object; give it once"
        )


def rows_in_head(body: bytes | bytearray) -> int:
    """Return the number of rows that the first bytes of a body seem to announce, to refuse it
    unread; 0: unknown."""
    found = _SHAPE.search(memoryview(body)[:HEAD])
    return 0 if found is None else int(found[1])


async def read_array(
    data: Raw, datatype: str, shape: tuple[int, ...], what: str, wait: Yield = no_wait
) -> NDArray[Any]:
    """Do the same as array_from_json, but read large arrays in slices, and `wait` before each."""
    if len(memoryview(data)) <= SLICE or datatype == BYTES:
        return array_from_json(data, datatype, shape, what)
    await wait()
    text = flat_numbers(data, shape, what)
    array = np.empty(prod(shape), DATATYPES[datatype])
    begin = at = 0
    while begin < len(text):
        await wait()
        end = text.find(b",", begin + SLICE)
        end = len(text) if end < 0 else end
        values = read_numbers(text[begin:end], datatype, what)
        array[at : at + len(values)] = values
        begin, at = end + 1, at + len(values)
    array.flags.writeable = False
    return array.reshape(shape)


async def write_response(
    request: InferRequest, result: Result, wait: Yield = no_wait
) -> tuple[bytes, Sequence[bytes | memoryview]]:
    """Return the JSON object of the answer, and the binary data that follow it.

    Raises RefusedError for values that JSON cannot express.
    """
    outputs, sources = result.outputs, result.sources
    is_exact = sources.count(Source.MODEL) == len(sources)
    # Texts differ in size, so the object of an answer with some is not kept.
    known: Known | None = None if outputs.dtype.hasobject or not is_exact else request.known
    if known is not None and known.head and known.is_plain and outputs.nbytes <= SLICE:
        return known.head, (outputs.tobytes(),)
    model, messages = request.model, []
    binary: list[bytes | memoryview] = []
    tensors = cut(outputs, model.signature, request.sizes)
    sizes: dict[str, int] = {}
    for spec, is_binary in request.outputs:
        if is_binary:
            pieces = await _binary_of(tensors[spec.name], wait)
            sizes[spec.name] = sum(len(piece) for piece in pieces)
            binary += pieces
    if known is not None and known.head:
        return known.head, binary
    for spec, is_binary in request.outputs:
        values = tensors[spec.name]
        message = TensorMessage(name=spec.name, datatype=spec.datatype, shape=values.shape)
        if is_binary:
            message.parameters = TensorParameters(sizes[spec.name])
        else:
            message.data = await _json(values, spec.name, wait)
        messages.append(message)
    header = msgspec.json.encode(
        ResponseMessage(
            model_name=model.name,
            model_version=model.version,
            id=request.id,
            parameters=result.parameters,
            outputs=tuple(messages),
        )
    )
    if known is not None:
        known.head = header
    return header, binary


async def _binary_of(values: NDArray[Any], wait: Yield) -> list[memoryview]:
    """Return the values as binary data: large ones in pieces, after a `wait` for each."""
    if values.dtype.hasobject:
        return [memoryview(pack(values))]
    if values.nbytes <= SLICE or values.flags.c_contiguous:
        return [_bytes_of(values)]
    step, pieces = 1 + len(values) * SLICE // (1 + values.nbytes), []
    for start in range(0, len(values), step):
        await wait()
        pieces.append(_bytes_of(values[start : start + step]))
    return pieces


def _bytes_of(values: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


async def _json(values: NDArray[Any], name: str, wait: Yield) -> Raw:
    """Return the values of an output as JSON; many in slices, with a `wait` between them.

    Raises RefusedError for values that JSON cannot express.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise RefusedError(
            f"output {name!r} has values that are not finite, which JSON cannot express; ask for "
            "binary data (binary_data_output)",
            406,
            Refused.NOT_ACCEPTABLE,
        )
    flat, pieces = values.ravel(), []
    for start in range(0, max(1, len(flat)), SLICE_VALUES):
        if start:
            await wait()
        part = flat[start : start + SLICE_VALUES].tolist()
        pieces.append(msgspec.json.encode(part)[1:-1])
    return Raw(b"[%b]" % b",".join(pieces))

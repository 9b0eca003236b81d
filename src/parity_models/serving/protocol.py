"""The messages of the Open Inference Protocol over REST, and what clients do with them.

A request is a JSON object whose inputs hold their data as (flat or nested, row-major) JSON arrays
or, with the binary tensor data extension, leave it to the bytes after the object: then the header
Inference-Header-Content-Length says where the object ends. Responses likewise. The server's side is
in `rest_codec.py`.
https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md, and
Triton's docs/protocol/extension_binary_data.md.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Raw, Struct
from numpy.typing import NDArray

from parity_models.roles import Source
from parity_models.serving.errors import InvalidRequestError
from parity_models.tensors.signature import DATATYPES, MAX_TENSORS, TensorSpec, pack
from parity_models.tensors.texts import BYTES, as_texts, read_texts

HEADER_LENGTH = "inference-header-content-length"
"""The header with the length of a JSON object that binary data follows."""

SOFTWARE = "parity-models"
"""The name that servers of this software give themselves."""

BINARY = "binary_tensor_data"
"""The name of the extension for tensors as binary data."""

NO_DATA = Raw()
"""The data of a tensor that has none in the JSON."""

SLICE, SLICE_VALUES = 2**17, 2**13
"""Bytes of JSON that are read at once, and values that are written at once."""

ANSWER_VALUE, _ANSWER_HEAD = 32, 2**16
"""Maximum bytes of a number in an answer's JSON, and of everything else in it."""

Yield = Callable[[], Awaitable[None]]
"""Yields the event loop, and waits until a large request may use it for a moment again."""


async def no_wait() -> None:
    """Return at once: a Yield that yields nothing."""


_T = TypeVar("_T")

# Messages, whose lists are bounded

Shape = Annotated[tuple[int, ...], Meta(max_length=64)]
_Some = Meta(max_length=MAX_TENSORS)


class ServerMetadata(Struct, frozen=True, omit_defaults=True):
    """A server as it describes itself; servers of this software also name their bundle, and the
    instances that were found to answer wrongly, the latest last."""

    name: str | None = None
    version: str | None = None
    extensions: tuple[str, ...] = ()
    bundle_digest: str | None = None
    model_sha256: str | None = None
    quarantined_instances: tuple[str, ...] | None = None


class TensorMetadata(Struct, frozen=True):
    """A tensor of a model; the first axis of `shape` is -1, for any number of rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class GateMetadata(Struct, frozen=True, omit_defaults=True):
    """A stand-in's calibrated agreement with the model, and the share of queries it may answer.

    If it may answer only some `classes`, they have their own levels of agreement, by name.
    """

    agreement: float
    coverage: float
    classes: Mapping[str, float] = {}


class ModelMetadata(Struct, frozen=True, omit_defaults=True):
    """A model as its server describes it; KServe's own servers name no versions.

    Servers of this software add `bundle_digest` and `model_sha256` (the digest of the bundle's
    manifest, the hash of the model's file), the `gates` of stand-ins by the source of answers, the
    share of all answers that may `differ` from the model's, if the policy has such a budget, the
    `exact_outputs`, which no stand-in gives, and the instances that were found to answer wrongly,
    the latest last.
    """

    name: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    versions: tuple[str, ...] | None = None
    platform: str | None = None
    bundle_digest: str | None = None
    model_sha256: str | None = None
    gates: dict[str, GateMetadata] = {}
    differ: float | None = None
    exact_outputs: tuple[str, ...] = ()
    quarantined_instances: tuple[str, ...] = ()


class TensorParameters(Struct, omit_defaults=True):
    """The parameters of a tensor: the place of its values, if not in the JSON. A requested output
    may also ask for `binary_data`, or for a `classification` into this many classes."""

    binary_data_size: int | None = None
    binary_data: bool | None = None
    shared_memory_region: str | None = None
    classification: int | None = None


class TensorMessage(Struct, omit_defaults=True):
    """A tensor of a request or of a response; `data` is JSON, flat or nested, row-major."""

    name: str
    datatype: str
    shape: Shape
    parameters: TensorParameters | None = None
    data: Raw = NO_DATA


class RequestedOutput(Struct, omit_defaults=True):
    """An output that a request asks for."""

    name: str
    parameters: TensorParameters | None = None


class RequestParameters(Struct, omit_defaults=True):
    """The parameters of a request; `timeout` is in microseconds, as for Triton."""

    timeout: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    binary_data_output: bool | None = None
    redundancy: str | None = None
    tenant: str | None = None


class RequestMessage(Struct, omit_defaults=True):
    """An infer request's JSON object."""

    inputs: Annotated[tuple[TensorMessage, ...], _Some]
    id: str | None = None
    parameters: RequestParameters | None = None
    outputs: Annotated[tuple[RequestedOutput, ...], _Some] | None = None


class ResponseMessage(Struct, omit_defaults=True, kw_only=True):
    """An infer response's JSON object."""

    model_name: str | None = None
    model_version: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: tuple[TensorMessage, ...]
    id: str | None = None


_RESPONSE = msgspec.json.Decoder(ResponseMessage)

# Clients


class OutputTensor(NamedTuple):
    """A tensor of a response, as its server describes it; `data` is Raw if it is JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Raw | memoryview

    def array(self) -> NDArray[Any]:
        """Return the values, read-only. Raises InvalidRequestError for data that do not fit."""
        what = f"the data of output {self.name!r}"
        if isinstance(self.data, Raw):
            return array_from_json(self.data, self.datatype, self.shape, what)
        return array_from_bytes(self.data, self.datatype, self.shape, self.name)


class InferAnswer(NamedTuple):
    """A response as a client reads it."""

    outputs: Sequence[OutputTensor]
    parameters: Mapping[str, Any]
    model_version: str | None = None

    def sources(self, rows: int) -> tuple[Source, ...]:
        """Return the source of each row; the model, if the server names none. Raises
        InvalidRequestError for unknown sources, or a wrong number of them."""
        said = self.parameters.get("source")
        if said is None:
            return (Source.MODEL,) * rows
        try:
            sources = tuple(map(Source, str(said).split(",")))
        except ValueError as error:
            raise InvalidRequestError(str(error)) from error
        if len(sources) != rows:
            raise InvalidRequestError(f"{len(sources)} sources for {rows} rows")
        return sources


def write_request(
    tensors: Mapping[str, NDArray[Any]],
    outputs: Sequence[str] = (),
    *,
    id: str | None = None,
    binary: bool = True,
) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a request, whose data and answer are binary or JSON.

    `tensors` (n, *shape) are of the model's datatypes, by input. The answer has these `outputs`; by
    default all.
    """
    messages, data = [], []
    for name, array in tensors.items():
        message = TensorMessage(name, _NAMES[array.dtype], array.shape)
        if binary:
            content = memoryview(pack(array))
            message.parameters = TensorParameters(binary_data_size=content.nbytes)
            data.append(content)
        else:
            message.data = Raw(msgspec.json.encode(array.ravel().tolist()))
        messages.append(message)
    request = RequestMessage(tuple(messages), id)
    wanted = TensorParameters(binary_data=True) if binary else None
    if outputs:
        request.outputs = tuple(RequestedOutput(name, wanted) for name in outputs)
    elif binary:
        request.parameters = RequestParameters(binary_data_output=True)
    head = msgspec.json.encode(request)
    if not binary:
        return head, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join((head, *data)), headers


def answer_limit(values: int) -> int:
    """Return the maximum size in bytes of an answer with this many values, in JSON or binary."""
    return _ANSWER_HEAD + ANSWER_VALUE * values


def read_response(body: bytes, header_length: str | None) -> InferAnswer:
    """Read an answer's body; `header_length` is its Inference-Header-Content-Length, if any.

    Raises InvalidRequestError for a body that does not follow the protocol. The outputs are not
    compared with the request, and JSON data is not decoded.
    """
    end = object_end(header_length, len(body)) if header_length else len(body)
    message = read_json(_RESPONSE, memoryview(body)[:end], "the answer")
    data = memoryview(body)[end:]
    outputs = []
    for tensor in message.outputs:
        content: Raw | memoryview = tensor.data
        if not tensor.data:
            if tensor.datatype not in DATATYPES or min(tensor.shape, default=0) < 0:
                found = f"{tensor.datatype[:20]} {list(tensor.shape)[:40]}"
                raise InvalidRequestError(f"output {tensor.name!r} is {found}")
            size = prod(tensor.shape) * DATATYPES[tensor.datatype].itemsize
            if tensor.datatype == BYTES:
                size = (tensor.parameters and tensor.parameters.binary_data_size) or 0
            if not 0 <= size <= len(data):
                raise InvalidRequestError(
                    f"output {tensor.name!r} has {len(data)} bytes of data, where {size} were due"
                )
            content, data = data[:size], data[size:]
        outputs.append(OutputTensor(tensor.name, tensor.datatype, tensor.shape, content))
    if data:
        raise InvalidRequestError(f"{len(data)} bytes follow the outputs")
    return InferAnswer(outputs, message.parameters or {}, message.model_version)


# Tensors as binary data: row-major; little-endian, as all machines that ONNX Runtime supports

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def size_in_bytes(spec: TensorSpec, rows: int) -> int | None:
    """Return the size in bytes of `rows` rows of this tensor; None for texts, whose sizes vary."""
    return None if spec.is_text else rows * prod(spec.shape) * spec.dtype.itemsize


def array_from_bytes(
    data: bytes | memoryview, datatype: str, shape: tuple[int, ...], name: str
) -> NDArray[Any]:
    """Return a read-only view of `data`, which has the right size, as an array of this shape; texts
    are read.

    Raises InvalidRequestError for bytes that are not values of the datatype.
    """
    if datatype == BYTES:
        try:
            return read_texts(data, shape)
        except ValueError as error:
            raise InvalidRequestError(f"tensor {name!r} {error}") from error
    if datatype == "BOOL" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise InvalidRequestError(f"tensor {name!r} is BOOL and has bytes other than 0, 1")
    return np.frombuffer(data, DATATYPES[datatype]).reshape(shape)


# Tensors as JSON arrays, flat or nested, row-major


def read_json(decoder: msgspec.json.Decoder[_T], text: Raw | memoryview, what: str) -> _T:
    """Decode `text`. Raises InvalidRequestError, which calls it `what`."""
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{what} cannot be read: {error}") from error
    except RecursionError as error:
        raise InvalidRequestError(f"{what} cannot be read: it is nested too deeply") from error


@lru_cache(256)
def object_end(header_length: str, size: int) -> int:
    """Return the end of the JSON object in a body of `size` bytes, by the header with its length.

    Raises InvalidRequestError unless it is a length within the body.
    """
    # Python refuses to convert more than a few thousand digits to an int.
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


def array_from_json(data: Raw, datatype: str, shape: tuple[int, ...], what: str) -> NDArray[Any]:
    """Return the array of this shape in JSON `data`, flat or nested. Do not write to it.

    Raises InvalidRequestError, which calls it `what`.
    """
    if datatype == BYTES:
        return _texts_from_json(data, shape, what)
    values = read_numbers(flat_numbers(data, shape, what), datatype, what)
    if len(values) != prod(shape):
        raise _not_of(shape, what)
    values.flags.writeable = False
    return values.reshape(shape)


def _texts_from_json(data: Raw, shape: tuple[int, ...], what: str) -> NDArray[Any]:
    text = bytes(data)
    # Each text has two quotes; those in texts are escaped.
    too_many = text.count(b'"') - text.count(b'\\"') > 2 * prod(shape)
    values = None if too_many else read_json(msgspec.json.Decoder(), data, what)
    array = np.array(values, object)
    if array.shape not in (shape, (prod(shape),)):
        raise _not_of(shape, what, "strings")
    try:
        return as_texts(array).reshape(shape)
    except ValueError as error:
        raise InvalidRequestError(f"{what} {error}") from error


_LIST_OF: dict[str, msgspec.json.Decoder[Any]] = {
    "b": msgspec.json.Decoder(list[bool]),
    "i": msgspec.json.Decoder(list[int]),
    "u": msgspec.json.Decoder(list[int]),
    "f": msgspec.json.Decoder(list[float]),
}
"""Decoders of arrays of numbers, by the kind of their dtype."""


def flat_numbers(data: Raw, shape: tuple[int, ...], what: str) -> bytes:
    """Return the numbers of an array in JSON, between commas, without its brackets.

    Raises InvalidRequestError unless the array is flat or nested, of this shape.
    """
    text = bytes(data).translate(None, b" \n\r\t")
    brackets = text.translate(None, b"+-.0123456789Eeaflnrstu")  # numbers, true and false
    least = 2 * prod(shape)  # a digit and a comma for each number
    if len(text) < least or brackets not in (_brackets(shape), _brackets((prod(shape),))):
        raise _not_of(shape, what)
    return text.translate(None, b"[]")


def _not_of(shape: tuple[int, ...], what: str, of: str = "numbers") -> InvalidRequestError:
    return InvalidRequestError(
        f"{what} is ragged, of another shape, or not only {of}; it must be flat, with "
        f"{prod(shape)} elements, or nested as {list(shape)}"
    )


def _brackets(shape: tuple[int, ...]) -> bytes:
    """Return the JSON of an array of this shape without its numbers."""
    text = b""
    for size in reversed(shape):
        text = b"[%b]" % ((text + b",") * size)[:-1]
    return text


def read_numbers(text: bytes, datatype: str, what: str) -> NDArray[Any]:
    """Return numbers between commas as an array."""
    dtype = DATATYPES[datatype]
    values = read_json(_LIST_OF[dtype.kind], Raw(b"[%b]" % text), what)
    try:
        with np.errstate(over="raise"):
            return np.array(values, dtype)
    except (OverflowError, FloatingPointError) as error:
        raise InvalidRequestError(f"{what} has numbers beyond {datatype}") from error

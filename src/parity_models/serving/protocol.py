"""The messages of the Open Inference Protocol over REST, in both directions.

A request is a JSON object whose inputs hold their data as (flat or nested, row-major) JSON arrays
or, with the binary tensor data extension, leave it to the bytes after the object: then the header
Inference-Header-Content-Length says where the object ends. Responses likewise. Servers call
`read_request` and `write_response`, clients `write_request` and `read_response`.
https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md, and
Triton's docs/protocol/extension_binary_data.md.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from math import prod
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Raw, Struct
from numpy.typing import NDArray

from parity_models.roles import Source
from parity_models.serving.errors import InvalidRequestError, Refused, RefusedError, TooLargeError
from parity_models.tensors.signature import (
    DATATYPES,
    MAX_TENSORS,
    Sizes,
    Tensor,
    TensorSpec,
    cut,
    padded,
)

if TYPE_CHECKING:
    from parity_models.serving.models import Fitting, ServedModel

HEADER_LENGTH = "inference-header-content-length"
"""The header with the length of a JSON object that binary data follows."""

SOFTWARE = "parity-models"
"""The name that servers of this software give themselves."""

BINARY = "binary_tensor_data"
"""The name of the extension for tensors as binary data."""

JSON_OBJECT = 64 * 2**10
"""Bytes that a request's JSON object may have besides the values of its tensors."""

MAX_TENANT = 128
"""Maximum characters of a tenant's name."""

NO_DATA = Raw()
"""The data of a tensor that has none in the JSON."""

MAX_JSON_VALUES = 2**20
"""Maximum number of values of an answer in JSON."""

HEAD = 1024
"""First bytes of a body, which are searched for the shape of its tensors."""

SLICE, SLICE_VALUES = 2**17, 2**13
"""Bytes of JSON that are read at once, and values that are written at once."""

_SHAPE = re.compile(rb'"shape"\s*:\s*\[\s*(\d{1,9})\b')
_ANSWER_VALUE, _ANSWER_HEAD = 32, 2**16
"""Maximum bytes of a number in an answer's JSON, and of everything else in it."""

SMALL, MAX_KNOWN = 4096, 100
"""Bytes of a message that may be kept in memory along with a tensor, and the number of messages
that are kept without their tensors, so that each is read once."""

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


_REQUEST = msgspec.json.Decoder(RequestMessage)
_RESPONSE = msgspec.json.Decoder(ResponseMessage)
_name = attrgetter("name")
_NO_OUTPUT, _NO_REQUEST = TensorParameters(), RequestParameters()

# Servers


class AskedOutput(NamedTuple):
    """An output that a request asks for, and whether as binary data."""

    tensor: Tensor
    binary: bool


Turn = Callable[[], Awaitable[None]]
"""Waits until it is a large request's turn to use the event loop for a moment."""

Unread = Callable[[Turn], Awaitable[NDArray[Any]]]
"""Reads a tensor that takes long to read."""


async def at_once() -> None:
    """Return at once, as if it were the caller's turn."""


_Input = tuple[str, str, tuple[int, ...], int, int]
"""An input of binary data: its name, datatype and shape, and the first and last byte in a body."""


class Known(Struct, eq=False):
    """A JSON object that was read before, with binary data after it: a request without an id, for
    binary outputs. Clients repeat it, so it is read once.

    `head` is the JSON object of an answer of the model alone, once there was one. `is_plain`: rows
    and answers are single tensors, unchanged from the messages.
    """

    request: "InferRequest"
    inputs: list[_Input]
    answer_size: int
    is_plain: bool
    head: bytes = b""

    def again(self, body: bytes | bytearray) -> "InferRequest":
        """Return the request in a body with this object."""
        view = memoryview(body).toreadonly()
        tensors: dict[str, NDArray[Any] | Unread] = {}
        for name, datatype, shape, begin, end in self.inputs:
            tensor = tensors[name] = _binary(view, begin, end, datatype, shape, name)
        rows = tensor if self.is_plain else None
        return msgspec.structs.replace(self.request, tensors=tensors, rows=rows, known=self)


class InferRequest(Struct, eq=False):
    """A request that fits the model: `count` rows, one query each, all of one kind.

    `id` is the client's, if it gave one. `timeout` in seconds; `outputs` are those of the answer.
    `exact`: stand-ins are not to answer. It shares coding groups only with requests of its
    `tenant`. `sizes`: those of the model's dynamic axes, before padding. `tensors` (count, ...), by
    input, are read by `read_rows`, once the request is admitted; `rows` is set if nothing is left
    to read. `known`: its JSON object was read before.
    """

    model: "ServedModel"
    count: int
    id: str | None
    timeout: float | None
    outputs: Sequence[AskedOutput]
    exact: bool
    tenant: str | None
    sizes: Sizes
    tensors: dict[str, NDArray[Any] | Unread]
    rows: NDArray[Any] | None = None
    known: Known | None = None

    def answer_size(self) -> int:
        """Return the bytes that the server holds for the answer.

        Raises TooLargeError for a JSON answer that would take too long to write.
        """
        if self.known is not None:
            return self.known.answer_size
        signature = self.model.signature
        kind = signature.plain or signature.kind(signature.bucket(self.sizes))
        values = 0
        for tensor, binary in self.outputs:
            if not binary:
                at = self.model.signature.outputs.index(tensor)
                values += self.count * prod(kind.output.tensors[at].shape)
        if values > MAX_JSON_VALUES:
            raise TooLargeError(
                f"the answer has {values} values, and JSON takes at most {MAX_JSON_VALUES} here; "
                "ask for binary data (binary_data_output; over gRPC, send raw contents), or send "
                "fewer rows at once"
            )
        # The instances' outputs, the answer that is made of them, and its text.
        return 2 * self.count * kind.output.row_bytes + 2 * _ANSWER_VALUE * values

    async def read_rows(self, turn: Turn = at_once) -> NDArray[Any]:
        """Return the rows, read-only: a view of the body if its data are binary.

        Raises InvalidRequestError for data that do not fit the tensors.
        """
        tensors = {}
        for name, data in self.tensors.items():
            tensors[name] = data if isinstance(data, np.ndarray) else await data(turn)
        return padded(tensors, self.model.signature, self.sizes)


def read_request(
    body: bytes | bytearray, header_length: str | None, model: "ServedModel"
) -> InferRequest:
    """Read a request's body, except for its tensors' data; `header_length` is its
    Inference-Header-Content-Length, if any.

    Binary data is copied only if a view would keep a much larger body alive. Raises a RequestError
    (mostly InvalidRequestError) that states the fault and the expectation.
    """
    end = None if header_length is None else _object_end(header_length, len(body))
    if end is None or end > SMALL:
        return _read_request(body, end, model)[0]
    head = (bytes(body[:end]), len(body))
    known = model.known.get(head)
    if known is not None:
        return known.again(body)
    request, inputs = _read_request(body, end, model)
    is_binary = len(inputs) == len(request.tensors) and all(each.binary for each in request.outputs)
    if is_binary and request.id is None:
        if len(model.known) >= MAX_KNOWN:
            model.known.clear()
        signature, without = model.signature, msgspec.structs.replace(request, tensors={})
        is_plain = signature.plain is not None and len(inputs) == len(signature.outputs) == 1
        known = Known(without, inputs, request.answer_size(), is_plain)
        request.known = model.known[head] = known
    return request


def _read_request(
    body: bytes | bytearray, end: int | None, model: "ServedModel"
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
    fitting = model.check_request(message.inputs, message.outputs or ())
    # The number of rows is known here, and no tensor has been decoded yet.
    rows, specs = fitting.rows, model.signature.kind(fitting.sizes).input.tensors
    spec_of = dict(zip(map(_name, specs), specs, strict=True))
    tensors: dict[str, NDArray[Any] | Unread] = {}
    at, binary = len(body) if end is None else end, list[_Input]()
    view = memoryview(body).toreadonly()
    for tensor in message.inputs:
        spec = spec_of[tensor.name]
        size = None if tensor.parameters is None else tensor.parameters.binary_data_size
        shape, due = (rows, *spec.shape), rows * prod(spec.shape) * spec.dtype.itemsize
        if (size is None) != bool(tensor.data) or size not in (None, due) or (size and end is None):
            raise InvalidRequestError(
                f"input {tensor.name!r} needs either data, or a binary_data_size of {due} bytes "
                f"({spec.datatype} of shape {list(shape)}) and the header "
                "Inference-Header-Content-Length"
            )
        if size is None:
            what = f"the data of input {spec.name!r}"
            tensors[spec.name] = partial(read_array, tensor.data, spec.datatype, shape, what)
            continue
        if at + size <= len(body):  # else it is reported below
            tensors[spec.name] = _binary(view, at, at + size, spec.datatype, shape, spec.name)
        binary.append((spec.name, spec.datatype, shape, at, at + size))
        at += size
    if at != len(body):
        start = end or 0
        raise InvalidRequestError(
            f"{len(body) - start} bytes follow the JSON object; inputs with a binary_data_size "
            f"take {at - start}"
        )
    return request_of(message, model, fitting, tensors), binary


def _binary(
    body: memoryview, begin: int, end: int, datatype: str, shape: tuple[int, ...], name: str
) -> NDArray[Any]:
    """Return the tensor in these bytes of a body."""
    data: bytes | memoryview = body[begin:end]
    if len(body) - len(data) > max(len(data), SMALL):
        data = bytes(data)  # a view would keep all of the body alive for these few bytes
    return array_from_bytes(data, datatype, shape, name)


def rows_in_head(body: bytes | bytearray) -> int:
    """Return the number of rows that the first bytes of a body seem to announce, to refuse it
    unread; 0: unknown."""
    found = _SHAPE.search(memoryview(body)[:HEAD])
    return 0 if found is None else int(found[1])


def request_of(
    message: RequestMessage,
    model: "ServedModel",
    fitting: "Fitting",
    tensors: dict[str, NDArray[Any] | Unread],
) -> InferRequest:
    """Return the request in a message that fits the model, with these tensors, by input.

    Raises InvalidRequestError for invalid parameters.
    """
    parameters = message.parameters or _NO_REQUEST
    usual, outputs = bool(parameters.binary_data_output), []
    for output, wanted in zip_longest(fitting.outputs, message.outputs or ()):
        binary = ((wanted and wanted.parameters) or _NO_OUTPUT).binary_data
        outputs.append(AskedOutput(output, usual if binary is None else binary))
    exact, tenant = model.is_exact(fitting.outputs), parameters.tenant
    if parameters.redundancy not in (None, "any", "exact"):
        given = _shown(parameters.redundancy)
        raise InvalidRequestError(f"the parameter redundancy is 'any' or 'exact', got {given}")
    return InferRequest(
        model,
        fitting.rows,
        message.id,
        parameters.timeout / 1e6 if parameters.timeout else None,
        outputs,
        exact or parameters.redundancy == "exact",
        None if tenant is None else tenant_from(tenant, "the parameter tenant"),
        fitting.sizes,
        tensors,
    )


SOURCE, AGREEMENT = "x-parm-source", "x-parm-agreement"
"""Headers, or gRPC's trailing metadata, that sum up the parameters of an answer's rows."""

OF_MODEL = ((SOURCE, str(Source.MODEL)), (AGREEMENT, "1"))
"""The headers of an answer from the model alone."""


def row_parameters(sources: Sequence[Source], doubts: Sequence[float]) -> dict[str, str]:
    """Return a response's parameters on its rows: their `sources` and, if any are stand-ins, the
    probability that each row agrees with the model's prediction."""
    parameters = {"source": ",".join(sources)}
    if any(each.stands_in for each in sources):
        parameters["agreement"] = ",".join(map(_agreement, doubts or [0.0] * len(sources)))
    return parameters


def row_headers(sources: Sequence[Source], doubts: Sequence[float]) -> tuple[tuple[str, str], ...]:
    """Return headers on an answer's rows for gateways and logs: the `sources`, each once, and the
    lowest agreement of a row."""
    if sources.count(Source.MODEL) == len(sources):
        return OF_MODEL
    kinds = ",".join(dict.fromkeys(sources))
    return (SOURCE, kinds), (AGREEMENT, _agreement(max(doubts, default=0.0)))


def _agreement(doubt: float) -> str:
    return f"{1 - doubt:.6g}"


async def write_response(
    request: InferRequest,
    outputs: NDArray[Any],
    sources: Sequence[Source],
    turn: Turn = at_once,
    *,
    doubts: Sequence[float] = (),
) -> tuple[bytes, list[bytes | memoryview]]:
    """Return the JSON object of the answer, and the binary data that follow it.

    `outputs` are predictions (n, ...) of one kind, `sources` and `doubts` those of each row. Raises
    RefusedError for values that JSON cannot express.
    """
    known = request.known if request.id is None else None
    if sources.count(Source.MODEL) < len(sources):
        known = None
    if known is not None and known.head and known.is_plain and outputs.nbytes <= SLICE:
        return known.head, [outputs.tobytes()]
    model, messages = request.model, []
    binary: list[bytes | memoryview] = []
    tensors = cut(outputs, model.signature, request.sizes)
    for spec, is_binary in request.outputs:
        if is_binary:
            binary += await _binary_of(tensors[spec.name], turn)
    if known is not None and known.head:
        return known.head, binary
    for spec, is_binary in request.outputs:
        values = tensors[spec.name]
        message = TensorMessage(name=spec.name, datatype=spec.datatype, shape=values.shape)
        if is_binary:
            message.parameters = TensorParameters(values.nbytes)
        else:
            message.data = await _json(values, spec.name, turn)
        messages.append(message)
    header = msgspec.json.encode(
        ResponseMessage(
            model_name=model.name,
            model_version=model.version,
            id=request.id,
            parameters=row_parameters(sources, doubts),
            outputs=tuple(messages),
        )
    )
    if known is not None:
        known.head = header
    return header, binary


async def _binary_of(values: NDArray[Any], turn: Turn) -> list[memoryview]:
    """Return the values as binary data: large ones in pieces, each copied in its `turn`."""
    if values.nbytes <= SLICE or values.flags.c_contiguous:
        return [_bytes_of(values)]
    step, pieces = 1 + len(values) * SLICE // (1 + values.nbytes), []
    for start in range(0, len(values), step):
        await turn()
        pieces.append(_bytes_of(values[start : start + step]))
    return pieces


def _bytes_of(values: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _check_keys(text: bytes | bytearray, key: bytes, most: int) -> None:
    """Raise InvalidRequestError if an object has a key twice: other readers take the first, and may
    have checked that one. A string that only looks like the key does not count."""
    if len(re.findall(key + rb"\s*:", text)) > most:
        raise InvalidRequestError(
            f"the request has the key {key.decode()} more than once in an object; give it once"
        )


def tenant_from(value: object, what: str) -> str:
    """Return the tenant's name in `what`. Raises InvalidRequestError for another value."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TENANT:
        raise InvalidRequestError(
            f"{what} is a string of 1 to {MAX_TENANT} characters, got {_shown(value)}"
        )
    return value


def take_tenant(asked: InferRequest, header: str, given: Sequence[str]) -> None:
    """Set the tenant of a request from a header, which has the values `given`.

    The operator chose the header. So a request without it has no known tenant and is served exact,
    whatever its parameters say: queries that are encoded together can influence each other. Raises
    InvalidRequestError if the header is given twice, is not a tenant's name, or contradicts the
    parameter.
    """
    if len(given) > 1:
        raise InvalidRequestError(f"the header {header} is given {len(given)} times; give it once")
    if not given:
        asked.exact, asked.tenant = True, None
        return
    tenant = tenant_from(given[0], f"the header {header}")
    if asked.tenant not in (None, tenant):
        raise InvalidRequestError(
            f"the parameter tenant is {asked.tenant!r} and the header {header} is {tenant!r}; "
            "leave out the parameter"
        )
    asked.tenant = tenant


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


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
            message.parameters = TensorParameters(binary_data_size=array.nbytes)
            data.append(np.ascontiguousarray(array).data)
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
    return _ANSWER_HEAD + _ANSWER_VALUE * values


def read_response(body: bytes, header_length: str | None) -> InferAnswer:
    """Read an answer's body; `header_length` is its Inference-Header-Content-Length, if any.

    Raises InvalidRequestError for a body that does not follow the protocol. The outputs are not
    compared with the request, and JSON data is not decoded.
    """
    end = _object_end(header_length, len(body)) if header_length else len(body)
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
            if size > len(data):
                raise InvalidRequestError(
                    f"output {tensor.name!r} has {len(data)} bytes of data, where {size} were due"
                )
            content, data = data[:size], data[size:]
        outputs.append(OutputTensor(tensor.name, tensor.datatype, tensor.shape, content))
    if data:
        raise InvalidRequestError(f"{len(data)} bytes follow the outputs")
    return InferAnswer(outputs, message.parameters or {})


# Tensors as binary data: row-major; little-endian, as all machines that ONNX Runtime supports

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def size_in_bytes(spec: TensorSpec, rows: int) -> int:
    """Return the size in bytes of `rows` rows of this tensor."""
    return rows * prod(spec.shape) * spec.dtype.itemsize


def array_from_bytes(
    data: bytes | memoryview, datatype: str, shape: tuple[int, ...], name: str
) -> NDArray[Any]:
    """Return a read-only view of `data`, which has the right size, as an array of this shape.

    Raises InvalidRequestError for bytes that are not values of the datatype.
    """
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


def _object_end(header_length: str, size: int) -> int:
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
    values = _numbers(_flat(data, shape, what), datatype, what)
    if len(values) != prod(shape):
        raise _not_of(shape, what)
    values.flags.writeable = False
    return values.reshape(shape)


async def read_array(
    data: Raw, datatype: str, shape: tuple[int, ...], what: str, turn: Turn = at_once
) -> NDArray[Any]:
    """Do the same as array_from_json, but read large arrays in slices, each in its `turn`."""
    if len(memoryview(data)) <= SLICE:
        return array_from_json(data, datatype, shape, what)
    await turn()
    text = _flat(data, shape, what)
    array = np.empty(prod(shape), DATATYPES[datatype])
    begin = at = 0
    while begin < len(text):
        await turn()
        end = text.find(b",", begin + SLICE)
        end = len(text) if end < 0 else end
        values = _numbers(text[begin:end], datatype, what)
        array[at : at + len(values)] = values
        begin, at = end + 1, at + len(values)
    array.flags.writeable = False
    return array.reshape(shape)


_LIST_OF: dict[str, msgspec.json.Decoder[Any]] = {
    "b": msgspec.json.Decoder(list[bool]),
    "i": msgspec.json.Decoder(list[int]),
    "u": msgspec.json.Decoder(list[int]),
    "f": msgspec.json.Decoder(list[float]),
}
"""Decoders of arrays of numbers, by the kind of their dtype."""


def _flat(data: Raw, shape: tuple[int, ...], what: str) -> bytes:
    """Return the numbers of an array in JSON, between commas, without its brackets.

    Raises InvalidRequestError unless the array is flat or nested, of this shape.
    """
    text = bytes(data).translate(None, b" \n\r\t")
    brackets = text.translate(None, b"+-.0123456789Eeaflnrstu")  # numbers, true and false
    least = 2 * prod(shape)  # a digit and a comma for each number
    if len(text) < least or brackets not in (_brackets(shape), _brackets((prod(shape),))):
        raise _not_of(shape, what)
    return text.translate(None, b"[]")


def _not_of(shape: tuple[int, ...], what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{what} is ragged, of another shape, or not only numbers; it must be flat, with "
        f"{prod(shape)} elements, or nested as {list(shape)}"
    )


def _brackets(shape: tuple[int, ...]) -> bytes:
    """Return the JSON of an array of this shape without its numbers."""
    text = b""
    for size in reversed(shape):
        text = b"[%b]" % ((text + b",") * size)[:-1]
    return text


def _numbers(text: bytes, datatype: str, what: str) -> NDArray[Any]:
    """Return numbers between commas as an array."""
    dtype = DATATYPES[datatype]
    values = read_json(_LIST_OF[dtype.kind], Raw(b"[%b]" % text), what)
    try:
        with np.errstate(over="raise"):
            return np.array(values, dtype)
    except (OverflowError, FloatingPointError) as error:
        raise InvalidRequestError(f"{what} has numbers beyond {datatype}") from error


async def _json(values: NDArray[Any], name: str, turn: Turn) -> Raw:
    """Return the values of an output as JSON; many in slices, each in its `turn`.

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
            await turn()
        part = flat[start : start + SLICE_VALUES].tolist()
        pieces.append(msgspec.json.encode(part)[1:-1])
    return Raw(b"[%b]" % b",".join(pieces))

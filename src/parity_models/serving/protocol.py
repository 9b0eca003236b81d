"""The Open Inference Protocol over REST: its messages, for those who write and those who read them.

A request is a JSON object whose inputs hold their data as (flat or nested, row-major) JSON arrays
or, with the binary tensor data extension, leave it to the bytes after the object: then the header
Inference-Header-Content-Length says where the object ends. Responses likewise. Servers call
`read_request` and `write_response`, clients `write_request` and `read_response`.
https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md, and
Triton's docs/protocol/extension_binary_data.md.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Raw, Struct
from numpy.typing import NDArray

from parity_models.models.queries import cut, padded
from parity_models.models.signature import DATATYPES, Layout, Sizes, Tensor, TensorSpec
from parity_models.roles import Source
from parity_models.serving.errors import InvalidRequestError, NotAcceptableError, TooLargeError

if TYPE_CHECKING:
    from parity_models.serving.served_model import Fitting, ServedModel

HEADER_LENGTH = "inference-header-content-length"
"""The header with the length of a JSON object that binary data follows."""

SOFTWARE = "parity-models"
"""The name that servers of this software give themselves."""

BINARY = "binary_tensor_data"
"""The name of the extension for tensors as binary data."""

JSON_OBJECT = 64 * 2**10
"""Bytes that a request's JSON object may have besidess the values of a tensor."""

NO_DATA = Raw()
"""The data of a tensor that has none in the JSON."""

_JSON_VALUE = 64
"""Bytes that a value of a request may take in JSON, with commas, brackets and indentation."""

_ANSWER_VALUE, _ANSWER_HEAD = 32, 2**16
"""Bytes that a number may take in an answer's JSON, and those that it may have besidess."""

_SMALL = 4096
"""Bytes of JSON that may be kept in memory along with a tensor."""

_T = TypeVar("_T")

# Messages


class ServerMetadata(Struct, frozen=True, omit_defaults=True):
    """A server as it describes itself; this software's also name the bundle that they serve, and
    the instances that were found to answer wrongly, the latest last."""

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


class GateMetadata(Struct, frozen=True):
    """A stand-in's calibrated agreement with the model, and the share of queries it may answer."""

    agreement: float
    coverage: float


class ModelMetadata(Struct, frozen=True, omit_defaults=True):
    """A model as its server describes it; KServe's own servers name no versions.

    Servers of this software add `bundle_digest` and `model_sha256` (the digest of the bundle's
    manifest, the hash of the model's file), the `gates` of stand-ins by the source of answers, the
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
    exact_outputs: tuple[str, ...] = ()
    quarantined_instances: tuple[str, ...] = ()


class TensorParameters(Struct, omit_defaults=True):
    """Where a tensor's values are, if not in the JSON."""

    binary_data_size: int | None = None
    shared_memory_region: str | None = None


class TensorMessage(Struct, omit_defaults=True):
    """A tensor of a request or of a response; `data` is JSON, flat or nested, row-major."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: TensorParameters | None = None
    data: Raw = NO_DATA

    @property
    def shared_memory(self) -> bool:
        return self.parameters is not None and self.parameters.shared_memory_region is not None


class OutputParameters(Struct, omit_defaults=True):
    """How an output is to be written."""

    binary_data: bool | None = None
    shared_memory_region: str | None = None
    classification: int | None = None


class RequestedOutput(Struct, omit_defaults=True):
    """An output that a request asks for."""

    name: str
    parameters: OutputParameters | None = None

    @property
    def shared_memory(self) -> bool:
        return self.parameters is not None and self.parameters.shared_memory_region is not None

    @property
    def classification(self) -> bool:
        return self.parameters is not None and bool(self.parameters.classification)


class RequestParameters(Struct, omit_defaults=True):
    """The parameters of a request; `timeout` in microseconds, as Triton has it."""

    timeout: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    binary_data_output: bool | None = None
    redundancy: Raw = NO_DATA
    tenant: Raw = NO_DATA


class RequestMessage(Struct, omit_defaults=True):
    """An infer request's JSON object."""

    inputs: tuple[TensorMessage, ...]
    id: str | None = None
    parameters: RequestParameters | None = None
    outputs: tuple[RequestedOutput, ...] | None = None


class ResponseMessage(Struct, omit_defaults=True, kw_only=True):
    """An infer response's JSON object."""

    model_name: str | None = None
    model_version: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: tuple[TensorMessage, ...]
    id: str | None = None


_REQUEST = msgspec.json.Decoder(RequestMessage)
_RESPONSE = msgspec.json.Decoder(ResponseMessage)
_ANYTHING = msgspec.json.Decoder(object)
_NO_TENSOR, _NO_OUTPUT, _NO_REQUEST = TensorParameters(), OutputParameters(), RequestParameters()

# Servers


class AskedOutput(NamedTuple):
    """An output that an answer is to have, and whether as binary data."""

    tensor: Tensor
    binary: bool


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request that fits the model: `rows`, read-only, one query each, all of one kind.

    `id` is the client's, if it gave one. `timeout` in seconds; `outputs` are those of the answer.
    `exact`: stand-ins are not to answer; `tenant`: whom it may share codes with. `sizes` are those
    of the model's dynamic axes, before queries were padded.
    """

    id: str | None
    rows: NDArray[Any]
    timeout: float | None
    outputs: Sequence[AskedOutput]
    exact: bool = False
    tenant: str | None = None
    sizes: Sizes = ()
    by_row: bool = False


def read_request(
    body: bytes | bytearray, header_length: str | None, model: "ServedModel"
) -> InferRequest:
    """Read a request's body; `header_length` is its Inference-Header-Content-Length, if any.

    Binary data is not copied, `rows` is a view of `body`, unless that would keep a body alive that
    is much larger than its tensor. Raises a RequestError (mostly InvalidRequestError) that says
    what is wrong and what is expected.
    """
    end = len(body) if header_length is None else _object_end(header_length, len(body))
    if end > JSON_OBJECT:
        _check_size(body, end, model)
    # A view, since slicing bytes would copy what may be a body of JSON data.
    message = read_json(_REQUEST, memoryview(body)[:end], "the request")
    fitting = model.check_request(message.inputs, message.outputs or ())
    # The number of rows is known here, and no tensor has been decoded yet.
    kind = model.signature.kind(fitting.sizes)
    specs = {spec.name: spec for spec in kind.input.tensors}
    sizes = []
    for tensor in message.inputs:
        sizes.append(_binary_size(tensor, specs[tensor.name], fitting.rows, header_length))
    if header_length is not None:
        _check_rest(message, sizes, len(body) - end)
    tensors = {}
    for tensor, size in zip(message.inputs, sizes, strict=True):
        spec = specs[tensor.name]
        if size is None:
            what = f"the data of input {spec.name!r}"
            check_json_size(tensor.data, spec, fitting.rows, what)
            tensors[spec.name] = tensor_from_json(tensor.data, spec, fitting.rows, what)
            continue
        data: bytes | memoryview = memoryview(body).toreadonly()[end : end + size]
        if len(body) - size > max(size, _SMALL):
            data = bytes(data)  # a view would keep all of the body alive for these few bytes
        tensors[spec.name] = rows_from_bytes(spec, fitting.rows, data)
        end += size
    rows = padded(tensors, model.signature, fitting.sizes)
    outputs = _asked_outputs(message, fitting.outputs)
    return request_with(message.parameters, model, rows, fitting, outputs, message.id)


def request_with(
    parameters: RequestParameters | None,
    model: "ServedModel",
    rows: NDArray[Any],
    fitting: "Fitting",
    outputs: Sequence[AskedOutput],
    id: str | None = None,
) -> InferRequest:
    """The request for `rows`, with the parameters of its message. Raises InvalidRequestError."""
    exact, timeout, tenant = model.is_exact(fitting.outputs), None, None
    if parameters is not None:
        exact |= exact_from(_short_value(parameters.redundancy, "redundancy"))
        timeout = parameters.timeout / 1e6 if parameters.timeout else None
        tenant = tenant_from(_short_value(parameters.tenant, "tenant"))
    return InferRequest(id, rows, timeout, outputs, exact, tenant, fitting.sizes)


def write_response(
    model: "ServedModel",
    request: InferRequest,
    outputs: NDArray[Any],
    sources: Sequence[Source],
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
            check_finite(values, spec.name, "binary data (binary_data_output)")
            message.data = Raw(msgspec.json.encode(values.ravel().tolist()))
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


_SHAPE = re.compile(rb'"shape"\s*:\s*\[\s*(\d{1,18})\s*[,\]]')
_SHAPE_WITHIN = 4096
"""Bytes at a message's beginning and end that are searched for the shape, before or after the
data."""


def _check_size(body: bytes | bytearray, end: int, model: "ServedModel") -> None:
    """Raises TooLargeError for a JSON object that is larger than its tensor can be, as far as that
    can be seen without decoding it: decoding blocks all other requests."""
    if end < len(body):
        raise TooLargeError(
            f"the JSON object before the binary data has {end} bytes; it may have {JSON_OBJECT}"
        )
    within = body[:_SHAPE_WITHIN] + body[-_SHAPE_WITHIN:]
    # In JSON a quote inside a string is escaped, so this is a key. If there are several, any of
    # them may be the input's.
    shapes = [int(match[1]) for match in _SHAPE.finditer(within)]
    rows = min(max(shapes, default=model.max_rows), model.max_rows)
    whole = memoryview(body)
    check_json_size(whole, model.signature.largest.input, rows, "the request", 2 * JSON_OBJECT)


def _asked_outputs(message: RequestMessage, outputs: Sequence[Tensor]) -> Sequence[AskedOutput]:
    """The outputs of the answer, each as the request wants it written."""
    usual = bool((message.parameters or _NO_REQUEST).binary_data_output)
    asked = []
    for tensor, wanted in zip_longest(outputs, message.outputs or ()):
        said = ((wanted and wanted.parameters) or _NO_OUTPUT).binary_data
        asked.append(AskedOutput(tensor, usual if said is None else said))
    return asked


def _binary_size(
    tensor: TensorMessage, spec: TensorSpec, rows: int, header_length: str | None
) -> int | None:
    """The bytes of an input's binary data; None if it has JSON data. Raises InvalidRequestError."""
    size = (tensor.parameters or _NO_TENSOR).binary_data_size
    if size is None and not tensor.data:
        raise InvalidRequestError(
            f"input {tensor.name!r} has neither data nor a binary_data_size; give one of them"
        )
    if size is None:
        return None
    if tensor.data:
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
    expected = sum(size or 0 for size in sizes)
    if rest == expected:
        return
    binary = [t.name for t, size in zip(message.inputs, sizes, strict=True) if size is not None]
    if not binary:
        raise InvalidRequestError(
            f"{rest} bytes follow the JSON object, but no input has a binary_data_size"
        )
    said = f"input {binary[0]!r} takes" if len(binary) == 1 else f"inputs {binary} take"
    raise InvalidRequestError(f"{rest} bytes follow the JSON object; {said} {expected}")


MAX_TENANT = 128
"""Characters of a tenant's name."""

_REDUNDANCY = {None: False, "any": False, "exact": True}


def exact_from(value: object) -> bool:
    """Whether the parameter redundancy asks for the model's own answers alone.

    Raises InvalidRequestError for other values than its two.
    """
    if value is not None and (not isinstance(value, str) or value not in _REDUNDANCY):
        raise InvalidRequestError(
            f"the parameter redundancy is 'any' or 'exact', got {_shown(value)}"
        )
    return _REDUNDANCY[value]


def tenant_from(value: object, what: str = "the parameter tenant") -> str | None:
    """The tenant's name in `what`, None if there is none. Raises InvalidRequestError."""
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TENANT:
        raise InvalidRequestError(
            f"{what} is a string of 1 to {MAX_TENANT} characters, got {_shown(value)}"
        )
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _short_value(text: Raw, parameter: str) -> object:
    """The value of a parameter, of whatever type; None if it is empty. Raises InvalidRequestError
    for a longer one than a parameter can be: decoded, it could be many times as large."""
    if not text:
        return None
    size = len(memoryview(text))
    if size > JSON_OBJECT:
        raise InvalidRequestError(
            f"the parameter {parameter} has {size} bytes of JSON; it may have {JSON_OBJECT}"
        )
    return read_json(_ANYTHING, text, f"the parameter {parameter}")


# Clients


class OutputTensor(NamedTuple):
    """A tensor of a response, as its server describes it; `data` is Raw where it is JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Raw | memoryview

    def array(self) -> NDArray[Any]:
        """The values, read-only. Raises InvalidRequestError for data that cannot be such a
        tensor."""
        what = f"the data of output {self.name!r}"
        if isinstance(self.data, Raw):
            return _array_from_json(self.data, self.datatype, self.shape, what)
        return _array_from_bytes(self.data, self.datatype, self.shape, self.name)


class InferAnswer(NamedTuple):
    """A response as a client reads it."""

    outputs: Sequence[OutputTensor]
    parameters: Mapping[str, Any]

    def sources(self, rows: int) -> tuple[Source, ...]:
        """The source of each row; the model's where the server does not say it. Raises
        InvalidRequestError for others than there are, or another number of them."""
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
    """The body and the headers of a request: binary data or JSON, both ways.

    `tensors` (n, *shape) are of the model's datatypes, by input. The answer is to have these
    `outputs`; without any, all that the model has.
    """
    messages, data = [], []
    for name, array in tensors.items():
        message = TensorMessage(name, _NAMES[array.dtype], array.shape)
        if binary:
            message.parameters = TensorParameters(binary_data_size=array.nbytes)
            data.append(little_endian(array).data)
        else:
            message.data = Raw(msgspec.json.encode(array.ravel().tolist()))
        messages.append(message)
    request = RequestMessage(tuple(messages), id)
    wanted = OutputParameters(binary_data=True) if binary else None
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
    """The bytes that an answer with so many values may have, JSON or not."""
    return _ANSWER_HEAD + _ANSWER_VALUE * values


def read_response(body: bytes, header_length: str | None) -> InferAnswer:
    """Read an answer's body; `header_length` is its Inference-Header-Content-Length, if any.

    Raises InvalidRequestError for a body that does not follow the protocol. Whether the outputs are
    those that were asked for is not checked, and no JSON data is decoded.
    """
    end = _object_end(header_length, len(body)) if header_length else len(body)
    message = read_json(_RESPONSE, memoryview(body)[:end], "the answer")
    data = memoryview(body)[end:]
    outputs = []
    for tensor in message.outputs:
        content: Raw | memoryview = tensor.data
        if not tensor.data:
            if tensor.datatype not in DATATYPES or min(tensor.shape, default=0) < 0:
                raise InvalidRequestError(f"output {tensor.name!r} is {_described(tensor)}")
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


def _described(tensor: TensorMessage) -> str:
    return f"{tensor.datatype[:20]} {list(tensor.shape)[:40]}"


# Tensors as binary data: row-major, little-endian, nothing else

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_LITTLE_ENDIAN: dict[np.dtype[Any], np.dtype[Any]] = {
    dtype: dtype if dtype == (little := dtype.newbyteorder("<")) else little
    for dtype in DATATYPES.values()
}
"""How values are written. One object per type: NumPy compares and hashes a new one anew."""


def size_in_bytes(spec: TensorSpec, rows: int) -> int:
    """The bytes of `rows` rows of this tensor."""
    return rows * prod(spec.shape) * spec.dtype.itemsize


def rows_from_bytes(spec: TensorSpec, rows: int, data: bytes | memoryview) -> NDArray[Any]:
    """A read-only view of `data`, which has the right size, as (rows, *shape).

    Raises InvalidRequestError for bytes that are no values of the tensor's datatype.
    """
    return _array_from_bytes(data, spec.datatype, (rows, *spec.shape), spec.name)


def _array_from_bytes(
    data: bytes | memoryview, datatype: str, shape: tuple[int, ...], name: str
) -> NDArray[Any]:
    if datatype == "BOOL" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise InvalidRequestError(f"tensor {name!r} is BOOL and has bytes other than 0, 1")
    return np.frombuffer(data, _LITTLE_ENDIAN[DATATYPES[datatype]]).reshape(shape)


def little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """The array as it is written: itself, where that is how it lies in memory."""
    return np.ascontiguousarray(array, _LITTLE_ENDIAN[array.dtype])


# Tensors as JSON arrays, flat or nested, row-major

_NESTED = re.compile(rb"\[\s*\[")


def read_json(decoder: msgspec.json.Decoder[_T], text: Raw | memoryview, what: str) -> _T:
    """Decode `text`. Raises InvalidRequestError, which calls it `what`."""
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{what} cannot be read: {error}") from error
    except RecursionError as error:
        raise InvalidRequestError(f"{what} cannot be read: it is nested too deeply") from error


def _object_end(header_length: str, size: int) -> int:
    """Where the JSON object in a body of `size` bytes ends, by the header that says its length.

    Raises InvalidRequestError for what is no length, or more than there is.
    """
    # Digits beyond a few thousand are no int to Python.
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


def check_json_size(
    text: Raw | memoryview,
    spec: TensorSpec | Layout,
    rows: int,
    what: str,
    besides: int = JSON_OBJECT,
) -> None:
    """Raises TooLargeError for more JSON than `rows` rows and so many bytes `besides` can be: for
    more bytes, or for more values in them, as each takes many times its bytes once it is read."""
    view = memoryview(text)
    if len(view) <= besides:
        return
    values = rows * (spec.row_values if isinstance(spec, Layout) else prod(spec.shape))
    most = _JSON_VALUE * values + besides
    if len(view) > most:
        raise TooLargeError(
            f"{what} has {len(view)} bytes of JSON; {rows} rows of {spec} take up to {most}"
        )
    most = values + besides // 2
    commas = np.count_nonzero(np.frombuffer(view, np.uint8) == ord(","))
    if commas > most:
        raise TooLargeError(
            f"{what} has {commas + 1} values in its JSON; {rows} rows of {spec} take up to {most}"
        )


def tensor_from_json(data: Raw, spec: TensorSpec, rows: int, what: str) -> NDArray[Any]:
    """The tensor (rows, *shape of spec) in JSON `data`, flat or nested, not to be written to.

    Raises InvalidRequestError, which calls it `what`.
    """
    return _array_from_json(data, spec.datatype, (rows, *spec.shape), what)


def _array_from_json(data: Raw, datatype: str, shape: tuple[int, ...], what: str) -> NDArray[Any]:
    nested = _NESTED.match(memoryview(data)) is not None
    decoder = _data_decoder(datatype, len(shape) if nested else 1)
    values = read_json(decoder, data, what)
    try:
        array = np.array(values, DATATYPES[datatype])
    except OverflowError as error:
        raise InvalidRequestError(f"{what} has numbers beyond {datatype}") from error
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


@cache
def _data_decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    """A decoder of lists, `depth` levels deep, of numbers that `datatype` can hold."""
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


def check_finite(values: NDArray[Any], name: str, instead: str) -> None:
    """Raises NotAcceptableError for values that JSON cannot say; `instead` can."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise NotAcceptableError(
            f"output {name!r} has values that are not finite, which JSON cannot say; ask for "
            f"{instead}"
        )

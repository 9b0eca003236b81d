"""The Open Inference Protocol's gRPC messages: protobuf to tensors and back.

A request's tensors are either all typed (a repeated field of each input's `contents`) or all raw
(`raw_input_contents`, one for each input). The response has the form of its request, except that
FP16, for which there is no field, is always raw.
https://github.com/kserve/open-inference-protocol, specification/protocol/inference_grpc.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from parity_models.serving.errors import InvalidRequestError, NotFoundError, TooLargeError
from parity_models.serving.grpc import protos as pb
from parity_models.serving.inference import InferRequest, LazyTensor, request_of
from parity_models.serving.models import Result, ServedModel
from parity_models.serving.protocol import (
    SLICE,
    SLICE_VALUES,
    RequestedOutput,
    RequestParameters,
    TensorParameters,
    Yield,
    array_from_bytes,
    no_wait,
    size_in_bytes,
)
from parity_models.tensors.signature import MAX_TENSORS, TensorSpec, cut, pack
from parity_models.tensors.texts import BYTES, as_texts

SERVICE = pb.POOL.FindServiceByName("inference.GRPCInferenceService")

MODEL_SHA256 = "model-sha256"
"""The trailing metadata of ModelMetadata that names the hash of the deployed model's file."""

DETAILS = "grpc-status-details-bin"
"""The trailing metadata that has a google.rpc.Status."""

FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""The field of InferTensorContents that has the values, by datatype."""

_WIDE = {"int_contents": np.int32, "uint_contents": np.uint32}
"""The types of fields that are wider than some of their datatypes."""

Raws = Sequence[bytes | memoryview]
"""A message's raw_input_contents."""

_NUMBER, _OF_LENGTH = 0, 2
_INPUTS, _RAW_INPUTS, _RAW_OUTPUTS = (field << 3 | _OF_LENGTH for field in (5, 7, 6))
_CONTENTS = _INPUTS
"""Tags of fields: of a request, of a response, and of an input."""

MAX_METADATA_BYTES = 64 * 2**10
"""Bytes that a message may have besides the values of its tensors: names, shapes, parameters."""

_VALUE = 10
"""Maximum bytes of a value in a message."""

_MAX_FIELDS = 1000
"""Fields of a large message, and of each of MAX_TENSORS inputs, that are searched for tensors."""

_Request = TypeVar("_Request", bound=Message)


def decode(
    data: bytes | memoryview, largest: ServedModel | None, max_json: int
) -> tuple[pb.ModelInferRequest, Raws]:
    """Return the message of a request, and its raw_input_contents, which are taken out of it if
    they are large.

    `largest` is the model that takes the largest requests, and `max_json` limits the bytes of typed
    contents. Raises a RequestError for a message that is too large once decoded.
    """
    if largest is None:
        raise NotFoundError("this server has no model that takes requests; load one")
    most = MAX_METADATA_BYTES + _VALUE * largest.max_values
    if len(data) > most:
        raise too_large(len(data), "the largest request that this server takes has", most)
    if len(data) <= min(MAX_METADATA_BYTES, max_json):
        message = read_message(pb.ModelInferRequest, data)
        return message, list(message.raw_input_contents)
    head, raws, values = _without_raws(data)
    rest = sum(map(len, head))
    if rest - values > MAX_METADATA_BYTES:
        raise too_large(rest - values, "besides its tensors it has", MAX_METADATA_BYTES)
    if rest > max_json:
        advice = "send raw_input_contents, or several requests"
        raise too_large(rest, "typed contents have", max_json, advice=advice)
    message = read_message(pb.ModelInferRequest, b"".join(head))
    return message, [*raws, *message.raw_input_contents]


def _without_raws(data: bytes | memoryview) -> tuple[list[memoryview], list[memoryview], int]:
    """Return a message without its raw_input_contents, in pieces; these contents, which protobuf
    would copy; and the bytes of the typed contents."""
    view, begin, values, inputs = memoryview(data), 0, 0, 0
    pieces, raws = list[memoryview](), list[memoryview]()
    for start, tag, content, end in _fields(data, 0, len(data)):
        if tag == _RAW_INPUTS:
            pieces.append(view[begin:start])
            raws.append(view[content:end])
            begin = end
        elif tag == _INPUTS and inputs < MAX_TENSORS:
            inputs += 1
            inner = _fields(data, content, end)
            values += sum(end - begin for _, tag, begin, end in inner if tag == _CONTENTS)
    return [*pieces, view[begin:]], raws, values


def _fields(data: bytes | memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the first fields of a message: where each begins, its tag, and where its content begins
    and ends. Stop at a field that has neither a number nor a length, and after _MAX_FIELDS."""
    for _ in range(_MAX_FIELDS):
        value = 0
        for length, byte in enumerate(data[at + 1 : at + 11], 1):  # after a tag of one byte
            value |= (byte & 0x7F) << 7 * (length - 1)
            if byte < 0x80:
                break
        else:
            return
        tag, content = data[at], at + 1 + length
        if tag & 0x87 == _NUMBER:
            value = 0
        elif tag & 0x87 != _OF_LENGTH:
            return
        if content + value > end:
            return
        yield at, tag, content, content + value
        at = content + value


def read_message(request: type[_Request], data: bytes | memoryview) -> _Request:
    """Decode a message. Raises InvalidRequestError for other bytes."""
    try:
        return request.FromString(data)  # type: ignore[arg-type]  # it takes any buffer
    except DecodeError as error:
        raise InvalidRequestError(
            f"the request cannot be read as {request.DESCRIPTOR.full_name}"
        ) from error


def too_large(
    size: int,
    what: str,
    most: int,
    which: str = "the message",
    advice: str = "send several requests",
) -> TooLargeError:
    """Return the error of a message, or of `which`, that has too many bytes."""
    return TooLargeError(f"{which} has {size} bytes; {what} at most {most}; {advice}")


def read_request(message: pb.ModelInferRequest, raws: Raws, model: ServedModel) -> InferRequest:
    """Return the request in `message`, whose raw contents are `raws`.

    Raises a RequestError (mostly InvalidRequestError) that states the fault and the expectation.
    """
    outputs = [RequestedOutput(each.name, _parameters(each)) for each in message.outputs]
    fitting = model.check_request(
        [(each.name, each.datatype, tuple(each.shape)) for each in message.inputs],
        [each.name for each in outputs],
    )
    model.check_parameters(map(_parameters, message.inputs), outputs)
    spec_of = {each.name: each for each in model.signature.kind(fitting.sizes).input.tensors}
    tensors: dict[str, NDArray[Any] | LazyTensor] = {}
    if raws:
        tensors |= _from_raw(message, raws, spec_of, fitting.rows)
    else:
        for each in message.inputs:
            about = (each.contents, spec_of[each.name], fitting.rows, f"input {each.name!r}")
            tensors[each.name] = partial(read_contents, *about)
    # All outputs have raw contents, or none.
    raw = bool(raws) or any(each.datatype not in FIELDS for each in fitting.outputs)
    redundancy, tenant = (parameter_of(message, name) for name in ("redundancy", "tenant"))
    timeout = parameter_of(message, "timeout")
    if timeout is not None and (type(timeout) is not int or timeout < 0):
        raise InvalidRequestError(
            "the parameter timeout is a number of microseconds, 0 or more, as int64_param"
        )
    parameters = RequestParameters(timeout, raw, redundancy, tenant)
    return request_of(
        model, fitting, tensors, id=message.id or None, parameters=parameters, outputs=outputs
    )


async def read_contents(
    contents: pb.InferTensorContents, spec: TensorSpec, rows: int, what: str, wait: Yield = no_wait
) -> NDArray[Any]:
    """Return the read-only array (rows, *shape of spec) in a tensor's typed contents; large ones
    are read in slices, with a `wait` between them.

    Raises InvalidRequestError, which calls it `what`.
    """
    field, size = FIELDS.get(spec.datatype), rows * prod(spec.shape)
    if field is None:
        raise InvalidRequestError(
            f"{what} is {spec.datatype}, which has no typed contents; send it raw"
        )
    for other, values in contents.ListFields():
        if other.name != field:
            raise InvalidRequestError(
                f"{what} has {len(values)} {other.name}; {spec.datatype} goes into {field}"
            )
    values = getattr(contents, field)
    if len(values) != size:
        raise InvalidRequestError(
            f"{what} has {len(values)} {field}; its shape {[rows, *spec.shape]} takes {size}"
        )
    if spec.is_text:
        try:
            return as_texts(np.array(values, object)).reshape(rows, *spec.shape)
        except ValueError as error:
            raise InvalidRequestError(f"{what} {error}") from error
    array = np.empty(size, spec.dtype)
    for start in range(0, size, SLICE_VALUES):
        if start:
            await wait()
        part = values[start : start + SLICE_VALUES]
        wide = np.fromiter(part, _WIDE.get(field, spec.dtype), len(part))
        array[start : start + len(part)] = narrow = wide.astype(spec.dtype, copy=False)
        if field in _WIDE and not np.array_equal(narrow, wide):
            raise InvalidRequestError(f"{what} has numbers beyond {spec.datatype}")
    array.flags.writeable = False
    return array.reshape(rows, *spec.shape)


def _parameters(tensor: Any) -> TensorParameters | None:
    """Return the parameters of an input or a requested output that are refused, if it has them."""
    if not tensor.parameters:
        return None
    return TensorParameters(
        shared_memory_region="" if "shared_memory_region" in tensor.parameters else None,
        classification=1 if "classification" in tensor.parameters else None,
    )


async def write_response(request: InferRequest, result: Result, wait: Yield = no_wait) -> bytes:
    """Return the ModelInferResponse, with the source of each row, and its agreement, in
    `parameters`."""
    model = request.model
    response = pb.ModelInferResponse(
        model_name=model.name, model_version=model.version, id=request.id or ""
    )
    for name, said in result.parameters.items():
        response.parameters[name].string_param = said
    tensors, raws = cut(result.outputs, model.signature, request.sizes), []
    for spec, raw in request.outputs:
        values = tensors[spec.name]
        output = response.outputs.add(name=spec.name, datatype=spec.datatype, shape=values.shape)
        if raw:
            raws.append(values)
            continue
        flat, contents = values.ravel(), getattr(output.contents, FIELDS[spec.datatype])
        for start in range(0, len(flat), SLICE_VALUES):
            if start:
                await wait()
            part = flat[start : start + SLICE_VALUES].tolist()
            contents.extend([text.encode() for text in part] if spec.is_text else part)
    return await _with_raws(response.SerializeToString(), raws, wait)


async def _with_raws(head: bytes, tensors: Sequence[NDArray[Any]], wait: Yield) -> bytes:
    """Return a response with raw_output_contents, which protobuf would copy more than once. gRPC
    copies a large one again, after another wait."""
    pieces: list[bytes | memoryview] = [head]
    for each in tensors:
        content = memoryview(pack(each))
        size, length = content.nbytes, bytearray([_RAW_OUTPUTS])
        while size > 0x7F:
            length.append(size & 0x7F | 0x80)
            size >>= 7
        length.append(size)
        pieces += [bytes(length), content]
    if sum(each.nbytes for each in tensors) <= SLICE:
        return b"".join(pieces)
    await wait()
    answer = b"".join(pieces)
    await wait()
    return answer


def _from_raw(
    message: pb.ModelInferRequest, contents: Raws, specs: Mapping[str, TensorSpec], rows: int
) -> dict[str, NDArray[Any]]:
    names = [each.name for each in message.inputs]
    if len(contents) != len(names) or any(each.HasField("contents") for each in message.inputs):
        of = f"input {names[0]!r}" if len(names) == 1 else "each input"
        raise InvalidRequestError(
            f"the request has {len(contents)} raw_input_contents; give one for {of} and no "
            "contents, or contents alone"
        )
    tensors = {}
    for name, data in zip(names, contents, strict=True):
        spec = specs[name]
        expected = size_in_bytes(spec, rows)
        if expected not in (None, len(data)):
            raise InvalidRequestError(
                f"raw_input_contents of input {name!r} has {len(data)} bytes; {spec.datatype} of "
                f"shape {[rows, *spec.shape]} takes {expected}"
            )
        tensors[name] = array_from_bytes(data, spec.datatype, (rows, *spec.shape), name)
    return tensors


def parameter_of(message: pb.ModelInferRequest | pb.RepositoryModelLoadRequest, name: str) -> Any:
    """Return the parameter's value, of any type; None if it is missing or empty."""
    if name not in message.parameters:
        return None
    parameter = message.parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)

"""The Open Inference Protocol's gRPC messages: protobuf to tensors and back.

A request's tensors are either all typed (a repeated field of each input's `contents`) or all raw
(`raw_input_contents`, one for each input). The response has the form of its request, except that
FP16, for which there is no field, is always raw.
https://github.com/kserve/open-inference-protocol, specification/protocol/inference_grpc.md.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.models.signature import TensorSpec, cut
from parity_models.scheduling import Source
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.grpc.inference_pb2 import (
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
    RawInferRequest,
    RepositoryModelLoadRequest,
)
from parity_models.serving.models import ServedModel
from parity_models.serving.protocol import (
    SLICE_VALUES,
    InferRequest,
    OutputParameters,
    RequestedOutput,
    RequestMessage,
    RequestParameters,
    TensorMessage,
    TensorParameters,
    Turn,
    Unread,
    array_from_bytes,
    at_once,
    little_endian,
    request_of,
    size_in_bytes,
)

Request = ModelInferRequest | RawInferRequest

_FIELDS = {
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
}
"""The field of InferTensorContents that has the values, by datatype."""

_SHARED = "shared_memory_region"
"""The parameter of a tensor that is in shared memory."""

_WIDE = {"int_contents": np.int32, "uint_contents": np.uint32}
"""The types of fields that hold more than some of their datatypes do."""


def read_request(message: Request, model: ServedModel) -> InferRequest:
    """Return the request in `message`.

    Raises a RequestError (mostly InvalidRequestError) that says what is wrong and what is
    expected.
    """
    raw = len(message.raw_input_contents) > 0
    inputs = [
        TensorMessage(each.name, each.datatype, tuple(each.shape), _storage(each))
        for each in message.inputs
    ]
    outputs = [
        RequestedOutput(each.name, OutputParameters(None, *_asked_of(each)))
        for each in message.outputs
    ]
    fitting = model.check_request(inputs, outputs)
    spec_of = {each.name: each for each in model.signature.kind(fitting.sizes).input.tensors}
    tensors: dict[str, NDArray[Any] | Unread] = {}
    if raw or isinstance(message, RawInferRequest):
        tensors |= _from_raw(message, spec_of, fitting.rows)
    else:
        for each in message.inputs:
            about = (each.contents, spec_of[each.name], fitting.rows, f"input {each.name!r}")
            tensors[each.name] = partial(read_contents, *about)
    # Raw contents are all outputs' or none's.
    raw = raw or any(each.datatype not in _FIELDS for each in fitting.outputs)
    redundancy, tenant = (parameter_of(message, name) for name in ("redundancy", "tenant"))
    parameters = RequestParameters(_timeout(message), raw, redundancy, tenant)
    whole = RequestMessage(tuple(inputs), message.id or None, parameters, tuple(outputs) or None)
    return request_of(whole, model, fitting, tensors)


async def write_response(
    request: InferRequest,
    outputs: NDArray[Any],
    sources: Sequence[Source],
    turn: Turn = at_once,
) -> ModelInferResponse:
    """Return the answer: predictions (n, ...) of one kind, and in `parameters` the source of each
    row."""
    model = request.model
    response = ModelInferResponse(
        model_name=model.name, model_version=model.version, id=request.id or ""
    )
    for name, said in model.parameters(sources).items():
        response.parameters[name].string_param = said
    tensors = cut(outputs, model.signature, request.sizes)
    for spec, raw in request.outputs:
        values = tensors[spec.name]
        output = response.outputs.add(name=spec.name, datatype=spec.datatype, shape=values.shape)
        if raw:
            response.raw_output_contents.append(little_endian(values).tobytes())
            continue
        flat, contents = values.ravel(), getattr(output.contents, _FIELDS[spec.datatype])
        for start in range(0, len(flat), SLICE_VALUES):
            if start:
                await turn()
            contents.extend(flat[start : start + SLICE_VALUES].tolist())
    return response


def _from_raw(
    message: Request, specs: Mapping[str, TensorSpec], rows: int
) -> dict[str, NDArray[Any]]:
    contents = message.raw_input_contents
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
        if len(data) != expected:
            raise InvalidRequestError(
                f"raw_input_contents of input {name!r} has {len(data)} bytes; {spec.datatype} of "
                f"shape {[rows, *spec.shape]} takes {expected}"
            )
        tensors[name] = array_from_bytes(data, spec.datatype, (rows, *spec.shape), name)
    return tensors


async def read_contents(
    contents: InferTensorContents, spec: TensorSpec, rows: int, what: str, turn: Turn = at_once
) -> NDArray[Any]:
    """Do as tensor_from_contents does, large tensors in slices, each in its `turn`."""
    values, size = _values_of(contents, spec, rows, what), rows * prod(spec.shape)
    array = np.empty(size, spec.dtype)
    for start in range(0, size, SLICE_VALUES):
        if start:
            await turn()
        end = start + SLICE_VALUES
        array[start:end] = _numbers(values[start:end], spec, what)
    array.flags.writeable = False
    return array.reshape(rows, *spec.shape)


def tensor_from_contents(
    contents: InferTensorContents, spec: TensorSpec, rows: int, what: str
) -> NDArray[Any]:
    """Return the tensor (rows, *shape of spec) in a tensor's typed contents, not to be written to.

    Raises InvalidRequestError, which calls it `what`.
    """
    array = _numbers(_values_of(contents, spec, rows, what), spec, what)
    array.flags.writeable = False
    return array.reshape(rows, *spec.shape)


def _values_of(contents: InferTensorContents, spec: TensorSpec, rows: int, what: str) -> Any:
    field = _FIELDS.get(spec.datatype)
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
    expected = rows * prod(spec.shape)
    if len(values) != expected:
        raise InvalidRequestError(
            f"{what} has {len(values)} {field}; its shape {[rows, *spec.shape]} takes {expected}"
        )
    return values


def _numbers(values: Sequence[float], spec: TensorSpec, what: str) -> NDArray[Any]:
    field = _FIELDS[spec.datatype]
    wide = np.fromiter(values, _WIDE.get(field, spec.dtype), len(values))
    array = wide.astype(spec.dtype, copy=False)
    if field in _WIDE and not np.array_equal(array, wide):
        raise InvalidRequestError(f"{what} has numbers beyond {spec.datatype}")
    return array


def _storage(tensor: Any) -> TensorParameters | None:
    return TensorParameters(shared_memory_region="") if _SHARED in tensor.parameters else None


def _asked_of(output: Any) -> tuple[str | None, int | None]:
    """Return the shared memory and the classes that a request wants of an output."""
    parameters = output.parameters
    return "" if _SHARED in parameters else None, 1 if "classification" in parameters else None


def _timeout(message: Request) -> int | None:
    """Return the parameter timeout, in microseconds."""
    if "timeout" not in message.parameters:
        return None
    timeout: object = parameter_of(message, "timeout")
    if type(timeout) is not int or timeout < 0:
        raise InvalidRequestError(
            "the parameter timeout is a number of microseconds, 0 or more, as int64_param"
        )
    return timeout


def parameter_of(message: Request | RepositoryModelLoadRequest, name: str) -> Any:
    """Return the parameter's value, of whatever type it has; None if it is not there or empty."""
    if name not in message.parameters:
        return None
    parameter = message.parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)

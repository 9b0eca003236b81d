"""The V1 prediction protocol's bodies: `instances` in, `predictions` out.

TensorFlow Serving's REST API (https://www.tensorflow.org/tfx/serving/api_rest), which KServe calls
V1 and Vertex AI asks of containers. A request has a row for each query, `{"instances": [ROW, ...]}`
or `{"instances": [{"input": ROW}, ...]}`, or all rows at once, `{"inputs": TENSOR}` or
`{"inputs": {"input": TENSOR}}`, which is answered by `outputs`. Inputs of a model that has several
are named, and so are its outputs then.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw, Struct

from parity_models.models.named_inputs import cut, padded
from parity_models.models.signature import Tensor
from parity_models.serving.errors import InvalidRequestError, NotAcceptableError
from parity_models.serving.in_flight import Result
from parity_models.serving.rest.json_tensors import (
    check_json_size,
    read_json,
    short_value,
    tensor_from_json,
)
from parity_models.serving.rest.messages import Response, json_response
from parity_models.serving.rest.protocol import NO_DATA, RequestParameters
from parity_models.serving.served_model import (
    AskedOutput,
    GivenTensor,
    InferRequest,
    ServedModel,
)
from parity_models.serving.tenancy import exact_from, tenant_from

SOURCE, AGREEMENT = b"x-parm-source", b"x-parm-agreement"
"""Headers with what the other protocol says in its `parameters`: V1 has no place for it."""


class PredictMessage(Struct):
    """A predict request; `parameters` are those of an infer request."""

    instances: Raw = NO_DATA
    inputs: Raw = NO_DATA
    parameters: RequestParameters | None = None


_PREDICT = msgspec.json.Decoder(PredictMessage)
_ROWS = msgspec.json.Decoder(list[Raw])
_NAMED_ROWS = msgspec.json.Decoder(list[dict[str, Raw]])
_NAMED = msgspec.json.Decoder(dict[str, Raw])


def read_predict(body: bytes | bytearray, model: ServedModel) -> tuple[InferRequest, bool]:
    """What a body asks, and whether its rows came as `instances`.

    Raises a RequestError that says what is wrong and what is expected.
    """
    whole = memoryview(body)
    check_json_size(whole, model.signature.largest.input, model.max_rows, "the request")
    message = read_json(_PREDICT, whole, "the request")
    by_row = bool(memoryview(message.instances))
    if by_row == bool(memoryview(message.inputs)):
        raise InvalidRequestError(
            "a request has either instances, a list of rows, or inputs, all rows as one tensor"
        )
    data = _of_rows(message.instances, model) if by_row else _of_tensors(message.inputs, model)
    given = [_given(each, data[each.name]) for each in model.signature.inputs]
    fitting = model.check_request(given, ())
    tensors = {}
    for spec in model.signature.kind(fitting.sizes).input.tensors:
        check_json_size(data[spec.name], spec, fitting.rows, "the request")
        what = "instances" if by_row else "inputs"
        tensors[spec.name] = tensor_from_json(data[spec.name], spec, fitting.rows, what)
    parameters = message.parameters or RequestParameters()
    return InferRequest(
        None,
        padded(tensors, model.signature, fitting.sizes),
        parameters.timeout / 1e6 if parameters.timeout else None,
        [AskedOutput(each, False) for each in fitting.outputs],
        exact_from(short_value(parameters.redundancy, "redundancy"))
        or model.is_exact(fitting.outputs),
        tenant_from(short_value(parameters.tenant, "tenant")),
        fitting.sizes,
    ), by_row


def predict_response(
    model: ServedModel, asked: InferRequest, answers: Result, by_row: bool
) -> Response:
    """The answer with these predictions.

    Raises NotAcceptableError for values that JSON cannot say.
    """
    tensors = cut(answers.outputs, model.signature, asked.sizes)
    for name, values in tensors.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise NotAcceptableError(
                f"output {name!r} has values that are not finite, which JSON cannot say; "
                "ask for binary data over the Open Inference Protocol"
            )
    said = model.parameters(answers.sources)
    headers = [(SOURCE, said["source"].encode())]
    if "agreement" in said:
        headers.append((AGREEMENT, said["agreement"].encode()))
    lists = {name: values.tolist() for name, values in tensors.items()}
    content: Any = lists
    if len(lists) == 1:
        (content,) = lists.values()
    elif by_row:
        rows = zip(*lists.values(), strict=True)
        content = [dict(zip(lists, row, strict=True)) for row in rows]
    return json_response({"predictions" if by_row else "outputs": content}, headers=tuple(headers))


def status_response(model: ServedModel, ready: bool) -> Response:
    """The model's state, as KServe and as TensorFlow Serving say it."""
    state = "AVAILABLE" if ready else "UNAVAILABLE"
    version = {
        "version": model.version,
        "state": state,
        "status": {"error_code": "OK" if ready else "UNAVAILABLE", "error_message": ""},
    }
    about = {"name": model.name, "ready": ready, "model_version_status": [version]}
    return json_response(about, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)


def _of_rows(instances: Raw, model: ServedModel) -> dict[str, Raw]:
    """The rows of each input as one array, whether they are named or not."""
    rows = read_json(_ROWS, instances, "instances")
    if not rows or not _is_object(rows[0]):
        return _the_input(instances, model)
    named = read_json(_NAMED_ROWS, instances, "instances")
    for row in named:
        _check_names(row, model)
    return {
        name: Raw(b"[" + b",".join(bytes(memoryview(row[name])) for row in named) + b"]")
        for name in named[0]
    }


def _of_tensors(inputs: Raw, model: ServedModel) -> dict[str, Raw]:
    if not _is_object(inputs):
        return _the_input(inputs, model)
    named = read_json(_NAMED, inputs, "inputs")
    _check_names(named, model)
    return named


def _is_object(value: Raw) -> bool:
    return bytes(memoryview(value)[:1]) == b"{"


def _the_input(data: Raw, model: ServedModel) -> dict[str, Raw]:
    """The data of a model's only input, which needs no name."""
    first, *others = model.signature.inputs
    if others:
        names = ", ".join(each.name for each in model.signature.inputs)
        raise InvalidRequestError(f"model {model.name!r} has the inputs {names}; name each")
    return {first.name: data}


def _check_names(named: Mapping[str, Raw], model: ServedModel) -> None:
    names = [each.name for each in model.signature.inputs]
    if sorted(named) != sorted(names):
        has = f"the one input {names[0]!r}" if len(names) == 1 else f"the inputs {sorted(names)}"
        raise InvalidRequestError(
            f"the inputs of a row are {sorted(named)}; model {model.name!r} has {has}"
        )


def _given(tensor: Tensor, data: Raw) -> GivenTensor:
    """What the data say of an input: its dynamic axes are as long as the first lists there."""
    rows = read_json(_ROWS, data, "the rows")
    shape = [len(rows)]
    first: Any = rows[0] if rows else None
    for each in tensor.shape:
        if isinstance(each, int) and not tensor.axes:
            shape.append(each)
            continue
        inner = [] if first is None else read_json(_ROWS, first, f"the data of {tensor.name!r}")
        shape.append(len(inner))
        first = inner[0] if inner else None
    return GivenTensor(tensor.name, tensor.datatype, shape, False)

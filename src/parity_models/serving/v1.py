"""The V1 prediction protocol: `instances` in, `predictions` out, all in JSON.

TensorFlow Serving's REST API (https://www.tensorflow.org/tfx/serving/api_rest), which KServe calls
V1 and Vertex AI asks of containers. A request has a row for each query, `{"instances": [ROW, ...]}`
or `{"instances": [{"input": ROW}, ...]}`, or all rows at once, `{"inputs": TENSOR}` or
`{"inputs": {"input": TENSOR}}`, which is answered by `outputs`. Inputs of a model that has several
are named, and so are its outputs then. Servers call `read_predict` and `write_predictions`, clients
`write_predict` and `read_predictions`.
"""

import re
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Raw, Struct
from numpy.typing import NDArray

from parity_models.models.signature import Tensor, cut
from parity_models.serving.errors import InvalidRequestError, TooLargeError
from parity_models.serving.protocol import (
    JSON_OBJECT,
    NO_DATA,
    SLICE_VALUES,
    InferRequest,
    RequestMessage,
    RequestParameters,
    TensorMessage,
    Turn,
    Unread,
    at_once,
    check_finite,
    check_json_size,
    json_list,
    read_array,
    read_json,
    request_of,
)
from parity_models.serving.refusals import Refused

if TYPE_CHECKING:
    from parity_models.serving.frontend import Result
    from parity_models.serving.models import ServedModel


class _Predict(Struct):
    """A predict request; `parameters` are those of an infer request."""

    instances: Raw = NO_DATA
    inputs: Raw = NO_DATA
    parameters: RequestParameters | None = None


class _Predictions(Struct):
    predictions: Raw


class _Version(Struct):
    state: str = ""


class _Status(Struct):
    """A model's status, as KServe (`ready`, once as a string) or TensorFlow Serving says it."""

    ready: bool | str | None = None
    model_version_status: tuple[_Version, ...] = ()


_PREDICT = msgspec.json.Decoder(_Predict)
_PREDICTIONS = msgspec.json.Decoder(_Predictions)
_STATUS = msgspec.json.Decoder(_Status)
_ROWS = msgspec.json.Decoder(list[Raw])
_NAMED_ROWS = msgspec.json.Decoder(list[dict[str, Raw]])
_NAMED = msgspec.json.Decoder(dict[str, Raw])
_OBJECTS = re.compile(rb"\[\s*\{")

# Servers


def read_predict(body: bytes | bytearray, model: "ServedModel") -> InferRequest:
    """Read a request's body but for its numbers. Raises a RequestError."""
    if len(body) > JSON_OBJECT:
        check_json_size(body, model)
    message = read_json(_PREDICT, memoryview(body), "the request")
    by_row = bool(message.instances)
    if by_row == bool(message.inputs):
        raise InvalidRequestError(
            "a request has either instances, a list of rows, or inputs, all rows as one tensor"
        )
    data = _data_of(message.instances or message.inputs, by_row, model)
    inputs = tuple(_message(each, data[each.name]) for each in model.signature.inputs)
    fitting = model.check_request(inputs, ())
    tensors: dict[str, NDArray[Any] | Unread] = {}
    for each in model.signature.kind(fitting.sizes).input.tensors:
        shape, what = (fitting.rows, *each.shape), f"the data of input {each.name!r}"
        tensors[each.name] = partial(read_array, data[each.name], each.datatype, shape, what)
    if message.parameters is not None:
        message.parameters.binary_data_output = None
    whole = RequestMessage(inputs, parameters=message.parameters)
    return request_of(whole, model, fitting, tensors, by_row=by_row)


async def write_predictions(asked: InferRequest, answers: "Result", turn: Turn = at_once) -> bytes:
    """Return the answer in JSON.

    Raises NotAcceptableError for values that JSON cannot say.
    """
    model = asked.model
    outputs = cut(answers.outputs, model.signature, asked.sizes)
    for name, values in outputs.items():
        check_finite(values, name, "binary data over the Open Inference Protocol")

    def part(rows: slice) -> list[Any]:
        lists = {name: values[rows].tolist() for name, values in outputs.items()}
        return next(iter(lists.values())) if len(lists) == 1 else _by_row(lists)

    step = 1 + SLICE_VALUES * asked.count // (1 + sum(each.size for each in outputs.values()))
    content: Any = {}
    if len(outputs) == 1 or asked.by_row:
        content = await json_list(asked.count, step, part, turn)
    else:
        for name, values in outputs.items():
            column = partial(lambda values, rows: values[rows].tolist(), values)
            content[name] = await json_list(asked.count, step, column, turn)
    return msgspec.json.encode({"predictions" if asked.by_row else "outputs": content})


def status_of(model: "ServedModel", ready: bool) -> dict[str, Any]:
    """Return the model's state, as KServe and as TensorFlow Serving say it."""
    version = {
        "version": model.version,
        "state": "AVAILABLE" if ready else "UNAVAILABLE",
        "status": {"error_code": "OK" if ready else "UNAVAILABLE", "error_message": ""},
    }
    return {"name": model.name, "ready": ready, "model_version_status": [version]}


def _data_of(given: Raw, by_row: bool, model: "ServedModel") -> dict[str, Raw]:
    """Return the data of each input, all its rows as one array, whether inputs are named or not."""
    names = [each.name for each in model.signature.inputs]
    if by_row:
        if len(memoryview(given)) > JSON_OBJECT and bytes(given).count(b"{") > model.max_rows:
            raise TooLargeError(
                f"the request has more than the {model.max_rows} rows that this server takes at "
                "once (max_queue); send several requests",
                why=Refused.MAX_QUEUE,
            )
        named = _named_rows(given, "instances")
    else:
        named = [read_json(_NAMED, given, "inputs")] if _is_object(given) else None
    if named is None:
        if len(names) > 1:
            raise InvalidRequestError(
                f"model {model.name!r} has the inputs {', '.join(names)}; name each"
            )
        return {names[0]: given}
    has = f"the one input {names[0]!r}" if len(names) == 1 else f"the inputs {sorted(names)}"
    for row in named:
        if sorted(row) != sorted(names):
            raise InvalidRequestError(
                f"the inputs of a row are {sorted(row)}; model {model.name!r} has {has}"
            )
    return {name: _column(named, name) for name in names} if by_row else named[0]


def _message(tensor: Tensor, data: Raw) -> TensorMessage:
    """Return an input of these data: its dynamic axes are as long as the first lists there."""
    fixed = tensor.fixed
    if fixed is not None and len(memoryview(data)) > JSON_OBJECT:  # rows take long to tell apart
        size, values = prod(fixed.shape), bytes(data).count(b",") + 1
        if values % size:
            raise InvalidRequestError(
                f"{tensor.name!r} has {values} values; a row of shape {list(fixed.shape)} takes "
                f"{size}"
            )
        shape = (values // size, *fixed.shape)
        return TensorMessage(tensor.name, tensor.datatype, shape, data=data)
    rows = read_json(_ROWS, data, "the rows")
    sizes = [len(rows)]
    first: Any = rows[0] if rows else None
    for each in tensor.shape:
        if isinstance(each, int) and not tensor.axes:
            sizes.append(each)
            continue
        inner = [] if first is None else read_json(_ROWS, first, f"the data of {tensor.name!r}")
        sizes.append(len(inner))
        first = inner[0] if inner else None
    return TensorMessage(tensor.name, tensor.datatype, tuple(sizes), data=data)


# Clients


def says_not_ready(text: bytes) -> bool:
    """Return whether a model's status says that it is not ready.

    Raises InvalidRequestError for another message.
    """
    status = read_json(_STATUS, memoryview(text), "the status")
    states = [each.state for each in status.model_version_status]
    return str(status.ready).lower() == "false" or (bool(states) and "AVAILABLE" not in states)


def write_predict(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the body of a request for the rows of these tensors (n, *shape), by input.

    Raises ValueError for values that JSON cannot say.
    """
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(
                f"input {name!r} has values that are not finite, which JSON, and so V1, cannot say"
            )
    lists = {name: array.tolist() for name, array in tensors.items()}
    instances = next(iter(lists.values())) if len(lists) == 1 else _by_row(lists)
    return msgspec.json.encode({"instances": instances})


def read_predictions(body: bytes, outputs: list[str]) -> dict[str, Raw]:
    """Return the rows of each output in an answer as one array, whether they are named or not.

    Raises InvalidRequestError for another message.
    """
    predictions = read_json(_PREDICTIONS, memoryview(body), "the answer").predictions
    named = _named_rows(predictions, "predictions")
    if named is None and len(outputs) == 1:
        return {outputs[0]: predictions}
    if named is None:
        named = read_json(_NAMED_ROWS, predictions, "predictions")
    for name in outputs:
        if not all(name in row for row in named):
            raise InvalidRequestError(f"there is no output {name!r}")
    return {name: _column(named, name) for name in outputs}


# Rows that are objects


def _named_rows(rows: Raw, what: str) -> list[dict[str, Raw]] | None:
    """Return the rows, if they are objects; None if they are not."""
    return read_json(_NAMED_ROWS, rows, what) if _OBJECTS.match(memoryview(rows)) else None


def _is_object(value: Raw) -> bool:
    return bytes(memoryview(value)[:1]) == b"{"


def _column(rows: list[dict[str, Raw]], name: str) -> Raw:
    return Raw(b"[" + b",".join(bytes(memoryview(row[name])) for row in rows) + b"]")


def _by_row(lists: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]

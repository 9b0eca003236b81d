"""Upstreams over V1 of KServe's protocol: `instances` in, `predictions` out, all in JSON.

TensorFlow Serving's REST API (https://www.tensorflow.org/tfx/serving/api_rest), which Vertex AI
asks of containers too. A request has a row for each query, {"instances": [ROW, ...]}; where a model
has several inputs or outputs, a row is an object of them by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw, Struct
from numpy.typing import NDArray

from parity_models.models.signature import Kind
from parity_models.serving.client import model_path
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.protocol import OutputTensor, answer_limit, read_json
from parity_models.serving.remote.clients import RestClient, Tensors, faults
from parity_models.serving.remote.remote_engine import (
    Fault,
    UnitError,
    UpstreamError,
    UpstreamModel,
)


class _Predictions(Struct):
    predictions: list[Raw]


class _Version(Struct):
    state: str = ""


class _Status(Struct):
    """A model's status, as KServe (`ready`, once as a string) or TensorFlow Serving says it."""

    ready: bool | str | None = None
    model_version_status: tuple[_Version, ...] = ()


_PREDICTIONS = msgspec.json.Decoder(_Predictions)
_STATUS = msgspec.json.Decoder(_Status)
_NAMED_ROW = msgspec.json.Decoder(dict[str, Raw])


class V1Client(RestClient):
    """An upstream over V1, where only a prediction can show whether its model is the right one."""

    async def _check_ready(self, model: UpstreamModel) -> None:
        path = _path(model)
        with faults(path):
            text, _ = await self._client.ask("GET", path)
            if _says_not_ready(text):
                raise UpstreamError(Fault.NOT_READY, f"says that {model} is not ready")

    async def _describe(self, model: UpstreamModel) -> None:
        """Ask nothing: V1 describes no models."""

    async def _ask(
        self, model: UpstreamModel, kind: Kind, tensors: Tensors, headers: Mapping[str, str]
    ) -> Sequence[OutputTensor]:
        body = write_predict(tensors)
        specs, rows = kind.output.tensors, len(next(iter(tensors.values())))
        values = kind.output.row_values + sum(len(each.name.encode()) + 7 for each in specs)
        with faults():
            answer, _ = await self._client.ask(
                "POST",
                f"{_path(model)}:predict",
                body,
                {**headers, "Content-Type": "application/json"},
                limit=answer_limit(rows * values),
            )
            columns = read_predictions(answer, [each.name for each in specs])
        return [
            OutputTensor(each.name, each.datatype, (rows, *each.shape), columns[each.name])
            for each in specs
        ]


def _path(model: UpstreamModel) -> str:
    return model_path(model.name, model.version).replace("/v2/", "/v1/", 1)


def _says_not_ready(text: bytes) -> bool:
    """Return whether a model's status says that it is not ready.

    Raises InvalidRequestError for another message.
    """
    status = read_json(_STATUS, memoryview(text), "the status")
    states = [each.state for each in status.model_version_status]
    return str(status.ready).lower() == "false" or (bool(states) and "AVAILABLE" not in states)


def write_predict(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the body of a request for the rows of these tensors (n, *shape), by input.

    Raises UnitError for values that JSON cannot say.
    """
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UnitError(
                f"cannot be asked: input {name!r} has values that are not finite, which JSON, and "
                "so V1, cannot say"
            )
    columns = [array.tolist() for array in tensors.values()]
    rows: list[Any] = columns[0]
    if len(columns) > 1:
        rows = [dict(zip(tensors, row, strict=True)) for row in zip(*columns, strict=True)]
    return msgspec.json.encode({"instances": rows})


def read_predictions(body: bytes, outputs: list[str]) -> dict[str, Raw]:
    """Return the rows of each output in an answer as one array, whether they are named or not.

    Raises InvalidRequestError for another message.
    """
    rows = read_json(_PREDICTIONS, memoryview(body), "the answer").predictions
    if len(outputs) == 1 and not any(bytes(row).startswith(b"{") for row in rows):
        return {outputs[0]: _array(rows)}
    named = [read_json(_NAMED_ROW, row, "a prediction") for row in rows]
    for name in outputs:
        if not all(name in row for row in named):
            raise InvalidRequestError(f"there is no output {name!r}")
    return {name: _array([row[name] for row in named]) for name in outputs}


def _array(values: Sequence[Raw]) -> Raw:
    return Raw(b"[%b]" % b",".join(map(bytes, values)))

"""An upstream over the V1 prediction protocol: `instances` in, `predictions` out, all in JSON.

TensorFlow Serving's REST API, KServe's V1, and what Vertex AI asks of containers. A row of a model
with one input goes as it is, one of several inputs as an object by their names. The protocol has no
way to ask what a model takes and gives: a prediction alone tells whether it is the right one.
"""

from collections.abc import Mapping, Sequence
from ssl import SSLContext
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np
from msgspec import Raw, Struct
from numpy.typing import NDArray

from parity_models.models.signature import Kind, Signature
from parity_models.models.tensor import TensorSpec
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.http.answer_size import JSON_VALUE, MAX_HEAD
from parity_models.serving.remote.http import HttpConnections, decode
from parity_models.serving.remote.upstream import (
    Fault,
    NeverToldError,
    UnitError,
    UpstreamError,
    UpstreamModel,
    tensors_of,
)
from parity_models.serving.rest.json_tensors import read_json, tensor_from_json

_HEADERS = {"Content-Type": "application/json"}


class _Version(Struct):
    state: str = ""


class _Status(Struct):
    """A model's status, as KServe (`ready`) or TensorFlow Serving says it; the former has written
    a boolean as a string."""

    ready: bool | str | None = None
    model_version_status: tuple[_Version, ...] = ()


class _Predictions(Struct):
    predictions: Raw


_STATUS = msgspec.json.Decoder(_Status)
_PREDICTIONS = msgspec.json.Decoder(_Predictions)
_ROWS = msgspec.json.Decoder(list[Raw])
_NAMED_ROWS = msgspec.json.Decoder(list[dict[str, Raw]])


class V1Client:
    """Connections to the server at `url`, made on the event loop that they are used on."""

    abandons = False

    def __init__(self, url: str, tls: SSLContext) -> None:
        self._http = HttpConnections(url, tls)

    async def check_ready(self, model: UpstreamModel) -> None:
        text, _ = await self._http.ask("GET", _path(model), MAX_HEAD)
        status = decode(_STATUS, text)
        states = [each.state for each in status.model_version_status]
        if str(status.ready).lower() == "false" or (states and "AVAILABLE" not in states):
            raise UpstreamError(Fault.NOT_READY, f"says that {model} is not ready")

    async def metadata(self, model: UpstreamModel) -> None:
        return None

    async def load(self, model: UpstreamModel) -> None:
        raise NeverToldError(f"has no {model} that is ready, and V1 has no way to have it loaded")

    async def infer(
        self, model: UpstreamModel, rows: Sequence[NDArray[Any]], headers: Mapping[str, str]
    ) -> NDArray[Any]:
        kind, body = instances_of(rows, model.signature)
        limit = MAX_HEAD + len(rows) * _row_limit(kind)
        path = f"{_path(model)}:predict"
        answer, _ = await self._http.ask("POST", path, limit, body, {**headers, **_HEADERS})
        return predictions_from(answer, kind, len(rows))

    async def close(self) -> None:
        await self._http.close()


def instances_of(rows: Sequence[NDArray[Any]], signature: Signature) -> tuple[Kind, bytes]:
    """The kind of some queries, and the body of the request that asks them.

    Raises UnitError for values that JSON cannot say.
    """
    kind, tensors = tensors_of(rows, signature)
    lists = {}
    for spec, values in tensors.items():
        if spec.dtype.kind == "f" and not all(np.isfinite(row).all() for row in values):
            raise UnitError(
                f"cannot be asked: input {spec.name!r} has values that are not finite, which JSON, "
                "and so V1, cannot say"
            )
        lists[spec.name] = [row.tolist() for row in values]
    instances: list[Any] = next(iter(lists.values()))
    if len(lists) > 1:
        each_row = zip(*lists.values(), strict=True)
        instances = [dict(zip(lists, row, strict=True)) for row in each_row]
    return kind, msgspec.json.encode({"instances": instances})


def predictions_from(answer: bytes, kind: Kind, rows: int) -> NDArray[Any]:
    """The predictions in an answer: (rows, *output shape).

    Raises UpstreamError for what cannot be an answer, and UnitError for values that are none of
    the output's, which may be the unit's own fault.
    """
    predictions = decode(_PREDICTIONS, answer).predictions
    try:
        data = _by_output(predictions, kind)
    except InvalidRequestError as error:
        raise UpstreamError(Fault.GARBAGE, f"answered what cannot be read: {error}") from error
    return kind.output.join(
        {spec.name: _tensor(data[spec.name], spec, rows) for spec in kind.output.tensors}
    )


def _path(model: UpstreamModel) -> str:
    path = f"/v1/models/{quote(model.name, safe='')}"
    if model.version is None:
        return path
    return f"{path}/versions/{quote(model.version, safe='')}"


def _row_limit(kind: Kind) -> int:
    """Bytes that a row of an answer may have."""
    names = sum(len(spec.name.encode()) for spec in kind.output.tensors)
    return JSON_VALUE * (kind.output.row_values + len(kind.output.tensors)) + 6 * names


def _by_output(predictions: Raw, kind: Kind) -> Mapping[str, Raw]:
    """The rows of each output as one array, whether they are named or not."""
    rows = read_json(_ROWS, predictions, "predictions")
    first, *others = (spec.name for spec in kind.output.tensors)
    if not others and not (rows and bytes(memoryview(rows[0])[:1]) == b"{"):
        return {first: predictions}
    named = read_json(_NAMED_ROWS, predictions, "predictions")
    found = {}
    for name in (first, *others):
        if not all(name in row for row in named):
            raise UpstreamError(Fault.GARBAGE, f"answered without output {name!r}")
        found[name] = Raw(b"[" + b",".join(bytes(memoryview(row[name])) for row in named) + b"]")
    return found


def _tensor(data: Raw, spec: TensorSpec, rows: int) -> NDArray[Any]:
    count = len(read_json(_ROWS, data, "predictions"))
    if count != rows:
        raise UpstreamError(Fault.GARBAGE, f"answered {count} predictions, where {rows} were due")
    try:
        return tensor_from_json(data, spec, rows, f"the data of output {spec.name!r}")
    except InvalidRequestError as error:
        raise UnitError(f"answered what is no {spec.datatype}: {error}") from error

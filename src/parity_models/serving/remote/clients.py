"""Clients of upstreams over HTTP, for V2 and V1.

V1 is TensorFlow Serving's REST API (https://www.tensorflow.org/tfx/serving/api_rest), which Vertex
AI asks of containers too. A request has a row for each query, {"instances": [ROW, ...]}; if a model
has several inputs or outputs, a row is an object with each by name.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw, Struct
from numpy.typing import NDArray

from parity_models.serving.client import (
    Client,
    Credentials,
    MalformedAnswerError,
    StatusError,
    UnreachableError,
    model_path,
)
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.protocol import (
    OutputTensor,
    ServerMetadata,
    answer_limit,
    read_json,
    read_response,
    write_request,
)
from parity_models.serving.remote.upstream import (
    BusyError,
    Fault,
    Tensors,
    Token,
    UnitError,
    UpstreamClient,
    UpstreamError,
    UpstreamModel,
    give_token,
    unreadable,
)
from parity_models.serving.request_log import REQUEST_ID
from parity_models.tensors.signature import Kind

_AWAY = (502, 503, 504)
"""Statuses of a server that is starting or stopping, or of a gateway without a server behind it."""


@contextmanager
def faults(path: str = "") -> Iterator[None]:
    """Translate the errors of a request to `path`; without one, of a unit's request."""
    try:
        yield
    except StatusError as error:
        status, text = error.status, error.text
        if status == 429 or (status == 503 and not path):
            raise BusyError(f"is busy ({status}): {text}", error.retry_after) from error
        if status in _AWAY:
            raise UpstreamError(Fault.NOT_READY, f"is not ready ({status}): {text}") from error
        if path:
            text = f"answered {status} to {path}: {text}{give_token() if status == 401 else ''}"
            raise UpstreamError(Fault.MISMATCH, text) from error
        raise UnitError(f"answered {status}: {text}") from error
    except (MalformedAnswerError, InvalidRequestError) as error:
        raise unreadable(error) from error
    except UnreachableError as error:
        if error.exhausted:
            raise BusyError(f"cannot be connected to for now: {error}") from error
        raise UpstreamError(Fault.UNREACHABLE, f"cannot be reached: {error}") from error


class RestClient(UpstreamClient):
    """An upstream over V2: binary tensor data both ways, or JSON if it reads nothing else."""

    def __init__(self, token: Token | None, url: str, credentials: Credentials) -> None:
        super().__init__(token)
        self._client = Client(url, credentials, retries=True)

    async def close(self) -> None:
        await self._client.close()

    def _authorize(self, token: str) -> None:
        self._client.authorize(token)

    async def _check_ready(self, model: UpstreamModel) -> None:
        path = f"{model_path(model.name, model.version)}/ready"
        with faults(path):
            await self._client.ask("GET", path)

    async def _server(self) -> ServerMetadata:
        with faults("/v2"):
            return await self._client.server()

    async def _sha256(self, model: UpstreamModel) -> str | None:
        with faults(model_path(model.name, model.version)):
            return (await self._client.model(model.name, model.version)).model_sha256

    async def _ask(
        self, model: UpstreamModel, kind: Kind, tensors: Tensors, headers: Mapping[str, str]
    ) -> Sequence[OutputTensor]:
        known = model.prediction is not None  # else the output's name is not
        outputs = [spec.name for spec in kind.output.tensors if known]
        id = headers.get(REQUEST_ID)
        body, own = write_request(tensors, outputs, id=id, binary=self.binary)
        path = f"{model_path(model.name, model.version)}/infer"
        limit = answer_limit(_rows(tensors) * kind.output.row_values)
        with faults():
            answer, length = await self._client.ask(
                "POST", path, body, {**headers, **own}, limit=limit
            )
            found = read_response(answer, length)
            self._answered(model, found.model_version)
            return found.outputs


# V1


class _Predictions(Struct):
    predictions: list[Raw]


class _Version(Struct):
    state: str = ""


class _Status(Struct):
    """A model's status from KServe (`ready`, formerly a string) or TensorFlow Serving."""

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
            status = read_json(_STATUS, memoryview(text), "the status")
        states = [each.state for each in status.model_version_status]
        if str(status.ready).lower() == "false" or (states and "AVAILABLE" not in states):
            raise UpstreamError(Fault.NOT_READY, f"says that {model} is not ready")

    async def _describe(self, model: UpstreamModel) -> None:
        """Ask nothing: V1 describes no models."""

    async def _ask(
        self, model: UpstreamModel, kind: Kind, tensors: Tensors, headers: Mapping[str, str]
    ) -> Sequence[OutputTensor]:
        body = write_predict(tensors)
        specs, rows = kind.output.tensors, _rows(tensors)
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


def write_predict(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the body of a request for the rows of these tensors (n, *shape), by input.

    Raises UnitError for values that JSON cannot express.
    """
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UnitError(
                f"cannot be asked: input {name!r} has values that are not finite, which JSON, and "
                "so V1, cannot express"
            )
    columns = [array.tolist() for array in tensors.values()]
    rows: list[Any] = columns[0]
    if len(columns) > 1:
        rows = [dict(zip(tensors, row, strict=True)) for row in zip(*columns, strict=True)]
    return msgspec.json.encode({"instances": rows})


def read_predictions(body: bytes, outputs: list[str]) -> dict[str, Raw]:
    """Return the rows of each output in an answer as one array, whether they are named or not.

    Raises InvalidRequestError for any other message.
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


def _rows(tensors: Tensors) -> int:
    return len(next(iter(tensors.values())))

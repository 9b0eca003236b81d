"""The Open Inference Protocol as a lean client speaks it: one row out, one answer back.

Binary tensors over REST (the protocol's binary tensor data extension). Written apart from
`serving/`, so that what measures a server shares no code, and no mistake, with it.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import LoadError
from parity_models.models.tensor import DATATYPES, TensorSpec
from parity_models.scheduling import Source

HEADER_LENGTH = "Inference-Header-Content-Length"


class MalformedAnswerError(ValueError):
    """An answer that does not follow the protocol or does not fit the model."""


@dataclass(frozen=True)
class ModelMetadata:
    """A model as its server describes it."""

    name: str
    input: TensorSpec
    output: TensorSpec

    @property
    def path(self) -> str:
        """Where its infer requests go."""
        return f"/v2/models/{self.name}/infer"


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """One answer: `output` (*output shape) and where it came from."""

    output: NDArray[Any]
    source: Source


class RowWriter:
    """Writes infer requests that hold one row; all of them share their headers."""

    def __init__(self, model: ModelMetadata) -> None:
        self._row = (model.input.dtype, model.input.shape)
        size = model.input.zeros(1).nbytes
        tensor = {
            "name": model.input.name,
            "datatype": model.input.datatype,
            "shape": [1, *model.input.shape],
            "parameters": {"binary_data_size": size},
        }
        self._head = msgspec.json.encode(
            {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        )
        self.headers = {
            "Content-Type": "application/octet-stream",
            HEADER_LENGTH: str(len(self._head)),
        }

    def body(self, row: NDArray[Any]) -> bytes:
        """The request's body for one row of the model's input shape and dtype."""
        if (row.dtype, row.shape) != self._row:
            raise LoadError(
                f"the model takes rows of {self._row[0]} {self._row[1]}, got {row.dtype} "
                f"{row.shape}"
            )
        return self._head + row.tobytes()


def read_model(name: str, text: bytes) -> ModelMetadata:
    """The model that a server's metadata (the body of GET /v2/models/NAME) describes."""
    try:
        metadata = msgspec.json.decode(text, type=_Metadata)
        (input,), (output,) = metadata.inputs, metadata.outputs
        return ModelMetadata(name, _row_spec(input), _row_spec(output))
    except (msgspec.DecodeError, ValueError) as error:
        raise LoadError(
            f"model {name!r} is not one with one input and one output of rows: {error}"
        ) from error


def read_answer(model: ModelMetadata, body: bytes, header_length: str | None) -> RowAnswer:
    """The answer to a request of one row, from a response's body and HEADER_LENGTH."""
    try:
        end = int(header_length or "")
        head = _RESPONSE.decode(memoryview(body)[:end])
        (tensor,) = head.outputs
        if tensor.shape != (1, *model.output.shape):
            raise MalformedAnswerError(f"the output has shape {list(tensor.shape)}")
        dtype = DATATYPES[tensor.datatype]
        output = np.frombuffer(body, dtype, offset=end).reshape(model.output.shape)
    except (msgspec.DecodeError, ValueError, KeyError) as error:
        raise MalformedAnswerError(str(error)) from error
    return RowAnswer(output, head.parameters.source)


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]


class _Metadata(msgspec.Struct):
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]


class _Parameters(msgspec.Struct, frozen=True):
    source: Source = Source.MODEL


class _Response(msgspec.Struct):
    outputs: tuple[_Tensor, ...]
    parameters: _Parameters = _Parameters()


_RESPONSE = msgspec.json.Decoder(_Response)


def _row_spec(tensor: _Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.datatype, tensor.shape[1:])

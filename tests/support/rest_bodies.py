"""Bodies of requests that the codec reads, of any datatype, and models that take them."""

from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
import pytest
from numpy.typing import NDArray

from parity_models.serving.models import ServedModel
from parity_models.tensors.signature import DATATYPES, Signature, TensorSpec

Returned = TypeVar("Returned")


def model_of(array: NDArray[Any]) -> ServedModel:
    spec = TensorSpec("x", datatype_of(array), array.shape[1:])
    return ServedModel("model", Signature.of(spec, spec), max_rows=1000)


def datatype_of(array: NDArray[Any]) -> str:
    return next(name for name, dtype in DATATYPES.items() if dtype == array.dtype)


def request(array: NDArray[Any], data: object = None, **more: Any) -> tuple[bytes, str | None]:
    """A request for `array`, with `data` as JSON, or as binary data if that is None."""
    tensor: dict[str, Any] = {"name": "x", "shape": array.shape, "datatype": datatype_of(array)}
    if data is not None:
        tensor["data"] = data
        return msgspec.json.encode({"inputs": [tensor], **more}), None
    tensor["parameters"] = {"binary_data_size": array.nbytes}
    header = msgspec.json.encode({"inputs": [tensor], **more})
    return header + array.tobytes(), str(len(header))


def done(work: Coroutine[Any, Any, Returned]) -> Returned:
    """Return the result of a coroutine that waits for nothing."""
    with pytest.raises(StopIteration) as end:
        work.send(None)
    returned: Returned = end.value.value
    return returned

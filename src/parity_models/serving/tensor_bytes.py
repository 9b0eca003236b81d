"""Tensors as the Open Inference Protocol's binary data: row-major, little-endian, nothing else."""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.models.tensor import DATATYPES, TensorSpec
from parity_models.serving.errors import InvalidRequestError

_LITTLE_ENDIAN: dict[np.dtype[Any], np.dtype[Any]] = {
    dtype: dtype if dtype == (little := dtype.newbyteorder("<")) else little
    for dtype in DATATYPES.values()
}
"""How values of a type are written. One object for each: NumPy compares and hashes a new one anew.
"""


def size_in_bytes(spec: TensorSpec, rows: int) -> int:
    """What `rows` rows of this tensor take."""
    return rows * prod(spec.shape) * spec.dtype.itemsize


def rows_from_bytes(spec: TensorSpec, rows: int, data: bytes | memoryview) -> NDArray[Any]:
    """A read-only view of `data`, which has the right size, as (rows, *shape).

    Raises InvalidRequestError for bytes that are no values of the tensor's datatype.
    """
    if spec.datatype == "BOOL" and np.frombuffer(data, np.uint8).max() > 1:
        raise InvalidRequestError(f"tensor {spec.name!r} is BOOL and has bytes other than 0, 1")
    return np.frombuffer(data, _LITTLE_ENDIAN[spec.dtype]).reshape(rows, *spec.shape)


def little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """The array as it is written: itself, where that is how it lies in memory."""
    return np.ascontiguousarray(array, _LITTLE_ENDIAN[array.dtype])

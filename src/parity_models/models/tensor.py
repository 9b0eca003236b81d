"""What a model's input and output look like."""

from math import prod
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

DATATYPES: dict[str, np.dtype[np.generic]] = {
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "BOOL": np.dtype(np.bool_),
}
"""The Open Inference Protocol's tensor data types that models here can have."""

MAX_VALUES = 2**28
"""What one row can hold: 1 GiB of FP32."""

Axis = Annotated[int, msgspec.Meta(ge=1, le=MAX_VALUES)]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name, data type and shape of a model's input or output.

    `datatype` is a name of the Open Inference Protocol (a key of DATATYPES); `shape` is that of
    one row, without the batch axis.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    datatype: str
    shape: Annotated[tuple[Axis, ...], msgspec.Meta(max_length=32)]

    def __post_init__(self) -> None:
        if self.datatype not in DATATYPES:
            raise ValueError(f"datatype {self.datatype!r} is not one of {', '.join(DATATYPES)}")
        if prod(self.shape) > MAX_VALUES:
            raise ValueError(f"a row of shape {list(self.shape)} has more than {MAX_VALUES} values")

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return DATATYPES[self.datatype]

    def zeros(self, rows: int) -> NDArray[np.generic]:
        """A batch of `rows` rows of zeros: (rows, *shape)."""
        return np.zeros((rows, *self.shape), self.dtype)

    def __str__(self) -> str:
        return f"{self.name!r} {self.datatype} {list(self.shape)}"

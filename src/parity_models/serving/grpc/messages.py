"""What clients and servers of the protocol over gRPC share: typed contents, and metadata."""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.grpc import protos as pb
from parity_models.serving.protocol import SLICE_VALUES, Yield, no_wait
from parity_models.tensors.signature import TensorSpec
from parity_models.tensors.texts import BYTES, as_texts

SERVICE = pb.POOL.FindServiceByName("inference.GRPCInferenceService")

MODEL_SHA256 = "model-sha256"
"""The trailing metadata of ModelMetadata that names the hash of the deployed model's file."""

DETAILS = "grpc-status-details-bin"
"""The trailing metadata that has a google.rpc.Status."""

FIELDS = {
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
    BYTES: "bytes_contents",
}
"""The field of InferTensorContents that has the values, by datatype."""

_WIDE = {"int_contents": np.int32, "uint_contents": np.uint32}
"""The types of fields that are wider than some of their datatypes."""


async def read_contents(
    contents: pb.InferTensorContents, spec: TensorSpec, rows: int, what: str, wait: Yield = no_wait
) -> NDArray[Any]:
    """Return the read-only array (rows, *shape of spec) in a tensor's typed contents; large ones
    are read in slices, with a `wait` between them.

    Raises InvalidRequestError, which calls it `what`.
    """
    field, size = FIELDS.get(spec.datatype), rows * prod(spec.shape)
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
    if len(values) != size:
        raise InvalidRequestError(
            f"{what} has {len(values)} {field}; its shape {[rows, *spec.shape]} takes {size}"
        )
    if spec.is_text:
        try:
            return as_texts(np.array(values, object)).reshape(rows, *spec.shape)
        except ValueError as error:
            raise InvalidRequestError(f"{what} {error}") from error
    array = np.empty(size, spec.dtype)
    for start in range(0, size, SLICE_VALUES):
        if start:
            await wait()
        part = values[start : start + SLICE_VALUES]
        wide = np.fromiter(part, _WIDE.get(field, spec.dtype), len(part))
        array[start : start + len(part)] = narrow = wide.astype(spec.dtype, copy=False)
        if field in _WIDE and not np.array_equal(narrow, wide):
            raise InvalidRequestError(f"{what} has numbers beyond {spec.datatype}")
    array.flags.writeable = False
    return array.reshape(rows, *spec.shape)

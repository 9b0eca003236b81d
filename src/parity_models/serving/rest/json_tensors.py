"""Tensors as JSON arrays, flat or nested, row-major: read and written, within bounds."""

import re
from functools import cache
from math import prod
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Raw
from numpy.typing import NDArray

from parity_models.models.tensor import DATATYPES, Layout, TensorSpec
from parity_models.serving.errors import (
    InvalidRequestError,
    NotAcceptableError,
    TooLargeError,
)

JSON_OBJECT = 64 * 2**10
"""Bytes that a request's JSON object may have besides the values of a tensor."""

JSON_VALUE = 64
"""Bytes that a value may take in JSON, with the commas, brackets and indentation around it."""

_NESTED = re.compile(rb"\[\s*\[")

_ANYTHING = msgspec.json.Decoder(object)

_T = TypeVar("_T")


def read_json(decoder: msgspec.json.Decoder[_T], text: Raw | memoryview, what: str) -> _T:
    """What `text` says. Raises InvalidRequestError, which calls it `what`."""
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{what} cannot be read: {error}") from error
    except RecursionError as error:
        raise InvalidRequestError(f"{what} cannot be read: it is nested too deeply") from error


def json_end(header_length: str, size: int) -> int:
    """Where the JSON object in a body of `size` bytes ends, by the header that says its length.

    Raises InvalidRequestError for what is no length, or more than there is.
    """
    # Digits beyond a few thousand are no int to Python.
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 20):
        raise InvalidRequestError(
            f"Inference-Header-Content-Length is {header_length[:40]!r}, which is not a length "
            "in bytes"
        )
    if int(header_length) > size:
        raise InvalidRequestError(
            f"Inference-Header-Content-Length is {header_length}, but the body has {size} bytes"
        )
    return int(header_length)


def check_json_size(
    text: Raw | memoryview,
    spec: TensorSpec | Layout,
    rows: int,
    what: str,
    beside: int = JSON_OBJECT,
) -> None:
    """Raises TooLargeError for more JSON than `rows` rows and so many bytes `beside` can be: for
    more bytes, or for more values in them, as each takes many times its bytes once it is read."""
    values = rows * (spec.row_values if isinstance(spec, Layout) else prod(spec.shape))
    view = memoryview(text)
    most = JSON_VALUE * values + beside
    if len(view) > most:
        raise TooLargeError(
            f"{what} has {len(view)} bytes of JSON; {rows} rows of {spec} take up to {most}"
        )
    if len(view) <= beside:
        return
    most = values + beside // 2
    commas = np.count_nonzero(np.frombuffer(view, np.uint8) == ord(","))
    if commas > most:
        raise TooLargeError(
            f"{what} has {commas + 1} values in its JSON; {rows} rows of {spec} take up to {most}"
        )


def short_value(text: Raw, parameter: str) -> object:
    """What `text` says, of whatever type; None if it is empty. Raises InvalidRequestError for what
    is longer than a parameter can be: read, it could be many times as large."""
    size = len(memoryview(text))
    if size > JSON_OBJECT:
        raise InvalidRequestError(
            f"the parameter {parameter} has {size} bytes of JSON; it may have {JSON_OBJECT}"
        )
    return read_json(_ANYTHING, text, f"the parameter {parameter}") if size else None


def tensor_from_json(data: Raw, spec: TensorSpec, rows: int, what: str) -> NDArray[Any]:
    """The tensor (rows, *shape of spec) in JSON `data`, flat or nested, not to be written to.

    Raises InvalidRequestError, which calls it `what`.
    """
    shape = (rows, *spec.shape)
    nested = _NESTED.match(memoryview(data)) is not None
    decoder = _data_decoder(spec.datatype, len(shape) if nested else 1)
    values = read_json(decoder, data, what)
    try:
        array = np.array(values, spec.dtype)
    except OverflowError as error:
        raise InvalidRequestError(f"{what} has numbers beyond {spec.datatype}") from error
    except ValueError as error:
        raise InvalidRequestError(
            f"{what} is ragged: the lists of one level must have one length; its shape is "
            f"{list(shape)}"
        ) from error
    if array.shape != (shape if nested else (prod(shape),)):
        raise InvalidRequestError(
            f"{what} has shape {list(array.shape)}; it must be flat, with {prod(shape)} "
            f"elements, or nested as {list(shape)}"
        )
    array.flags.writeable = False
    return array.reshape(shape)


@cache
def _data_decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    """Reads lists, `depth` levels deep, of numbers that `datatype` can hold."""
    dtype: np.dtype[Any] = DATATYPES[datatype]
    element: Any
    if dtype.kind == "b":
        element = bool
    elif datatype == "UINT64":  # msgspec has no bounds beyond int64; NumPy checks the upper one
        element = Annotated[int, Meta(ge=0)]
    elif dtype.kind in "iu":
        whole = np.iinfo(dtype)
        element = Annotated[int, Meta(ge=int(whole.min), le=int(whole.max))]
    elif datatype == "FP64":
        element = float
    else:
        real = np.finfo(dtype)
        element = Annotated[float, Meta(ge=float(real.min), le=float(real.max))]
    for _ in range(depth):
        element = list[element]
    return msgspec.json.Decoder(element)


def json_from_tensor(outputs: NDArray[Any], name: str) -> Raw:
    """The values of `outputs`, the output called `name`, as a flat array.

    Raises NotAcceptableError for what JSON cannot say.
    """
    if outputs.dtype.kind == "f" and not np.isfinite(outputs).all():
        raise NotAcceptableError(
            f"output {name!r} has values that are not finite, which JSON cannot say; ask "
            "for binary data (binary_data_output)"
        )
    return Raw(msgspec.json.encode(outputs.ravel().tolist()))

"""Texts: tensors of the datatype BYTES, which are arrays of `str` in memory.

As bytes, each text is its length (little-endian, 4 bytes) and its UTF-8, one text after the other
in row-major order, as in the protocol's binary data and in gRPC's raw contents.
"""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTES = "BYTES"
"""The protocol's name for the datatype of texts."""

MAX_TEXT = 2**16
"""Maximum size, in bytes of UTF-8, of a text."""

_LENGTH = 4


def as_texts(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of strings, of any type of NumPy's, or of UTF-8 as `bytes`, as texts.

    Raises ValueError for other values, and for texts that are too long or have no UTF-8.
    """
    texts = array.astype(object)
    for place, each in enumerate(texts.flat):
        if isinstance(each, bytes):
            texts.flat[place] = each = decode(each)
        if not isinstance(each, str):
            raise ValueError(f"has a {type(each).__name__}, not a text")
        try:
            _check_size(len(each.encode()))
        except UnicodeEncodeError as error:
            raise ValueError(f"has a text without UTF-8: {error.reason}") from error
    return texts


def _check_size(size: int) -> None:
    if size > MAX_TEXT:
        raise ValueError(f"has a text of {size} bytes; a text has {MAX_TEXT} at most")


def decode(content: bytes | memoryview) -> str:
    """Return the text that is this UTF-8. Raises ValueError for other bytes."""
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"has a text that is not UTF-8: {error.reason} at its byte {error.start}"
        ) from error


def write_texts(texts: NDArray[Any]) -> bytes:
    """Return texts as bytes."""
    pieces = []
    for text in texts.ravel().tolist():
        content = text.encode()
        pieces += [len(content).to_bytes(_LENGTH, "little"), content]
    return b"".join(pieces)


def read_texts(data: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the texts in `data`, as an array of this shape.

    Raises ValueError for another number of texts, for a text that is too long, and for bytes that
    are not UTF-8.
    """
    array, end = take_texts(memoryview(data), 0, shape)
    if end != len(data):
        raise ValueError(f"has {len(data) - end} bytes after its {prod(shape)} texts")
    return array


def take_texts(data: memoryview, at: int, shape: tuple[int, ...]) -> tuple[NDArray[Any], int]:
    """Return the texts that begin at this byte of `data`, as an array of this shape, and their end.

    Raises ValueError as `read_texts` does.
    """
    count, texts = prod(shape), []
    for number in range(count):
        begin = at + _LENGTH
        size = int.from_bytes(data[at:begin], "little")
        at = begin + size
        if at > len(data):
            raise ValueError(
                f"ends within text {number + 1} of {count}; each text is its length, 4 bytes, "
                "little-endian, and its UTF-8"
            )
        _check_size(size)
        texts.append(decode(data[begin:at]))
    return np.array(texts, object).reshape(shape), at

"""Texts: tensors of the datatype BYTES, which are arrays of `str` in memory.

As bytes, each text is its length (little-endian, 4 bytes) and its UTF-8, one text after the other
in row-major order, as in the protocol's binary data and in gRPC's raw contents.
"""

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTES = "BYTES"
"""The protocol's name for the datatype of texts."""

MAX_TEXT = 2**16
"""Maximum size, in bytes of UTF-8, of a text."""

_LENGTH = 4


def array_of_texts(texts: Iterable[str], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the texts as an array of this shape. Raises ValueError for a text that is too long."""
    found = list(texts)
    for text in found:
        if len(text) > MAX_TEXT // 4:  # a character has up to 4 bytes
            check_size(len(text.encode()))
    return np.array(found, object).reshape(shape)


def check_size(size: int) -> None:
    """Raise ValueError for a text of so many bytes that it is too long."""
    if size > MAX_TEXT:
        raise ValueError(f"has a text of {size} bytes; a text has {MAX_TEXT} at most")


def as_texts(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of strings, of any type of NumPy's, or of UTF-8 as `bytes`, as texts.

    Raises ValueError for other values, and for texts that are too long or have no UTF-8.
    """
    texts = []
    for each in array.astype(object).ravel().tolist():
        if not isinstance(each, str | bytes):
            raise ValueError(f"has a {type(each).__name__}, not a text")
        content = each if isinstance(each, bytes) else encode(each)
        check_size(len(content))
        texts.append(decode(content))
    return np.array(texts, object).reshape(array.shape)


def encode(text: str) -> bytes:
    """Return the UTF-8 of a text. Raises ValueError if it has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"has half of a surrogate pair at character {error.start} of a text, and UTF-8 cannot "
            "express that"
        ) from error


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
        check_size(size)
        texts.append(decode(data[begin:at]))
    return np.array(texts, object).reshape(shape), at

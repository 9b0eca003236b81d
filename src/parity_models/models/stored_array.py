"""Arrays of float32 in the files of a bundle."""

from math import prod
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import BundleError

Floats = NDArray[np.float32]

Length = Annotated[int, msgspec.Meta(ge=0, le=2**28)]
StoredShape = Annotated[tuple[Length, ...], msgspec.Meta(max_length=32)]


class StoredArray(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An array of little-endian float32."""

    shape: StoredShape
    values: bytes


def store(array: Floats) -> StoredArray:
    """`array` as it is stored."""
    return StoredArray(array.shape, array.astype("<f4").tobytes())


def load(name: str, stored: StoredArray, fits: tuple[int, ...] | None = None) -> Floats:
    """The array, called `name`, which can be broadcast to the shape `fits`, if that is given.

    Raises BundleError for one that has other bytes than its shape says, values that are not finite,
    or another shape.
    """
    if prod(stored.shape) * 4 != len(stored.values):
        raise BundleError(f"has {len(stored.values)} bytes of {name} {list(stored.shape)}")
    array = np.frombuffer(stored.values, "<f4").astype(np.float32).reshape(stored.shape)
    if not np.isfinite(array).all():
        raise BundleError(f"has values of {name} that are not finite")
    if fits is not None:
        try:
            fitting = np.broadcast_shapes(stored.shape, fits) == fits
        except ValueError:
            fitting = False
        if not fitting:
            raise BundleError(f"has {name} of shape {list(stored.shape)} for {list(fits)}")
    return array

"""The envelope of a stand-in: which inputs are like those it learned from, which outputs can be.

Where a code's slots are not isolated, an input that is unlike all that a parity model has seen
spoils the reconstructions of whatever it is encoded with. The envelope tells such inputs, so that
they are not encoded at all, and outputs that no model of the bundle would give.

An input x becomes z, the deviations of its values from their means. Four numbers of z say whether
it is like the training inputs; each is compared with a limit that few of those exceed:

    energy     mean of z²: how far from the mean input
    tails      mean of z⁴: a few values that are far away, were there only one of them
    roughness  mean of z_i (z_i - z_i+1): neighbours, of pixels or samples, that differ
    distance   what principal components of the inputs leave of the energy: values that are each in
               range but never come together (the quadratic form of probabilistic principal
               component analysis: Tipping, Bishop, 1999; it joins the T² and Q statistics of
               Jackson, Mudholkar, Technometrics 1979)
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import BundleError
from parity_models.models.stored_array import Floats, StoredArray, StoredShape, load, store

Array = NDArray[Any]

ENVELOPE = "envelope.msgpack"
"""The file of an envelope in a bundle."""

MAX_PROJECTION = 9000
"""Weights of the projection at most: beyond about 9,200 OpenBLAS would start threads, which a
server's frontend must not have beside its workers."""

DOT = 8192
"""The longest vectors whose products OpenBLAS computes on one thread."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The most of each number of an input (see this module) that is like the training inputs."""

    energy: float
    tails: float
    roughness: float
    distance: float


@dataclass(frozen=True, eq=False)
class Numbers:
    """What one input of numbers is like where stand-ins were trained.

    `center` and `spread` (both of `shape`, or broadcast to it; of one value where an axis of
    `shape` is dynamic, and so has a name) are mean and deviation of inputs; `components` (m,
    values) the weighted principal components of their deviations, m may be 0; `limits` bound what
    is computed with them. All arrays are float32.
    """

    shape: tuple[int | str, ...]
    center: Floats
    spread: Floats
    components: Floats
    limits: Limits

    def like(self, row: Array) -> bool:
        """Is an input (*shape), of any number type, like the training inputs?

        What is not finite is not. NumPy may warn of overflow.
        """
        energy, tails, roughness, distance = self.measure(row)
        limits = self.limits
        # NaN is below no limit.
        return (
            energy <= limits.energy
            and tails <= limits.tails
            and roughness <= limits.roughness
            and distance <= limits.distance
        )

    def measure(self, row: Array) -> tuple[float, float, float, float]:
        """Energy, tails, roughness and distance of an input (*shape); NumPy may warn of overflow.

        One row at a time: products of vectors take less time than reductions of a small table.
        """
        z = row.reshape(-1).astype(np.float32, copy=False) * self._scale
        z -= self._shift
        values = len(z)
        square = z * z
        dot = np.ndarray.dot if values <= DOT else _long_dot
        energy = float(dot(z, z))
        tails = float(dot(square, square))
        roughness = energy - float(dot(z[1:], z[:-1]))
        distance = energy
        if len(self.components):
            along = self.components.dot(z)
            distance -= float(along.dot(along))
        return energy / values, tails / values, roughness / values, distance / values

    @cached_property
    def _scale(self) -> Floats:
        return self._flat(1 / self.spread)

    @cached_property
    def _shift(self) -> Floats:
        return self._flat(self.center / self.spread)

    def _flat(self, values: Array) -> Floats:
        fixed = tuple(size for size in self.shape if isinstance(size, int))
        shape = fixed if len(fixed) == len(self.shape) else (1,)
        return np.ascontiguousarray(np.broadcast_to(values, shape), np.float32).reshape(-1)


@dataclass(frozen=True, eq=False)
class Reach:
    """What outputs can be: `low` and `high`, of `shape` or broadcast to it, bound them."""

    shape: tuple[int, ...]
    low: Floats
    high: Floats

    def impossible(self, outputs: Array) -> NDArray[np.bool_]:
        """For each of `outputs` (n, *shape): can the deployed model not give such a one?

        That is so if a value is not finite, or far outside what F gave for the training inputs.
        """
        possible = (outputs >= self.low) & (outputs <= self.high)
        return np.logical_not(possible.reshape(len(outputs), -1).all(axis=1))


@dataclass(frozen=True, eq=False)
class Envelope:
    """What the one float32 input of a deployed model, and its outputs, are like where its stand-ins
    were trained.

    `false_alarms` is the share of `held_out` honest inputs that are called unlike.
    """

    numbers: Numbers
    outputs: Reach
    false_alarms: float
    held_out: int

    @np.errstate(over="ignore", invalid="ignore")
    def unlike(self, rows: Array) -> NDArray[np.bool_]:
        """For each of `rows` (n, *shape), of any number type: is it unlike the training inputs?

        What is not finite is. Takes some 10 µs for a row of a thousand values.
        """
        like = self.numbers.like
        return np.fromiter((not like(row) for row in rows), np.bool_, len(rows))

    def impossible(self, outputs: Array) -> NDArray[np.bool_]:
        """For each of `outputs` (n, *output shape): can the deployed model not give such a one?"""
        return self.outputs.impossible(outputs)


def _long_dot(a: Floats, b: Floats) -> Any:
    return np.einsum("i,i->", a, b)


# In a bundle


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    shape: StoredShape
    output_shape: StoredShape
    center: StoredArray
    spread: StoredArray
    components: StoredArray
    limits: Limits
    low: StoredArray
    high: StoredArray
    false_alarms: Annotated[float, msgspec.Meta(ge=0, le=1)]
    held_out: Annotated[int, msgspec.Meta(ge=0)]


_FILE = msgspec.msgpack.Decoder(_File)
"""Made here, and not by the threads that open bundles: see manifest.py."""


def encode_envelope(envelope: Envelope) -> bytes:
    """The content of an envelope's file: MessagePack."""
    numbers, outputs = envelope.numbers, envelope.outputs
    return msgspec.msgpack.encode(
        _File(
            tuple(size for size in numbers.shape if isinstance(size, int)),
            outputs.shape,
            store(numbers.center),
            store(numbers.spread),
            store(numbers.components),
            numbers.limits,
            store(outputs.low),
            store(outputs.high),
            envelope.false_alarms,
            envelope.held_out,
        )
    )


def decode_envelope(content: bytes) -> Envelope:
    """The envelope in a file's `content`; BundleError says what is wrong with it."""
    try:
        file = _FILE.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"is damaged or not an envelope: {error}") from error
    stored = (file.center, file.spread, file.components)
    return Envelope(
        load_numbers(file.shape, *stored, file.limits),
        load_reach(file.output_shape, file.low, file.high),
        file.false_alarms,
        file.held_out,
    )


def load_numbers(
    shape: tuple[int | str, ...],
    center: StoredArray,
    spread: StoredArray,
    components: StoredArray,
    limits: Limits,
) -> Numbers:
    """Numbers of a bundle. Raises BundleError for arrays that do not fit their `shape`."""
    fixed = tuple(size for size in shape if isinstance(size, int))
    dynamic = len(fixed) < len(shape)
    fits = () if dynamic else fixed
    numbers = Numbers(
        shape,
        load("center", center, fits),
        load("spread", spread, fits),
        load("components", components),
        limits,
    )
    found, values = numbers.components.shape, prod(fixed)
    if len(found) != 2 or (found[0] if dynamic else found[1] != values):
        raise BundleError(f"has components {list(found)} for inputs of shape {list(shape)}")
    if not (numbers.spread > 0).all():
        raise BundleError("has a spread that is not positive")
    return numbers


def load_reach(shape: tuple[int, ...], low: StoredArray, high: StoredArray) -> Reach:
    """What outputs can be, of a bundle. Raises BundleError for arrays that do not fit `shape`."""
    return Reach(shape, load("low", low, shape), load("high", high, shape))

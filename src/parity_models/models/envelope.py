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

Array = NDArray[Any]
Floats = NDArray[np.float32]

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
class Envelope:
    """What inputs and outputs of a deployed model are like where its stand-ins were trained.

    `center` and `spread` (both of `shape`, or broadcast to it) are mean and deviation of inputs;
    `components` (m, values) the weighted principal components of their deviations, m may be 0;
    `limits` bound what is computed with them. `low` and `high` (of `output_shape`, or broadcast to
    it) bound what outputs can be. `false_alarms` is the share of `held_out` honest inputs that are
    called unlike. All arrays are float32.
    """

    shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    center: Floats
    spread: Floats
    components: Floats
    limits: Limits
    low: Floats
    high: Floats
    false_alarms: float
    held_out: int

    @np.errstate(over="ignore", invalid="ignore")
    def unlike(self, rows: Array) -> NDArray[np.bool_]:
        """For each of `rows` (n, *shape), of any number type: is it unlike the training inputs?

        What is not finite is. Takes some 10 µs for a row of a thousand values.
        """
        limits = self.limits
        unlike = np.empty(len(rows), np.bool_)
        for i, row in enumerate(rows):
            energy, tails, roughness, distance = self.measure(row)
            # So that NaN is unlike.
            unlike[i] = not (
                energy <= limits.energy
                and tails <= limits.tails
                and roughness <= limits.roughness
                and distance <= limits.distance
            )
        return unlike

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

    def impossible(self, outputs: Array) -> NDArray[np.bool_]:
        """For each of `outputs` (n, *output_shape): can the deployed model not give such a one?

        That is so if a value is not finite, or far outside what F gave for the training inputs.
        """
        possible = (outputs >= self.low) & (outputs <= self.high)
        return np.logical_not(possible.reshape(len(outputs), -1).all(axis=1))

    @cached_property
    def _scale(self) -> Floats:
        return _flat(1 / self.spread, self.shape)

    @cached_property
    def _shift(self) -> Floats:
        return _flat(self.center / self.spread, self.shape)


def _flat(values: Array, shape: tuple[int, ...]) -> Floats:
    return np.ascontiguousarray(np.broadcast_to(values, shape), np.float32).reshape(-1)


def _long_dot(a: Floats, b: Floats) -> Any:
    return np.einsum("i,i->", a, b)


# In a bundle

_Axis = Annotated[int, msgspec.Meta(ge=0, le=2**28)]
_Shape = Annotated[tuple[_Axis, ...], msgspec.Meta(max_length=32)]


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An array of little-endian float32."""

    shape: _Shape
    values: bytes


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    shape: _Shape
    output_shape: _Shape
    center: _Stored
    spread: _Stored
    components: _Stored
    limits: Limits
    low: _Stored
    high: _Stored
    false_alarms: Annotated[float, msgspec.Meta(ge=0, le=1)]
    held_out: Annotated[int, msgspec.Meta(ge=0)]


_FILE = msgspec.msgpack.Decoder(_File)
"""Made here, and not by the threads that open bundles: see manifest.py."""


def encode_envelope(envelope: Envelope) -> bytes:
    """The content of an envelope's file: MessagePack."""
    return msgspec.msgpack.encode(
        _File(
            envelope.shape,
            envelope.output_shape,
            _store(envelope.center),
            _store(envelope.spread),
            _store(envelope.components),
            envelope.limits,
            _store(envelope.low),
            _store(envelope.high),
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
    envelope = Envelope(
        file.shape,
        file.output_shape,
        _load("center", file.center, file.shape),
        _load("spread", file.spread, file.shape),
        _load("components", file.components, None),
        file.limits,
        _load("low", file.low, file.output_shape),
        _load("high", file.high, file.output_shape),
        file.false_alarms,
        file.held_out,
    )
    components = envelope.components.shape
    if len(components) != 2 or components[1] != prod(file.shape):
        raise BundleError(
            f"has components {list(components)} for inputs of shape {list(file.shape)}"
        )
    if not (envelope.spread > 0).all():
        raise BundleError("has a spread that is not positive")
    return envelope


def _store(array: Floats) -> _Stored:
    return _Stored(array.shape, array.astype("<f4").tobytes())


def _load(name: str, stored: _Stored, fits: tuple[int, ...] | None) -> Floats:
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

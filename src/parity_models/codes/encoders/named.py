"""Queries of several inputs, or of dynamic shape, encoded: each input by an encoder of its own."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from parity_models.codes.coder import Array
from parity_models.codes.encoders.encoder import Encoder
from parity_models.codes.networks import Shape
from parity_models.errors import CodeError

NamedShape = tuple[int | str, ...]
"""The shape of an input, without the batch axis, which has names where axes are dynamic."""

REMEMBERED = 256
"""Encoders, for the inputs' shapes, that are kept at hand."""

UNLIKE = 1009
"""A size of dynamic axes to try encoders with, which fixed axes hardly have."""


class NamedEncoder:
    """Encodes each input of queries by itself, with encoders of class `kind`.

    `inputs` are the inputs' shapes, by name. Queries of one input are arrays; those of several are
    NumPy records with a field for each input, and so are their parity queries. `stacked_axis` is
    that of all inputs, where they have one and the same. Raises CodeError for shapes that `kind`
    cannot encode, and for encoders that are learned.
    """

    network_shapes = None

    def __init__(
        self,
        kind: type[Encoder],
        k: int,
        r: int,
        inputs: Mapping[str, NamedShape],
        options: Any,
    ) -> None:
        self.apart = kind.apart
        self.k = k
        self.r = r
        self.inputs = dict(inputs)
        self._kind = kind
        self._options = options
        self._encoder = lru_cache(REMEMBERED)(self._build)
        self.parity_shapes = {name: self._parity_shape(name) for name in inputs}
        stacked = {
            self._encoder(_at(shape, dict.fromkeys(shape, UNLIKE))).stacked_axis
            for shape in inputs.values()
        }
        self.stacked_axis = stacked.pop() if len(stacked) == 1 else None

    def encode(self, queries: Sequence[Array], out: Array | None = None) -> Array:
        """k queries, or batches of queries, into (r, ...); `out` as in Encoder.encode.

        Raises CodeError for what does not fit.
        """
        first = queries[0]
        if first.dtype.names is None:
            (name,) = self.inputs
            return self._encode(name, queries, out)
        parts = {
            name: self._encode(name, [query[name] for query in queries]) for name in self.inputs
        }
        if out is None:
            out = np.zeros((self.r, *first.shape), self._record(parts, first.ndim))
        for name, part in parts.items():
            out[name] = part
        return out

    def _encode(self, name: str, queries: Sequence[Array], out: Array | None = None) -> Array:
        rank = len(self.inputs[name])
        shape = tuple(queries[0].shape)
        try:
            return self._encoder(shape[len(shape) - rank :]).encode(queries, out)
        except CodeError as error:
            raise CodeError(f"of input {name!r}: {error}") from error

    def _record(self, parts: Mapping[str, Array], batch_axes: int) -> np.dtype[Any]:
        fields = [(name, each.dtype, each.shape[1 + batch_axes :]) for name, each in parts.items()]
        return np.dtype(fields, align=True)

    def _build(self, shape: Shape) -> Encoder:
        encoder = self._kind(self.k, self.r, shape, self._options)
        if encoder.network_shapes is not None:
            raise CodeError(
                f"the {self._kind.name} encoder is learned for one input of fixed shape; use the "
                "stack encoder"
            )
        return encoder

    def _parity_shape(self, name: str) -> NamedShape:
        """The shape of this input of a parity query, dynamic where the queries' is.

        Found by trying two sizes: an axis of a parity query is dynamic if it is as large as an
        axis of the queries in both cases.
        """
        shape = self.inputs[name]
        axes = [axis for axis in dict.fromkeys(shape) if isinstance(axis, str)]
        sizes = {axis: UNLIKE + 2 * i for i, axis in enumerate(axes)}
        others = {axis: size + 1000 for axis, size in sizes.items()}
        try:
            one, other = (
                self._encoder(_at(shape, tried)).parity_shape for tried in (sizes, others)
            )
        except CodeError as error:
            raise CodeError(f"of input {name!r}: {error}") from error
        if axes and len(one) == len(other):
            same = {(sizes[axis], others[axis]): axis for axis in axes}
            both = list(zip(one, other, strict=True))
            if all(a == b or (a, b) in same for a, b in both):
                return tuple(same.get((a, b), a) for a, b in both)
        if not axes:
            return one
        raise CodeError(
            f"of input {name!r}: the {self._kind.name} encoder joins queries along an axis of no "
            "fixed size; join them along a new one"
        )


def _at(shape: NamedShape, sizes: Mapping[Any, int]) -> Shape:
    """The shape with these sizes of its dynamic axes."""
    return tuple(sizes[each] if isinstance(each, str) else each for each in shape)

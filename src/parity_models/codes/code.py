"""A code: an encoder and a decoder that make sense together."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.codes.coder import Array, Shape
from parity_models.codes.decoders import DECODERS, Decoder
from parity_models.codes.encoders import ENCODERS, Encoder
from parity_models.errors import CodeError, UserError
from parity_models.options import Value
from parity_models.registry import is_own

NamedShape = tuple[int | str, ...]
"""The shape of an input without the batch axis, with names for dynamic axes."""

C = TypeVar("C", Encoder, Decoder)

MAX_K = 256
"""The largest k, which bounds the work that a bundle can demand of its reader."""

REMEMBERED = 256
"""Maximum number of cached encoders, one for each shape of an input."""


class CodeSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description of a code: the names of its encoder and decoder, k, r, and their options.

    A name is in `ENCODERS` or `DECODERS`, or one of the user's classes as package.module:Class.
    """

    encoder: str
    decoder: str
    k: int
    r: int = 1
    encoder_options: Mapping[str, Value] = {}
    decoder_options: Mapping[str, Value] = {}

    @property
    def own(self) -> set[str]:
        """The names of the user's own classes."""
        return {name for name in (self.encoder, self.decoder) if is_own(name)}

    def __str__(self) -> str:
        return f"{self.encoder} + {self.decoder}, k={self.k}, r={self.r}"


class Code:
    """An encoder, which encodes each input of the queries separately, and a decoder of one output.

    Args:
        spec: Names, k and r, and options.
        query_shapes: The shape of each input by name, with names for dynamic axes; or the shape of
            the only input, which is called "input". Shapes are without batch axes.
        output_shape: The shape of a prediction.
        probabilities: Predictions are probabilities along the last axis. Reconstructions by
            decoders that compute with sums are then replaced by the nearest probabilities.

    Raises:
        CodeError: Names, options or shapes are invalid, k or r is out of range, or encoder and
            decoder do not fit each other. Users' own classes are imported, so check first that the
            user allowed a name that comes from a file.

    """

    def __init__(
        self,
        spec: CodeSpec,
        query_shapes: Mapping[str, NamedShape] | Shape,
        output_shape: Shape,
        *,
        probabilities: bool = False,
    ) -> None:
        kind, decoder, options, of_decoder = check_spec(spec)
        self.spec = spec
        self.k = spec.k
        self.r = spec.r
        if not isinstance(query_shapes, Mapping):
            query_shapes = {"input": query_shapes}
        self.query_shapes = {name: tuple(shape) for name, shape in query_shapes.items()}
        self._encoder_for = lru_cache(REMEMBERED)(lambda shape: _build(kind, spec, shape, options))
        self.parity_shapes = {name: self._parity_shape(name) for name in self.query_shapes}
        shapes = self.query_shapes.values()
        encoders = [self._encoder_for(each) for each in shapes]
        self.encoder = encoders[0]
        axes = {each.stacked_axis for each in encoders}
        self.stacked_axis = axes.pop() if len(axes) == 1 else None
        """The axis of every input along which parity queries hold queries one after another."""
        self._to_simplex = probabilities and decoder.sums
        self.decoder = _build(decoder, spec, output_shape, of_decoder)

    @property
    def isolated(self) -> bool:
        """True if encoder and decoder keep the slots apart.

        If the parity models do so too, no query can change another's reconstruction.
        """
        return self.encoder.apart and self.decoder.apart

    @property
    def by_slot(self) -> bool:
        """True if a network for single queries, run on each slot, is the only parity model.

        Parity queries have a new first axis for the queries, and outputs one for the predictions.
        """
        stacked = {name: (self.k, *shape) for name, shape in self.query_shapes.items()}
        read_off = self.r == 1 and self.decoder.reads_off
        return read_off and self.stacked_axis == 0 and self.parity_shapes == stacked

    @property
    def query_shape(self) -> Shape:
        """The shape of the only input. Raises CodeError if there are others."""
        return self._only(self.query_shapes)

    @property
    def parity_shape(self) -> Shape:
        """The shape of the only input of one parity query. Raises CodeError as `query_shape`."""
        return self._only(self.parity_shapes)

    @property
    def output_shape(self) -> Shape:
        return self.decoder.output_shape

    @property
    def parity_output_shape(self) -> Shape:
        """The shape of a parity model's output for one parity query."""
        return self.decoder.parity_output_shape

    def encode(self, queries: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Encode k queries, or batches of queries.

        Args:
            queries: An array (*batch, *query_shape) for each input by name, k times.

        Returns:
            r parity queries: an array (*batch, *parity_shape) for each input.

        Raises:
            CodeError: The arrays do not fit.

        """
        parts: dict[str, Array] = {}
        for name, shape in self.query_shapes.items():
            try:
                arrays = [query[name] for query in queries]
                if not all(isinstance(size, int) for size in shape):
                    found = tuple(arrays[0].shape)
                    shape = found[len(found) - len(shape) :]
                parts[name] = self._encoder_for(shape).encode(arrays)
            except KeyError as error:
                raise CodeError(f"queries have no input {name!r}") from error
            except CodeError as error:
                raise self._of_input(name, error) from error
        return [{name: part[j, ...] for name, part in parts.items()} for j in range(self.r)]

    def targets(self, predictions: Sequence[Array], j: int = 0) -> Array:
        """Return the training targets of parity model j: (*batch, *parity_output_shape)."""
        return self.decoder.targets(predictions, j)

    def decodable(
        self, available: tuple[bool, ...], parities: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        """Return for each of k slots whether its prediction is unavailable and can be
        reconstructed."""
        return self.decoder.decodable(available, parities)

    def decode(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> dict[int, Array]:
        """Reconstruct every slot that is None in `predictions`, keyed by slot.

        Raises UndecodableError if the available outputs do not determine them.
        """
        decoded = self.decoder.decode(predictions, parity_outputs)
        if self._to_simplex:
            decoded = {slot: nearest_probabilities(each) for slot, each in decoded.items()}
        return decoded

    def _of_input(self, name: str, error: CodeError) -> CodeError:
        return error if len(self.query_shapes) == 1 else CodeError(f"input {name!r}: {error}")

    def _only(self, shapes: Mapping[str, NamedShape]) -> Shape:
        first, *others = shapes.values()
        shape = tuple(each for each in first if isinstance(each, int))
        if others or len(shape) < len(first):
            raise CodeError(
                f"queries have the inputs {', '.join(self.query_shapes)}; this works only with a "
                "single input of fixed shape"
            )
        return shape

    def _parity_shape(self, name: str) -> NamedShape:
        """Return the shape of this input of a parity query, with the names of its dynamic axes."""
        shape = self.query_shapes[name]
        try:
            found: NamedShape = self._encoder_for(shape).parity_shape
        except CodeError as error:
            raise self._of_input(name, error) from error
        if {each for each in found if isinstance(each, str)} <= set(shape):
            return found
        raise CodeError(  # two axes "n" are joined to one "nn"
            f"input {name!r}: the {self.spec.encoder} encoder joins queries along an axis of no "
            "fixed size; join them along a new one"
        )


def nearest_probabilities(values: NDArray[Any]) -> NDArray[Any]:
    """Project `values` (..., n) on the simplex, along the last axis: the nearest values that are 0
    or more and sum to 1 (Duchi et al., Efficient projections onto the l1-ball, ICML 2008)."""
    descending = np.sort(values, axis=-1)[..., ::-1]
    excess = (np.cumsum(descending, axis=-1) - 1) / np.arange(1, values.shape[-1] + 1)
    nearest: NDArray[Any] = np.maximum(values - excess.max(axis=-1, keepdims=True), 0)
    return nearest.astype(values.dtype)


def check_spec(spec: CodeSpec) -> tuple[type[Encoder], type[Decoder], Any, Any]:
    """Return the classes of encoder and decoder, and their options.

    Raises CodeError for names and options that do not exist, k and r out of range, and pairs that
    do not fit each other.
    """
    try:
        encoder, decoder = ENCODERS.find(spec.encoder), DECODERS.find(spec.decoder)
        options = ENCODERS.options(spec.encoder, spec.encoder_options)
        of_decoder = DECODERS.options(spec.decoder, spec.decoder_options)
    except UserError as error:
        raise CodeError(str(error)) from error
    if spec.k < 2:
        raise CodeError(f"k must be 2 or more, got {spec.k}; with one query, replicate it instead")
    if spec.k > MAX_K:
        raise CodeError(f"k can be {MAX_K} at most, got {spec.k}; take smaller groups")
    if not 1 <= spec.r <= spec.k:
        raise CodeError(f"r must be from 1 to k={spec.k}, got {spec.r}")
    if encoder.symmetric and decoder.reads_off:
        raise CodeError(
            f"the {spec.encoder} of queries is the same in any order, so {spec.decoder} outputs "
            f"could not tell the slots apart; use subtraction with {spec.encoder}, or "
            f"concatenation or stack with {spec.decoder}"
        )
    return encoder, decoder, options, of_decoder


def _build(kind: type[C], spec: CodeSpec, shape: Shape, options: Any) -> C:
    try:
        return kind(spec.k, spec.r, tuple(shape), options)
    except TypeError as error:  # the user's class lacks a method, or takes other arguments
        name = spec.encoder if issubclass(kind, Encoder) else spec.decoder
        raise CodeError(f"{name} cannot be built: {error}") from error

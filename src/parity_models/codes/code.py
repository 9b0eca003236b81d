"""A code: an encoder and a decoder that make sense together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from parity_models.codes.decoders import DECODERS, Decoder
from parity_models.codes.encoders import ENCODERS, Encoder, NamedEncoder, NamedShape
from parity_models.codes.networks import NO_NETWORKS, CoderKind, Network, Networks, Shape
from parity_models.errors import CodeError, UserError
from parity_models.options import Value
from parity_models.registry import Registry, is_own

Array = Any
"""A numpy.ndarray or a torch.Tensor."""

C = TypeVar("C", Encoder, Decoder)

MAX_K = 256
"""Bounds what a bundle can ask of whoever opens it."""


@dataclass(frozen=True)
class CodeSpec:
    """What a bundle says of its code: names, k and r, and the options that were given.

    Names are those in `ENCODERS` and `DECODERS`, or users' own as package.module:Class.
    """

    encoder: str
    decoder: str
    k: int
    r: int = 1
    encoder_options: Mapping[str, Value] = field(default_factory=dict)
    decoder_options: Mapping[str, Value] = field(default_factory=dict)

    @property
    def own(self) -> set[str]:
        """The users' own classes that it names."""
        return {name for name in (self.encoder, self.decoder) if is_own(name)}

    def __str__(self) -> str:
        return f"{self.encoder} + {self.decoder}, k={self.k}, r={self.r}"


class Code:
    """An encoder and a decoder for queries of `query_shape` and predictions of `output_shape`.

    Shapes are without batch axes. Of queries of several inputs, or of dynamic shape, `query_shape`
    is a mapping of each input's name to its shape, and `encode` takes and gives what NamedEncoder
    does; the inputs' parity shapes are `named_parity_shapes`, and there are no `query_shape` and
    `parity_shape`. `networks` are those of learned encoders and decoders, which
    compute nothing without them. Users' own classes are imported: a name that comes out of a file
    is to be allowed first. Raises CodeError for names that do not exist, k and r out of range,
    options that there are not, shapes the encoder cannot take, and pairs that cannot work.
    """

    def __init__(
        self,
        spec: CodeSpec,
        query_shape: Shape | Mapping[str, NamedShape],
        output_shape: Shape,
        networks: Networks = NO_NETWORKS,
    ) -> None:
        encoder, decoder = check_spec(spec)
        self.spec = spec
        self.k = spec.k
        self.r = spec.r
        of_encoder, of_decoder = _options(spec)
        self.encoder: Any
        if isinstance(query_shape, Mapping):
            self.encoder = NamedEncoder(encoder, spec.k, spec.r, query_shape, of_encoder)
        else:
            self.encoder = _build(
                spec.encoder, encoder, spec, query_shape, of_encoder, networks.encoder
            )
        self.decoder = _build(
            spec.decoder, decoder, spec, output_shape, of_decoder, networks.decoder
        )

    @property
    def network_shapes(self) -> dict[CoderKind, tuple[Shape, Shape]]:
        """What the networks of learned coders take and give, without the batch axis."""
        coders: dict[CoderKind, tuple[Shape, Shape] | None] = {
            "encoder": self.encoder.network_shapes,
            "decoder": self.decoder.network_shapes,
        }
        return {coder: shapes for coder, shapes in coders.items() if shapes is not None}

    @property
    def isolated(self) -> bool:
        """Do encoder and decoder keep the slots apart?

        If the parity models do so as well, what is in one slot cannot change another's
        reconstruction.
        """
        return bool(self.encoder.apart) and self.decoder.apart

    @property
    def query_shape(self) -> Shape:
        shape: Shape = self.encoder.query_shape
        return shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.decoder.output_shape

    @property
    def parity_shape(self) -> Shape:
        """The shape of one parity query."""
        shape: Shape = self.encoder.parity_shape
        return shape

    @property
    def named_parity_shapes(self) -> dict[str, NamedShape]:
        """The shape of each input of one parity query, by name."""
        shapes: dict[str, NamedShape] = self.encoder.parity_shapes
        return shapes

    @property
    def parity_output_shape(self) -> tuple[int, ...]:
        """The shape of what a parity model emits for one parity query."""
        return self.decoder.parity_output_shape

    def encode(self, queries: Sequence[Array], out: Array | None = None) -> Array:
        """k arrays (*batch, *query_shape) to parity queries (r, *batch, *parity_shape).

        Writes into `out` if it is given. Raises CodeError for arrays that do not fit.
        """
        return self.encoder.encode(queries, out)

    def targets(self, predictions: Sequence[Array], j: int = 0) -> Array:
        """What parity model j is trained towards: (*batch, *parity_output_shape)."""
        return self.decoder.targets(predictions, j)

    def decodable(
        self, available: tuple[bool, ...], parities: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        """For each of k slots: is its prediction unavailable and can be reconstructed now?"""
        return self.decoder.decodable(available, parities)

    def decode(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> dict[int, Array]:
        """Reconstruct every slot that is None in `predictions`, keyed by slot.

        Raises UndecodableError if the outputs that are here do not determine them.
        """
        return self.decoder.decode(predictions, parity_outputs)


def check_spec(spec: CodeSpec) -> tuple[type[Encoder], type[Decoder]]:
    """The classes of encoder and decoder, where the two can be a code.

    Raises CodeError for names and options that do not exist, k and r out of range, and senseless
    pairs.
    """
    encoder, decoder = _find(ENCODERS, spec.encoder), _find(DECODERS, spec.decoder)
    _options(spec)
    if spec.k < 2:
        raise CodeError(f"k must be 2 or more, got {spec.k}; with one query, replicate it instead")
    if spec.k > MAX_K:
        raise CodeError(f"k can be {MAX_K} at most, got {spec.k}; take smaller groups")
    if not 1 <= spec.r <= spec.k:
        raise CodeError(f"r must be from 1 to k={spec.k}, got {spec.r}")
    if encoder.symmetric and decoder.tells_slots:
        raise CodeError(
            f"the {spec.encoder} of queries is the same in any order, so {spec.decoder} outputs "
            f"could not tell the slots apart; use subtraction with {spec.encoder}, or "
            f"concatenation or stack with {spec.decoder}"
        )
    return encoder, decoder


def _find(registry: Registry[C], name: str) -> type[C]:
    try:
        return registry.find(name)
    except UserError as error:
        raise CodeError(str(error)) from error


def _options(spec: CodeSpec) -> tuple[Any, Any]:
    try:
        return (
            ENCODERS.options(spec.encoder, spec.encoder_options),
            DECODERS.options(spec.decoder, spec.decoder_options),
        )
    except UserError as error:
        raise CodeError(str(error)) from error


def _build(
    name: str, kind: type[C], spec: CodeSpec, shape: Shape, options: Any, network: Network | None
) -> C:
    try:
        return kind(spec.k, spec.r, tuple(shape), options, network)
    except TypeError as error:  # the user's class lacks a method, or takes other arguments
        raise CodeError(f"{name} cannot be built: {error}") from error

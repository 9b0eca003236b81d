"""A code: an encoder and a decoder that make sense together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parity_models.codes.decoders import Decoder, SeparateDecoder, SubtractionDecoder
from parity_models.codes.encoders import (
    ConcatenationEncoder,
    Encoder,
    StackEncoder,
    SumEncoder,
)
from parity_models.codes.learned import (
    NO_NETWORKS,
    Coder,
    ConvolutionalEncoder,
    LearnedEncoder,
    MLPDecoder,
    MLPEncoder,
    Networks,
)
from parity_models.errors import CodeError

Array = Any
"""A numpy.ndarray or a torch.Tensor."""

ENCODERS: dict[str, type[Encoder]] = {
    encoder.name: encoder
    for encoder in (
        SumEncoder,
        ConcatenationEncoder,
        StackEncoder,
        MLPEncoder,
        ConvolutionalEncoder,
    )
}
DECODERS: dict[str, type[Decoder]] = {
    decoder.name: decoder for decoder in (SubtractionDecoder, SeparateDecoder, MLPDecoder)
}

MAX_K = 256
"""Bounds what a bundle can ask of whoever opens it."""


@dataclass(frozen=True)
class CodeSpec:
    """What a bundle says of its code: names, k and r, and the encoder's options."""

    encoder: str
    decoder: str
    k: int
    r: int = 1
    encoder_options: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.encoder} + {self.decoder}, k={self.k}, r={self.r}"


class Code:
    """An encoder and a decoder for queries of `query_shape` and predictions of `output_shape`.

    Shapes are without batch axes. `networks` are those of learned encoders and decoders, which
    compute nothing without them. Raises CodeError for names that do not exist, k and r out of
    range, shapes the encoder cannot take, and pairs that cannot work.
    """

    def __init__(
        self,
        spec: CodeSpec,
        query_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        networks: Networks = NO_NETWORKS,
    ) -> None:
        check_spec(spec)
        self.spec = spec
        self.k = spec.k
        self.r = spec.r
        self.encoder = _build_encoder(spec, tuple(query_shape), networks)
        self.decoder = _build_decoder(spec, tuple(output_shape), networks)

    @property
    def network_shapes(self) -> dict[Coder, tuple[tuple[int, ...], tuple[int, ...]]]:
        """What the networks of learned coders take and give, without the batch axis."""
        shapes: dict[Coder, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        if isinstance(self.encoder, LearnedEncoder):
            shapes["encoder"] = self.encoder.network_shapes
        if isinstance(self.decoder, MLPDecoder):
            shapes["decoder"] = self.decoder.network_shapes
        return shapes

    @property
    def isolated(self) -> bool:
        """Do encoder and decoder keep the slots apart?

        If the parity models do so as well, what is in one slot cannot change another's
        reconstruction.
        """
        return self.encoder.apart and self.decoder.apart

    @property
    def query_shape(self) -> tuple[int, ...]:
        return self.encoder.query_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.decoder.output_shape

    @property
    def parity_shape(self) -> tuple[int, ...]:
        """The shape of one parity query."""
        return self.encoder.parity_shape

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


def check_spec(spec: CodeSpec) -> None:
    """Raise CodeError for names that do not exist, k and r out of range, and senseless pairs."""
    for kind, name, known in (
        ("encoder", spec.encoder, ENCODERS),
        ("decoder", spec.decoder, DECODERS),
    ):
        if name not in known:
            raise CodeError(f"no {kind} is called {name!r}; there are {', '.join(known)}")
    if spec.k < 2:
        raise CodeError(f"k must be 2 or more, got {spec.k}; with one query, replicate it instead")
    if spec.k > MAX_K:
        raise CodeError(f"k can be {MAX_K} at most, got {spec.k}; take smaller groups")
    if not 1 <= spec.r <= spec.k:
        raise CodeError(f"r must be from 1 to k={spec.k}, got {spec.r}")
    if spec.encoder == "sum" and spec.decoder == "separate":
        raise CodeError(
            "the sum of queries is the same in any order, so separate outputs could not tell "
            "the slots apart; use subtraction with sum, or concatenation or stack with separate"
        )


def _build_encoder(spec: CodeSpec, query_shape: tuple[int, ...], networks: Networks) -> Encoder:
    encoder = ENCODERS[spec.encoder]
    given = {"network": networks.encoder} if issubclass(encoder, LearnedEncoder) else {}
    try:
        return encoder(spec.k, spec.r, query_shape, **spec.encoder_options, **given)
    except TypeError as error:
        raise CodeError(
            f"the {spec.encoder} encoder does not take the options "
            f"{dict(spec.encoder_options)}: {error}"
        ) from error


def _build_decoder(spec: CodeSpec, output_shape: tuple[int, ...], networks: Networks) -> Decoder:
    if spec.decoder == MLPDecoder.name:
        return MLPDecoder(spec.k, spec.r, output_shape, network=networks.decoder)
    return DECODERS[spec.decoder](spec.k, spec.r, output_shape)

"""Encoders and decoders as users write them: with options, and saying what they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parity_models.codes import Decoder, Encoder
from parity_models.codes.coder import Shape
from parity_models.options import option

Array = Any


class Amplified(Encoder):
    """The sum of the queries, times a gain."""

    name = "amplified"
    floating = True
    symmetric = True

    @dataclass(frozen=True, kw_only=True)
    class Options(Encoder.Options):
        """Options."""

        gain: float = option(1.0, "What sums are multiplied by.", gt=0, le=100)

    def shape(self) -> Shape:
        return self.query_shape

    def fill(self, queries: Sequence[Array], out: Array, xp: Any) -> None:
        out[...] = self.options.gain * sum(queries)


class Attenuated(Decoder):
    """Divides the parity output by the gain, and subtracts the predictions that are here."""

    name = "attenuated"
    sums = True

    @dataclass(frozen=True, kw_only=True)
    class Options(Decoder.Options):
        """Options."""

        divisor: float = option(1.0, "What outputs are divided by.", gt=0)

    def shape(self) -> Shape:
        return self.output_shape

    def targets(self, predictions: Sequence[Array], j: int) -> Array:
        return self.options.divisor * sum(predictions)

    def decodable(
        self, available: tuple[bool, ...], parities: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        enough = any(parities) and available.count(False) == 1
        return tuple(enough and not here for here in available)

    def decode(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> dict[int, Array]:
        missing = [slot for slot, value in enumerate(predictions) if value is None]
        outputs = [value for value in parity_outputs if value is not None]
        if not missing:
            return {}
        if len(missing) > 1 or not outputs:
            raise self.refusal(predictions, parity_outputs)
        here = sum(value for value in predictions if value is not None)
        return {missing[0]: outputs[0] / self.options.divisor - here}


ENCODER, DECODER = f"{__name__}:Amplified", f"{__name__}:Attenuated"

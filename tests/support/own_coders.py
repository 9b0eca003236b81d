"""Encoders and decoders as users write them: with options, and saying what they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from parity_models.codes import Decoder, Encoder
from parity_models.codes.coder import Shape, namespace
from parity_models.options import Option

Array = Any


class Amplified(Encoder):
    """The sum of the queries, times a gain."""

    name = "amplified"
    floating = True
    symmetric = True

    @dataclass(frozen=True, kw_only=True)
    class Options(Encoder.Options):
        """What can be set."""

        gain: Annotated[float, Option("What sums are multiplied by.", above=0, at_most=100)] = 1.0

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
        """What can be set."""

        divisor: Annotated[float, Option("What outputs are divided by.", above=0)] = 1.0

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


class Piled(Encoder):
    """The queries, one after another along their first axis, or a new one."""

    name = "piled"
    apart = True
    stacked_axis = 0

    @dataclass(frozen=True, kw_only=True)
    class Options(Encoder.Options):
        """What can be set."""

        new: Annotated[bool, Option("Along a new axis.")] = False

    def shape(self) -> Shape:
        if self.options.new:
            return (self.k, *self.query_shape)
        return (self.k * self.query_shape[0], *self.query_shape[1:])

    def fill(self, queries: Sequence[Array], out: Array, xp: Any) -> None:
        first = -len(self.query_shape)
        if self.options.new:
            out[...] = xp.stack(queries, axis=first - 1)
        else:
            out[...] = xp.concat(queries, axis=first)


class Abreast(Encoder):
    """The images side by side, with every k-th column of each."""

    name = "abreast"
    apart = True

    def shape(self) -> Shape:
        self.grid = (1, self.k)
        return self.query_shape

    def fill(self, queries: Sequence[Array], out: Array, xp: Any) -> None:
        out[...] = xp.concat([query[..., :: self.k] for query in queries], axis=-1)


class Listed(Decoder):
    """The parity model gives k predictions, and the missing ones are read off."""

    name = "listed"
    apart = True
    reads_off = True
    tells_slots = True

    def shape(self) -> Shape:
        return (self.k, *self.output_shape)

    def targets(self, predictions: Sequence[Array], j: int) -> Array:
        return namespace(predictions[0]).stack(predictions, axis=-1 - len(self.output_shape))

    def decodable(
        self, available: tuple[bool, ...], parities: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        return tuple(any(parities) and not here for here in available)

    def decode(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> dict[int, Array]:
        missing = [slot for slot, value in enumerate(predictions) if value is None]
        outputs = [value for value in parity_outputs if value is not None]
        if missing and not outputs:
            raise self.refusal(predictions, parity_outputs)
        after = (slice(None),) * len(self.output_shape)
        return {slot: outputs[0][(..., slot, *after)] for slot in missing}


ENCODER, DECODER = f"{__name__}:Amplified", f"{__name__}:Attenuated"
PILED, ABREAST, LISTED = (f"{__name__}:{name}" for name in ("Piled", "Abreast", "Listed"))

"""The separate decoder."""

from collections.abc import Sequence

from parity_models.codes.coder import Array, namespace
from parity_models.codes.decoders.decoder import Decoder


class SeparateDecoder(Decoder):
    """The parity model emits k predictions, one per slot, and a missing one is read off.

    One parity output reconstructs any number of unavailable predictions and needs none of the
    available ones (multiplexed inference: Murahari et al., DataMUX, NeurIPS 2022). Where
    several parity outputs are here, their mean is taken.
    """

    name = "separate"
    apart = True
    reads_off = True
    tells_slots = True

    def shape(self) -> tuple[int, ...]:
        return (self.k, *self.output_shape)

    def targets(self, predictions: Sequence[Array], j: int) -> Array:
        xp = namespace(predictions[0])
        return xp.stack(list(predictions), axis=-len(self.output_shape) - 1)

    def decodable(
        self, available: tuple[bool, ...], parities: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        enough = any(parities)
        return tuple(enough and not here for here in available)

    def decode(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> dict[int, Array]:
        missing = [i for i, value in enumerate(predictions) if value is None]
        here = [value for value in parity_outputs if value is not None]
        if missing and not here:
            raise self.refusal(predictions, parity_outputs)
        after = (slice(None),) * len(self.output_shape)
        result = {}
        for slot in missing:
            total = here[0][(..., slot, *after)]
            for value in here[1:]:
                total = total + value[(..., slot, *after)]
            result[slot] = total / len(here) if len(here) > 1 else total
        return result

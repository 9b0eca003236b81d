"""The mlp decoder."""

from collections.abc import Sequence
from math import prod
from typing import Any

from array_api_compat import device

from parity_models.codes.coder import Array, Shape, namespace, network_class, untrained
from parity_models.codes.decoders.subtraction import SubtractionDecoder


class MLPDecoder(SubtractionDecoder):
    """A network corrects what subtraction reconstructs: it sees all there is of the group.

    Parity models are trained as for subtraction, whose masks hold as well. The network takes
    (n, k + r, values + 1): for each slot the prediction, or what subtraction makes of a missing
    one, then for each parity query its output, or zeros; at the end of each row, 1 for what is
    here. It gives (n, k, values), to be added to what subtraction gives. `values` are those of
    one prediction.
    """

    name = "mlp"

    @property
    def network_shapes(self) -> tuple[Shape, Shape]:
        values = prod(self.output_shape)
        return (self.k + self.r, values + 1), (self.k, values)

    def new_network(self) -> Any:
        return network_class("PerceptronDecoder")(*self.network_shapes)

    def decode(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> dict[int, Array]:
        solved = super().decode(predictions, parity_outputs)
        if not solved:
            return {}
        if self.network is None:
            raise untrained(f"{self.name} decoder")
        like = next(iter(solved.values()))
        xp = namespace(like)
        rows = [solved.get(slot, value) for slot, value in enumerate(predictions)]
        rows += [xp.zeros_like(like) if output is None else output for output in parity_outputs]
        here = [value is not None for value in (*predictions, *parity_outputs)]
        values = prod(self.output_shape)
        table = xp.stack([xp.reshape(row, (-1, values)) for row in rows], axis=1)
        flags = xp.asarray(here, dtype=like.dtype, device=device(like))
        flags = xp.broadcast_to(flags[None, :, None], (*table.shape[:2], 1))
        corrections = self.network(xp.concat([table, flags], axis=-1))
        return {
            slot: value + xp.reshape(corrections[:, slot, :], value.shape)
            for slot, value in solved.items()
        }

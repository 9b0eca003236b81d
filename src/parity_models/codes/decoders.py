"""Decoders: the available outputs of a group in, reconstructions of the rest out.

A decoder also fixes the shape of a parity model's output (`parity_output_shape`, without batch
axes) and its training targets (`targets`), which depend on each other.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parity_models.codes.coder import Array, Coder, Shape, namespace, parity_weights
from parity_models.errors import UndecodableError
from parity_models.registry import Registry


class Decoder(Coder):
    """Fills in unavailable predictions of a group of k from available ones and parity outputs.

    A subclass defines its `name`, its `Options`, the methods, and these flags. `apart`: a
    reconstruction depends on its own slot of parity outputs alone. `reads_off`: parity outputs are
    k predictions, (k, *output_shape), in the deployed model's form, and are read off unchanged.
    They must tell the slots apart, which is impossible after a symmetric encoder. `sums`: parity
    outputs are sums of predictions, which take longer to learn.
    """

    apart: ClassVar[bool] = False
    reads_off: ClassVar[bool] = False
    sums: ClassVar[bool] = False

    def __init__(self, k: int, r: int, output_shape: Shape, options: Any = None) -> None:
        super().__init__(k, r, options)
        self.output_shape = output_shape
        self.parity_output_shape = self.shape()

    def shape(self) -> Shape:
        """Return the shape of a parity model's output for one parity query, without batch axes: by
        default that of a prediction. Raises CodeError for shapes that cannot be decoded."""
        return self.output_shape

    @abstractmethod
    def targets(self, predictions: Sequence[Array], j: int) -> Array:
        """Return the training targets of parity model j, given the k predictions F(X_i).

        k arrays of shape (*batch, *output_shape) give (*batch, *parity_output_shape).
        """

    @abstractmethod
    def decodable(
        self, available: tuple[bool, ...], parities: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        """Return for each of k slots whether its prediction is missing and can be reconstructed.

        `available` (k) says which predictions have arrived, `parities` (r) which parity outputs.
        """

    @abstractmethod
    def decode(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> dict[int, Array]:
        """Reconstruct every slot that is None in `predictions`, keyed by slot.

        `predictions` are k arrays (*batch, *output_shape), `parity_outputs` r arrays (*batch,
        *parity_output_shape); None marks unavailable ones. Raises UndecodableError if the others
        do not determine every missing slot.
        """

    def refusal(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> UndecodableError:
        """Return the error for outputs that do not determine the missing predictions."""
        missing = [i for i, value in enumerate(predictions) if value is None]
        here = sum(value is not None for value in parity_outputs)
        return UndecodableError(
            f"the {self.name} decoder cannot reconstruct slots {missing} of k={self.k} from "
            f"{here} of r={self.r} parity outputs; wait for more outputs of the group"
        )


class SubtractionDecoder(Decoder):
    """Solves Σ_i w_ji F(X_i) = F_P(P_j) for the unavailable predictions.

    Needs as many parity outputs as there are unavailable predictions (Kosaian et al., SOSP 2019,
    sections 3.2 and 3.5; for r = 1 and one missing prediction it is a subtraction). If there are
    more, it takes the least-squares solution, which evens out their errors.
    """

    name = "subtraction"
    sums = True

    def targets(self, predictions: Sequence[Array], j: int) -> Array:
        return _weighted(predictions, parity_weights(self.k, self.r)[j])

    def decodable(
        self, available: tuple[bool, ...], parities: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        enough = self.k - sum(available) <= sum(parities)
        return tuple(enough and not here for here in available)

    def decode(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> dict[int, Array]:
        missing = tuple(i for i, value in enumerate(predictions) if value is None)
        rows = tuple(j for j, value in enumerate(parity_outputs) if value is not None)
        if len(missing) > len(rows):
            raise self.refusal(predictions, parity_outputs)
        terms = [value for value in (*parity_outputs, *predictions) if value is not None]
        solution = _recovery_weights(self.k, self.r, missing, rows)
        return {
            slot: _weighted(terms, weights) for slot, weights in zip(missing, solution, strict=True)
        }


def _weighted(terms: Sequence[Array], weights: NDArray[np.float64]) -> Array:
    total = terms[0] * float(weights[0])
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total = total + term * float(weight)
    return total


@lru_cache(4096)
def _recovery_weights(
    k: int, r: int, missing: tuple[int, ...], rows: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return the weights (missing, rows + others) that recover the `missing` of k values from the
    sums in these rows of the parity weights and the other values."""
    here = [i for i in range(k) if i not in missing]
    sums = parity_weights(k, r)[list(rows)]
    inverse = np.linalg.pinv(sums[:, list(missing)])
    return np.concatenate([inverse, -inverse @ sums[:, here]], axis=1)


class SeparateDecoder(Decoder):
    """The parity model emits k predictions, one per slot, and a missing one is read off.

    One parity output reconstructs any number of unavailable predictions and needs none of the
    available ones (multiplexed inference: Murahari et al., DataMUX, NeurIPS 2022). If several
    parity outputs are available, their mean is taken.
    """

    name = "separate"
    apart = True
    reads_off = True

    def shape(self) -> Shape:
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


DECODERS = Registry[Decoder]("decoder", Decoder, SubtractionDecoder, SeparateDecoder)
"""The decoders."""

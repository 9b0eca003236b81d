"""The subtraction decoder."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from parity_models.codes.coder import Array
from parity_models.codes.decoders.decoder import Decoder
from parity_models.codes.weights import parity_weights, recovery_weights


class SubtractionDecoder(Decoder):
    """Solves Σ_i w_ji F(X_i) = F_P(P_j) for the unavailable predictions.

    Needs as many parity outputs as there are unavailable predictions (Kosaian et al., SOSP
    2019, sections 3.2 and 3.5; for r = 1 and one missing prediction it is a subtraction). Where
    there are more, the solution is that of least squares, which evens out their errors.
    """

    name = "subtraction"
    sums = True

    def shape(self) -> tuple[int, ...]:
        return self.output_shape

    def targets(self, predictions: Sequence[Array], j: int) -> Array:
        weights = parity_weights(self.k, self.r)[j]
        total = predictions[0] * float(weights[0])
        for prediction, weight in zip(predictions[1:], weights[1:], strict=True):
            total = total + prediction * float(weight)
        return total

    def decodable(
        self, available: tuple[bool, ...], parities: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        enough = self.k - sum(available) <= sum(parities)
        return tuple(enough and not here for here in available)

    def decode(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> dict[int, Array]:
        missing = tuple(i for i, value in enumerate(predictions) if value is None)
        here = [(j, value) for j, value in enumerate(parity_outputs) if value is not None]
        if len(missing) > len(here):
            raise self.refusal(predictions, parity_outputs)
        rows = tuple(j for j, _ in here)
        known = [value for value in predictions if value is not None]
        terms = [value for _, value in here] + known
        solution = _solution(self.k, self.r, missing, rows)
        result = {}
        for slot, weights in zip(missing, solution, strict=True):
            total = terms[0] * float(weights[0])
            for term, weight in zip(terms[1:], weights[1:], strict=True):
                total = total + term * float(weight)
            result[slot] = total
        return result


@lru_cache(4096)
def _solution(
    k: int, r: int, missing: tuple[int, ...], rows: tuple[int, ...]
) -> NDArray[np.float64]:
    return recovery_weights(parity_weights(k, r), missing, rows)

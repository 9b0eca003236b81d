"""Decoders: what is available of a group in, reconstructions of the rest out.

A decoder also fixes what a parity model emits (`parity_output_shape`, without batch axes) and
what it is trained towards (`targets`), since only together do the two make sense.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from parity_models.codes.weights import parity_weights, recovery_weights
from parity_models.errors import UndecodableError

Array = Any
"""A numpy.ndarray or a torch.Tensor."""


class Decoder(ABC):
    """Fills in unavailable predictions of a group of k from what is available.

    `apart` says whether a reconstruction depends on its own slot of parity outputs alone.
    """

    name: ClassVar[str]
    apart: ClassVar[bool] = False

    def __init__(self, k: int, r: int, output_shape: tuple[int, ...]) -> None:
        self.k = k
        self.r = r
        self.output_shape = output_shape
        self.parity_output_shape = self._parity_output_shape()

    @abstractmethod
    def _parity_output_shape(self) -> tuple[int, ...]: ...

    @abstractmethod
    def targets(self, predictions: Sequence[Array], j: int) -> Array:
        """What parity model j is trained towards, given the k predictions F(X_i).

        k arrays of shape (*batch, *output_shape) give (*batch, *parity_output_shape).
        """

    @abstractmethod
    def decodable(
        self, available: tuple[bool, ...], parities: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        """For each of k slots: is its prediction unavailable and can be reconstructed now?

        `available` (k) says which predictions are here, `parities` (r) which parity outputs.
        """

    @abstractmethod
    def decode(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> dict[int, Array]:
        """Reconstruct every slot that is None in `predictions`, keyed by slot.

        `predictions` are k arrays (*batch, *output_shape), `parity_outputs` r arrays
        (*batch, *parity_output_shape); None stands for what is unavailable. Raises
        UndecodableError if what is there does not determine every missing slot.
        """

    def _refuse(
        self, predictions: Sequence[Array | None], parity_outputs: Sequence[Array | None]
    ) -> UndecodableError:
        missing = [i for i, value in enumerate(predictions) if value is None]
        here = sum(value is not None for value in parity_outputs)
        return UndecodableError(
            f"the {self.name} decoder cannot reconstruct slots {missing} of k={self.k} from "
            f"{here} of r={self.r} parity outputs; wait for more outputs of the group"
        )


class SubtractionDecoder(Decoder):
    """Solves Σ_i w_ji F(X_i) = F_P(P_j) for the unavailable predictions.

    Needs as many parity outputs as there are unavailable predictions (Kosaian et al., SOSP
    2019, sections 3.2 and 3.5; for r = 1 and one missing prediction it is a subtraction). Where
    there are more, the solution is that of least squares, which evens out their errors.
    """

    name = "subtraction"

    def _parity_output_shape(self) -> tuple[int, ...]:
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
            raise self._refuse(predictions, parity_outputs)
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


class SeparateDecoder(Decoder):
    """The parity model emits k predictions, one per slot, and a missing one is read off.

    One parity output reconstructs any number of unavailable predictions and needs none of the
    available ones (multiplexed inference: Murahari et al., DataMUX, NeurIPS 2022). Where
    several parity outputs are here, their mean is taken.
    """

    name = "separate"
    apart = True

    def _parity_output_shape(self) -> tuple[int, ...]:
        return (self.k, *self.output_shape)

    def targets(self, predictions: Sequence[Array], j: int) -> Array:
        xp = array_namespace(predictions[0])
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
            raise self._refuse(predictions, parity_outputs)
        after = (slice(None),) * len(self.output_shape)
        result = {}
        for slot in missing:
            total = here[0][(..., slot, *after)]
            for value in here[1:]:
                total = total + value[(..., slot, *after)]
            result[slot] = total / len(here) if len(here) > 1 else total
        return result

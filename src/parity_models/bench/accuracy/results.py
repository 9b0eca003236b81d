"""What a matrix's cells measured."""

import hashlib

import msgspec

from parity_models.bench.accuracy.matrix import CodeCell, DeployedCell
from parity_models.evaluation.approaches import Approach
from parity_models.models.bundle import Accuracy


class CodeResult(msgspec.Struct, frozen=True):
    """A code with its parity models, measured on the whole test set.

    `relative_time` is the inference time of a parity model over the deployed model's;
    `encode_us` and `decode_us` are for one group and one unavailable prediction of it.
    """

    cell: CodeCell
    accuracy: Accuracy
    relative_time: float
    encode_us: float
    decode_us: float
    epochs: int
    seconds: float
    date: str

    @property
    def degraded(self) -> float:
        """A_d."""
        assert self.accuracy.degraded_accuracy is not None
        return self.accuracy.degraded_accuracy

    @property
    def lost(self) -> float:
        """A_a - A_d."""
        return self.accuracy.available_accuracy - self.degraded

    @property
    def overhead(self) -> float:
        """Work beyond one run of F per query, in runs of F."""
        return self.cell.r / self.cell.k * self.relative_time


class DeployedResult(msgspec.Struct, frozen=True):
    """A deployed model, measured on the whole test set of its task."""

    metric: str
    available: float
    queries: int
    epochs: int
    seconds: float
    date: str


class ModelResults(msgspec.Struct, frozen=True):
    """All that was measured for one deployed model."""

    cell: DeployedCell
    deployed: DeployedResult
    codes: tuple[CodeResult, ...]
    approaches: tuple[Approach, ...]

    def best(self, k: int, r: int = 1) -> CodeResult | None:
        """The code of our recipes with the best A_d at this k and r."""
        here = [
            one
            for one in self.codes
            if (one.cell.k, one.cell.r, one.cell.recipe) == (k, r, "distilled")
        ]
        return max(here, key=lambda one: one.degraded, default=None)

    def code(self, encoder: str, decoder: str, k: int, recipe: str) -> CodeResult | None:
        """The code of one pair at this k, with r = 1."""
        wanted = (encoder, decoder, k, 1, recipe)
        for one in self.codes:
            cell = one.cell
            if (cell.encoder, cell.decoder, cell.k, cell.r, cell.recipe) == wanted:
                return one
        return None


def key_of(*what: object) -> str:
    """Names a result by all that determines it."""
    return hashlib.sha256(msgspec.json.encode(what, order="sorted")).hexdigest()[:24]

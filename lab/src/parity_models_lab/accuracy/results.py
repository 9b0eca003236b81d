"""What a matrix's cells measured."""

import hashlib
from importlib.metadata import version

import msgspec
import numpy as np

from parity_models.models.bundle import Accuracy
from parity_models.tasks import Dataset
from parity_models_lab.accuracy.approaches import Approach
from parity_models_lab.accuracy.matrix import CodeCell, DeployedCell


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
    """A deployed model, measured on the whole test set of its task.

    `sha256` is that of its ONNX file.
    """

    sha256: str
    metric: str
    available: float
    queries: int
    epochs: int
    seconds: float
    date: str


class ModelResults(msgspec.Struct, frozen=True):
    """All that was measured for one deployed model, so far."""

    cell: DeployedCell
    deployed: DeployedResult
    codes: tuple[CodeResult, ...]
    approaches: tuple[Approach, ...]

    def best(self, k: int) -> CodeResult | None:
        """The distilled code with the best A_d at this k, with one parity query."""
        here = [
            one
            for one in self.codes
            if (one.cell.k, one.cell.r, one.cell.recipe) == (k, 1, "distilled")
        ]
        return max(here, key=lambda one: one.degraded, default=None)


VERSION = 3
"""Part of every key: raised when what a cell measures changes."""


def key_of(*what: object) -> str:
    """Names a result by all that determines it, this package's version among it."""
    described = msgspec.json.encode((VERSION, version("parity-models"), what), order="sorted")
    return hashlib.sha256(described).hexdigest()[:24]


def digest(data: Dataset) -> str:
    """Tells datasets with other queries, labels or splits apart."""
    content = hashlib.sha256(msgspec.json.encode(data.classes))
    for split in (data.train, data.validation, data.test):
        for array in (split.inputs, split.labels):
            content.update(f"{array.dtype} {array.shape}".encode())
            content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()

"""How an imitator's outputs become answers of F's kind, and how far they are from F's.

A network learns what is easiest to learn. Instead of probabilities it learns their logarithms, and
is served with a softmax. Instead of vectors of length 1 it learns vectors of any length, and is
served with a normalisation.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from parity_models.tasks.metrics import PredictionKind
from parity_models.tasks.output_kind import OutputKind
from parity_models.training.distillation import deviations, difference, squared_error

LEAST = 1e-6
"""Smaller probabilities are learned as this one: their logarithms tell nothing more."""


@dataclass(frozen=True)
class Likeness:
    """What predictions of `kind` are learned as; `scale` are their deviations (*output_shape)."""

    kind: OutputKind
    scale: Tensor

    @classmethod
    def of(cls, kind: OutputKind, predictions: Tensor) -> "Likeness":
        """That of F's `predictions` (ways, n, *output_shape)."""
        scale = deviations(predictions)
        # Of a direction every value weighs alike.
        return cls(kind, scale.square().mean().sqrt() if kind == "embeddings" else scale)

    @property
    def compared_as(self) -> PredictionKind:
        """The kind of prediction that the loss treats outputs as."""
        if self.kind in ("logits", "probabilities"):
            return "classes"
        return "boxes" if self.kind == "boxes" else "values"

    def targets(self, predictions: Tensor) -> Tensor:
        """The targets of outputs, given F's `predictions` (..., *output_shape)."""
        if self.kind != "probabilities":
            return predictions
        logarithms = predictions.clamp_min(LEAST).log()
        return logarithms - logarithms.mean(dim=-1, keepdim=True)

    def difference(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How far `outputs` are from `targets`, both (n, *output_shape): what is minimised."""
        if self.kind == "embeddings":
            outputs = functional.normalize(outputs, dim=-1)
        return difference(self.compared_as, outputs, targets, self.scale)

    def at_scale(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What holds outputs for classes, (n, ...), at the scale of their targets; else 0."""
        if self.compared_as == "classes":
            return squared_error(outputs, targets)
        return outputs.new_zeros(())

    def answer(self, outputs: Tensor) -> Tensor:
        """`outputs` (..., *output_shape) as answers, valid ones of the kind."""
        return answers(self.kind, outputs)


def answers(kind: OutputKind, outputs: Tensor) -> Tensor:
    """A network's `outputs` (..., values) as answers of `kind`."""
    if kind == "probabilities":
        return outputs.softmax(dim=-1)
    return functional.normalize(outputs, dim=-1) if kind == "embeddings" else outputs


class Answering(nn.Module):
    """`network` with its outputs made answers of `kind`, to be served."""

    def __init__(self, network: nn.Module, kind: OutputKind) -> None:
        super().__init__()
        self._network = network
        self._kind = kind

    def forward(self, *inputs: Tensor) -> Tensor:
        return answers(self._kind, self._network(*inputs))


class Converted(nn.Module):
    """`network` with its outputs as numbers of another type, which the deployed model gives."""

    def __init__(self, network: nn.Module, dtype: np.dtype[np.generic]) -> None:
        super().__init__()
        self._network = network
        self._dtype = torch.from_numpy(np.empty(0, dtype)).dtype

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs: Tensor = self._network(*inputs)
        return outputs.to(self._dtype)


def answering(network: nn.Module, kind: OutputKind) -> nn.Module:
    """`network` as it is served: with a softmax or a normalisation, where `kind` wants one."""
    return Answering(network, kind) if kind in ("probabilities", "embeddings") else network

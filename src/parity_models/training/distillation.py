"""The deployed model's predictions that stand-ins learn, and the losses that compare with them.

(Distillation: Hinton, Vinyals, Dean, 2015.)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from parity_models.errors import DataError
from parity_models.tasks.metrics import (
    USUAL,
    OutputKind,
    choose_metric,
    is_map,
    labels_from,
    recognise,
)
from parity_models.training.device import Rows, predict
from parity_models.training.teacher import Queries, Teacher
from parity_models.trust.envelope import Envelope, fit_envelope

TEMPERATURE = 2.0
"""Softens the predictions that are distilled."""

SQUARED_ERROR = 0.02
"""Weight of the squared error towards the targets: enough to hold outputs at the scale and
offset of F's, which distillation leaves open, too little to cost accuracy."""

SMALLEST = 1e-6
"""Smaller probabilities are learned as this one: their logarithms carry no information."""

PLAIN_KIND: dict[OutputKind, OutputKind] = {"probabilities": "logits", "embeddings": "numbers"}
"""If decoders compute with predictions, those of these kinds are learned just as F gives them, so
that parity models are served without a softmax or a normalisation."""


@dataclass(frozen=True)
class OutputTransform:
    """The form in which predictions of `kind` are learned, and served.

    Instead of probabilities a network learns their logarithms, and is served with a softmax;
    instead of vectors of length 1, vectors of any length, and is served with a normalisation.
    `scale` are the deviations (*output_shape) of F's predictions.
    """

    kind: OutputKind
    scale: Tensor

    @classmethod
    def of(cls, kind: OutputKind, predictions: Tensor) -> "OutputTransform":
        """Return the form for F's `predictions` (ways, n, *output_shape)."""
        scale = _deviations(predictions)
        # Every value of a direction has the same weight.
        return cls(kind, scale.square().mean().sqrt() if kind == "embeddings" else scale)

    @property
    def of_classes(self) -> bool:
        """True if outputs are scores of classes, not values."""
        return self.kind in ("logits", "probabilities")

    def targets(self, predictions: Tensor) -> Tensor:
        """Return the targets of outputs, given F's `predictions` (..., *output_shape)."""
        if self.kind != "probabilities":
            return predictions
        logarithms = predictions.clamp_min(SMALLEST).log()
        return logarithms - logarithms.mean(dim=-1, keepdim=True)

    def difference(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of `outputs` towards `targets`, both (n, *output_shape): for classes the
        Kullback-Leibler divergence of softened predictions, otherwise the squared error in units of
        `scale`."""
        if self.of_classes:
            each = functional.kl_div(
                functional.log_softmax(outputs / TEMPERATURE, dim=-1),
                functional.log_softmax(targets / TEMPERATURE, dim=-1),
                reduction="none",
                log_target=True,
            )
            return each.sum(dim=-1).mean() * TEMPERATURE**2
        if self.kind == "embeddings":
            outputs = functional.normalize(outputs, dim=-1)
        return functional.mse_loss(outputs / self.scale, targets / self.scale)


def valid(kind: OutputKind, outputs: Tensor) -> Tensor:
    """Return a network's `outputs` (..., *output_shape) as valid predictions of the kind."""
    if kind == "probabilities":
        return outputs.softmax(dim=-1)
    return functional.normalize(outputs, dim=-1) if kind == "embeddings" else outputs


class Served(nn.Module):
    """`network` as it is served: with answers of `kind` and `dtype`, and its `head`'s, if any."""

    def __init__(
        self,
        network: nn.Module,
        kind: OutputKind,
        dtype: np.dtype[Any],
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self._network = network
        self._head = head
        self._kind = kind
        self._dtype = torch.from_numpy(np.empty(0, dtype)).dtype

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        outputs: Tensor = self._network(*inputs)
        answers = valid(self._kind, outputs).to(self._dtype)
        return answers if self._head is None else (answers, self._head(outputs))


@dataclass(frozen=True)
class DistillationData:
    """Queries (n, *query_shape), and F's predictions (ways, n, *output_shape) for them.

    The second way, if there is one, is for the queries turned left to right. `metric` judges on the
    m queries `held_out`, by F's predictions for them and right answers: classes (m,), or
    predictions (m, *output_shape).
    """

    inputs: Rows
    predictions: Tensor
    held_out: Rows
    held_out_predictions: Tensor
    held_out_labels: NDArray[Any]
    metric: str
    transform: OutputTransform

    @classmethod
    def of(
        cls, queries: Queries, inputs: Rows, predictions: Tensor, held_out: Rows, predicted: Tensor
    ) -> "DistillationData":
        """Return the data of `queries`, whose rows are on the device of F's predictions.

        Raises UserError for a metric that cannot judge them.
        """
        some = predictions[0].cpu().numpy()
        kind = recognise(some, queries.metric)
        metric = choose_metric(queries.metric or USUAL[kind], some.shape[1:])
        right = queries.validation_labels
        if right is None:
            right = labels_from(predicted.cpu().numpy(), metric)
        transform = OutputTransform.of(kind, predictions)
        return cls(inputs, predictions, held_out, predicted, right, metric, transform)

    @property
    def mirrored(self) -> bool:
        """True if there are predictions for queries flipped left to right."""
        return len(self.predictions) == 2

    @property
    def output_kind(self) -> OutputKind:
        """The kind of the predictions as they are learned."""
        return self.transform.kind


def distill(
    model: nn.Module, teacher: Teacher, queries: Queries, device: torch.device
) -> DistillationData:
    """Run F, here `model`, once over the queries, and over mirrored ones if those count.

    Raises DataError if all predictions are the same or some are not finite, and UserError for a
    metric that cannot judge them.
    """
    inputs = Rows.of(queries.train, teacher.signature, device)
    held_out = Rows.of(queries.validation, teacher.signature, device)
    ways = (False, True) if queries.hflip else (False,)
    predictions = torch.stack([predict(model, inputs, mirrored=turned) for turned in ways])
    predicted = predict(model, held_out)
    if not (predictions.isfinite().all() and predicted.isfinite().all()):
        raise DataError(
            "the deployed model predicts NaN or infinite values for some of the inputs; leave "
            "those out, or check that inputs are scaled as the model expects them"
        )
    if len(inputs) > 1 and (predictions[0] == predictions[0, :1]).all():
        raise DataError(
            "the deployed model predicts the same for all inputs, so nothing can be learned from "
            "it; check that they are scaled as the model expects them"
        )
    return DistillationData.of(queries, inputs, predictions, held_out, predicted)


def envelope_of(data: DistillationData, teacher: Teacher) -> Envelope:
    """Return the envelope of the data's queries."""
    signature, outputs = teacher.signature, data.predictions[0].cpu().numpy()
    queries, held_out = data.inputs.arrays(signature), data.held_out.arrays(signature)
    return fit_envelope(signature.inputs, queries, held_out, outputs, mirrored=data.mirrored)


def _deviations(predictions: Tensor) -> Tensor:
    """Return the deviation of each value of F's `predictions` (ways, n, *output_shape).

    A value that never varies gets the largest of all, else its errors would have no bounded weight.
    All values of a map get one: those at its edges vary little, and would dominate the loss.
    """
    each = predictions.flatten(0, 1).std(dim=0)
    if is_map(each.shape):
        return each.square().mean().sqrt().clamp_min(1e-6).expand_as(each)
    largest = each.max().clamp_min(1e-6)
    return torch.where(each > 1e-6 * largest, each, largest)

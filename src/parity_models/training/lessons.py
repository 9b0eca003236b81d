"""What imitators of a deployed model F learn from, and what they are judged by."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parity_models.models.envelope import Envelope
from parity_models.tasks import Split
from parity_models.tasks.output_kind import OutputKind, choose_output_kind
from parity_models.tasks.unlabelled import labels_from
from parity_models.training.device_queries import predict, predict_both_ways
from parity_models.training.envelope import fit_envelope
from parity_models.training.inputs import check_telling, part
from parity_models.training.likeness import Likeness
from parity_models.training.rows import DeviceQueries, Rows, on_device, tensor
from parity_models.training.subject import Subject


@dataclass(frozen=True)
class HeldOut:
    """Queries (m, *query_shape) that none learns from, what F predicts for them, and what is right.

    `labels` are for the metric: classes (m,), or predictions (m, *output_shape).
    """

    inputs: DeviceQueries
    predictions: Tensor
    labels: NDArray[Any]


@dataclass(frozen=True)
class Lessons:
    """Queries (n, *query_shape), and F's predictions (ways, n, *output_shape) for them.

    The second way, if there is one, is for the queries turned left to right. `likeness` says what
    predictions are learned as, `metric` judges on what is `held_out`.
    """

    inputs: DeviceQueries
    predictions: Tensor
    held_out: HeldOut
    metric: str
    likeness: Likeness

    @property
    def mirrored(self) -> bool:
        return len(self.predictions) == 2

    @property
    def output_kind(self) -> OutputKind:
        return self.likeness.kind

    def unmirrored(self) -> "Lessons":
        """The same, with no query turned."""
        return replace(self, predictions=self.predictions[:1])

    def learned_as(self, kind: OutputKind) -> "Lessons":
        """The same, with predictions learned as another kind."""
        return replace(self, likeness=Likeness.of(kind, self.predictions))


def lessons_of(
    model: nn.Module,
    subject: Subject,
    inputs: NDArray[Any],
    validation: Split | None,
    device: torch.device,
    *,
    metric: str | None,
    output_kind: str | None,
    mirrored: bool,
    least: int,
) -> Lessons:
    """What F, here `model`, teaches of `inputs` (n, *query_shape).

    F is run once over each way that a query can come, not once per epoch. Without `validation`,
    some inputs are held out, `least` or more, and F's own predictions for them count as right.
    Raises DataError for a model that predicts the same for all, and UserError as
    `choose_output_kind` does.
    """
    if validation is None:
        inputs, drawn = part(inputs, least)
    else:
        drawn = validation.inputs
    queries = on_device(inputs, subject, device)
    predictions = predict_both_ways(model, queries, mirrored)
    check_telling(predictions[0])
    kind, metric = choose_output_kind(output_kind, metric, predictions[0].cpu().numpy())
    held_out = on_device(drawn, subject, device)
    predicted = predict(model, held_out)
    right = validation.labels if validation else labels_from(predicted.cpu().numpy(), metric)
    return Lessons(
        queries,
        predictions,
        HeldOut(held_out, predicted, right),
        metric,
        Likeness.of(kind, predictions),
    )


def envelope_of(lessons: Lessons, subject: Subject) -> Envelope:
    """Which queries of `subject` are like those that the lessons are of."""
    inputs, held_out = lessons.inputs, lessons.held_out.inputs
    predictions = lessons.predictions[0].cpu().numpy()
    if isinstance(inputs, Rows):
        assert isinstance(held_out, Rows)
        signature = subject.signature
        queries, others = inputs.arrays(signature), held_out.arrays(signature)
        return fit_envelope(signature.inputs, queries, others, predictions)
    name = subject.signature.inputs[0].name
    return fit_envelope(
        subject.signature.inputs,
        {name: inputs.cpu().numpy()},
        {name: tensor(held_out).cpu().numpy()},
        predictions,
        mirrored=lessons.mirrored,
    )

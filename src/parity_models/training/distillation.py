"""The deployed model's predictions that stand-ins learn, the losses that compare with them, and the
learning problems of a backup and of a code's parity models.

(Distillation: Hinton, Vinyals, Dean, 2015.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from parity_models.codes import Code
from parity_models.errors import DataError
from parity_models.tasks.metrics import (
    USUAL,
    OutputKind,
    choose_metric,
    is_map,
    labels_from,
    recognise,
    score,
)
from parity_models.training.device import BATCH, Rows, mirror, predict, run_reduced
from parity_models.training.networks.network import EachSlot, Effort
from parity_models.training.teacher import Queries, Teacher
from parity_models.trust.envelope import Envelope, channel_axis, fit_envelope

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


Answers = tuple[NDArray[Any], NDArray[np.int64]]
"""Answers (m, *output_shape), and which of the queries held out they are for (m,)."""

LEAST_VALIDATED = 2000
"""The fewest reconstructions that an epoch is judged by; few queries are grouped repeatedly."""

SCALING = 2048
"""The most groups by which queries and outputs are scaled."""


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


# The problem


class Distillation:
    """Fitting networks to F's predictions, scored on queries that they do not see.

    Without a `code`, `module` is a network for single queries. With one, it is a list of the code's
    r parity models, so that predictions of F can be reconstructed. These are trained side by side
    on the same groups, drawn anew every epoch. The loss compares decoded predictions with F's, or
    if the recipe says so parity outputs with their targets. The score is A_d: the mean over slots
    and parity models, on groups drawn once.

    `foreign`: F comes from elsewhere and gives no weights to start from, so queries and predictions
    may be of any scale, and `module` is the given one wrapped in a scaling.
    """

    def __init__(
        self,
        module: nn.Module,
        code: Code | None,
        data: DistillationData,
        recipe: Effort,
        *,
        foreign: bool,
    ) -> None:
        self.data, self.module = data, module
        self._code, self._k = code, 1 if code is None else code.k
        self._decoded = recipe.decoded
        self._targets = data.transform.targets(data.predictions)
        self._groups = len(data.inputs) // self._k
        self.steps = recipe.steps_per_epoch(self._groups)
        if foreign:
            self._scale()

    @property
    def models(self) -> Sequence[nn.Module]:
        """The r parity models of the code, or the one network for single queries."""
        return list(self.module) if isinstance(self.module, nn.ModuleList) else [self.module]

    @torch.no_grad()
    def _scale(self) -> None:
        """Scale queries of one array, and outputs of values by their targets. Where a code mixes
        the queries, parity queries are scaled, by some groups."""
        data, code = self.data, self._code
        targets = None if data.transform.of_classes else self._targets[0]
        inputs = data.inputs.tensors[0]
        channels = channel_axis(tuple(inputs.shape[1:]))
        if code is None:
            self.module = scaled(
                self.module, inputs if data.inputs.is_array else None, targets, channels
            )
            return
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
        groups = min(SCALING, self._groups)
        rows = order[: groups * code.k].view(code.k, -1).to(inputs.device)
        parities = self._encoded([data.inputs[each] for each in rows])
        models = nn.ModuleList()
        for j, model in enumerate(self.models):
            if isinstance(model, EachSlot):
                model.network = scaled(model.network, inputs, targets, channels)
            else:
                sums = None if targets is None else code.targets(list(targets[rows]), j)
                (parity,) = parities[j].tensors
                model = scaled(model, parity, sums, channels)
            models.append(model)
        self.module = models

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the losses of one epoch's batches."""
        inputs, k = self.data.inputs, self._k
        members = torch.randperm(len(inputs), generator=generator)[: self._groups * k]
        members = members.view(k, self._groups).to(inputs.device)
        ways = torch.zeros_like(members)
        if self.data.mirrored:
            ways = torch.randint(2, members.shape, generator=generator).to(inputs.device)
        for rows, way in zip(
            members.tensor_split(self.steps, dim=1),
            ways.tensor_split(self.steps, dim=1),
            strict=True,
        ):
            queries = [inputs[each] for each in rows]
            if self.data.mirrored:
                queries = [
                    Rows(tuple(mirror(tensor, turn == 1) for tensor in each.tensors))
                    for each, turn in zip(queries, way, strict=True)
                ]
            yield self._loss(queries, list(self._targets[way, rows]))

    def _loss(self, queries: Sequence[Rows], predictions: Sequence[Tensor]) -> Tensor:
        total, transform = torch.zeros((), device=predictions[0].device), self.data.transform
        for j, (model, encoded) in enumerate(zip(self.models, self._encoded(queries), strict=True)):
            outputs = run_reduced(model, encoded)
            targets = predictions[0] if self._code is None else self._code.targets(predictions, j)
            if not self._decoded:
                total = total + functional.mse_loss(outputs, targets)
                continue
            if transform.of_classes:
                total = total + SQUARED_ERROR * functional.mse_loss(outputs, targets)
            for slot, decoded in enumerate(self._decode_each(predictions, outputs, j)):
                total = total + transform.difference(decoded, predictions[slot]) / self._k
        return total

    def _decode_each(
        self, predictions: Sequence[Tensor], outputs: Tensor, j: int
    ) -> Iterator[Tensor]:
        """Yield each of k slots, reconstructed from parity output j and the other predictions."""
        if self._code is None:
            yield outputs
            return
        parity_outputs = [outputs if row == j else None for row in range(self._code.r)]
        for slot in range(self._k):
            available = [None if i == slot else one for i, one in enumerate(predictions)]
            yield self._code.decode(available, parity_outputs)[slot]

    def _encoded(self, queries: Sequence[Rows]) -> Sequence[Rows]:
        """Return r parity queries of k queries; without a code, the query."""
        if self._code is None:
            return queries
        (name,) = self._code.query_shapes
        encoded = self._code.encode([{name: each.tensors[0]} for each in queries])
        return [Rows((parity[name],)) for parity in encoded]

    @torch.no_grad()
    def answers(self) -> Iterator[Answers]:
        """Yield answers to the queries held out, in parts that are scored apart: of a code, the
        reconstructions of each parity model and slot."""
        data, transform = self.data, self.data.transform
        if self._code is None:
            outputs = valid(transform.kind, predict(self.module, data.held_out))
            yield outputs.cpu().numpy(), np.arange(len(outputs))
            return
        members = _groups_of(len(data.held_out), self._k)
        parts = [
            self._encoded([data.held_out[each] for each in rows])
            for rows in torch.split(members, BATCH, dim=1)
        ]
        targets = transform.targets(data.held_out_predictions)
        predictions = [targets[rows] for rows in members]
        for j, model in enumerate(self.models):
            parities = torch.cat([part[j].tensors[0] for part in parts])
            each = self._decode_each(predictions, predict(model, Rows((parities,))), j)
            for decoded, rows in zip(each, members.numpy(), strict=True):
                yield valid(transform.kind, decoded).cpu().numpy(), rows

    def score(self) -> float:
        """Return the mean score of the answers to the queries held out."""
        metric, labels = self.data.metric, self.data.held_out_labels
        scores = [score(metric, given, labels[rows]) for given, rows in self.answers()]
        return sum(scores) / len(scores)


def _groups_of(rows: int, k: int) -> Tensor:
    """Draw groups (k, n) of `rows`, enough for LEAST_VALIDATED reconstructions."""
    groups = rows // k
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.randperm(rows, generator=generator)[: groups * k].view(k, -1)
        for _ in range(ceil(LEAST_VALIDATED / (groups * k)))
    ]
    return torch.cat(drawn, dim=1)


# Scaling

# Networks train well when inputs and outputs are near unit scale. A user's deployed model may take
# and predict values of any scale, kilometres, prices, pixels to 255, and scale its inputs itself.
# So a network that imitates it is scaled by the mean and deviation of its training data.

NEAR, NARROW, WIDE = 2.0, 0.2, 5.0
"""Inputs are left unscaled if every mean is nearer to 0 than NEAR, every deviation is below WIDE,
and every value goes farther than NARROW from its mean at least once."""

FARTHEST = 10.0
"""The most deviations of a value from its mean: the deviation of rare features, which go farther,
is raised."""

MAX_VALUES = 2**26
"""The most values that a scale is taken from."""


def scaled(
    network: nn.Module, inputs: Tensor | None, targets: Tensor | None, channels: int | None
) -> nn.Module:
    """Return `network` with its `inputs`, if given, standardised and, if there are `targets`, its
    outputs scaled back.

    Mean and deviation of `inputs` (n, *input_shape) are taken for each index along the axis
    `channels`, or for each value if that is None; those of outputs for each value of `targets`
    (n, *output_shape).
    """
    before = after = None
    if inputs is not None:
        axes = range(inputs.ndim - 1)
        alike = () if channels is None else tuple(axis for axis in axes if axis != channels)
        shift, deviation, reach = _spread(inputs, alike)
        if shift.abs().max() >= NEAR or deviation.max() >= WIDE or reach.min() <= NARROW:
            before = shift, 1 / deviation
    if targets is not None:
        offset, scale, _ = _spread(targets, ())
        after = scale, offset
    return network if before is None and after is None else Scaled(network, before, after)


class Scaled(nn.Module):
    """Runs `network` on (inputs - shift) * inverse, with `before` of (shift, inverse); multiplies
    its outputs by scale and adds offset, with `after` of (scale, offset)."""

    def __init__(
        self,
        network: nn.Module,
        before: tuple[Tensor, Tensor] | None,
        after: tuple[Tensor, Tensor] | None,
    ) -> None:
        super().__init__()
        self.network = network
        self._standardises = before is not None
        same = torch.zeros(()), torch.ones(())
        self.shift, self.inverse = map(nn.Buffer, before or same)
        self.scale, self.offset = map(nn.Buffer, after or same[::-1])

    def forward(self, *inputs: Tensor) -> Tensor:
        if self._standardises:
            inputs = ((inputs[0] - self.shift) * self.inverse,)
        outputs: Tensor = self.network(*inputs)
        return outputs * self.scale + self.offset


def _spread(values: Tensor, alike: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, deviation and reach of `values` (n, *shape) over n and the axes `alike` of a
    value, which are kept with length 1.

    The reach is the largest distance from the mean. It and the deviation of constants are 1.
    """
    axes = (0, *(axis + 1 for axis in alike))
    stride = ceil(values.numel() / MAX_VALUES)
    some = values.detach()[::stride].cpu().double()
    mean = some.mean(dim=axes, keepdim=True)
    reach = (some - mean).abs().amax(dim=axes, keepdim=True)
    deviation = some.std(dim=axes, correction=0, keepdim=True).maximum(reach / FARTHEST)
    constant = deviation <= 1e-6 * mean.abs()
    each = (mean, deviation.masked_fill(constant, 1), reach.masked_fill(constant, 1))
    mean, deviation, reach = (one[0].float().to(values.device) for one in each)
    return mean, deviation, reach

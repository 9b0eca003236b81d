"""The learning problems of a backup and of a code's parity models, and their scaling.

Networks train well when inputs and outputs are near unit scale. A user's deployed model may take
and predict values of any scale, kilometres, prices, pixels to 255, and scale its inputs itself. So
a network that imitates it is scaled by the mean and deviation of its training data.
"""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from parity_models.codes import Code
from parity_models.tasks.metrics import score
from parity_models.training.device import BATCH, Rows, mirror, predict, run_reduced
from parity_models.training.distillation import SQUARED_ERROR, DistillationData, valid
from parity_models.training.networks.network import EachSlot, Effort, SelfScaling, served
from parity_models.trust.envelope import channel_axis

Answers = tuple[NDArray[Any], NDArray[np.int64]]
"""Answers (m, *output_shape), and which of the queries held out they are for (m,)."""

LEAST_VALIDATED = 2000
"""The fewest reconstructions that an epoch is judged by; few queries are grouped repeatedly."""

SCALING = 2048
"""The most groups by which queries and outputs are scaled."""


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
        """Scale queries, and outputs of values by their targets. Where a code mixes the queries,
        parity queries are scaled, by some groups."""
        data, code = self.data, self._code
        targets = None if data.transform.of_classes else self._targets[0]
        if isinstance(self.module, SelfScaling):
            if targets is not None:
                offset, scale, _ = _spread(targets, ())
                self.module = Scaled(self.module, scale, offset)
            return
        (inputs,) = data.inputs.tensors
        channels = channel_axis(tuple(inputs.shape[1:]))
        if code is None:
            self.module = scaled(self.module, inputs, targets, channels)
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

NEAR, NARROW, WIDE = 2.0, 0.2, 5.0
"""Inputs are left unscaled if every mean is nearer to 0 than NEAR, every deviation is below WIDE,
and every value goes farther than NARROW from its mean at least once."""

FARTHEST = 10.0
"""The most deviations of a value from its mean: the deviation of rare features, which go farther,
is raised."""

MAX_VALUES = 2**26
"""The most values that a scale is taken from."""


def scaled(
    network: nn.Module, inputs: Tensor, targets: Tensor | None, channels: int | None
) -> nn.Module:
    """Return `network` with its inputs standardised and, if there are `targets`, its outputs scaled
    back.

    Mean and deviation of `inputs` (n, *input_shape) are taken for each index along the axis
    `channels`, or for each value if that is None; those of outputs for each value of `targets`
    (n, *output_shape).
    """
    axes = range(inputs.ndim - 1)
    alike = () if channels is None else tuple(axis for axis in axes if axis != channels)
    shift, deviation, reach = _spread(inputs, alike)
    if shift.abs().max() < NEAR and deviation.max() < WIDE and reach.min() > NARROW:
        if targets is None:
            return network
        shift, deviation = torch.zeros_like(shift), torch.ones_like(deviation)
    if targets is None:
        return Scaled(network, shift.new_ones(()), shift.new_zeros(()), shift, 1 / deviation)
    offset, scale, _ = _spread(targets, ())
    return Scaled(network, scale, offset, shift, 1 / deviation)


class Scaled(SelfScaling):
    """Runs `network` on (inputs - shift) * inverse, unless it scales them itself; multiplies its
    outputs by `scale`, and adds `offset`."""

    shift: Tensor
    inverse: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        network: nn.Module,
        scale: Tensor,
        offset: Tensor,
        shift: Tensor | None = None,
        inverse: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._standardises = shift is not None
        self.register_buffer("shift", shift)
        self.register_buffer("inverse", inverse)
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, *inputs: Tensor) -> Tensor:
        if self._standardises:
            (input,) = inputs
            inputs = ((input - self.shift) * self.inverse,)
        outputs: Tensor = self.network(*inputs)
        return outputs * self.scale + self.offset

    def served(self) -> nn.Module:
        """Return the network as it is served: one for named inputs scales these itself."""
        if not isinstance(self.network, SelfScaling):
            return self
        return Scaled(served(self.network), self.scale, self.offset)


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

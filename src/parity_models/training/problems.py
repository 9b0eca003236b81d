"""The learning problems of stand-ins: of a backup, and of a code's networks.

Networks train well when inputs and outputs are near unit scale. A user's deployed model may take
and predict values of any scale, kilometres, prices, pixels to 255, and scale its inputs itself. So
a network that imitates it is scaled by the mean and deviation of its training data.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import deepcopy
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from parity_models.codes import Code
from parity_models.models.networks.network import NamedModule, Slot, Slotwise, served
from parity_models.models.networks.perceptrons import FullLayers
from parity_models.tasks import score
from parity_models.training.device import BATCH, Rows, mirror, predict, run_reduced
from parity_models.training.distillation import DistillationData, valid
from parity_models.training.envelope import channel_axis
from parity_models.training.fit import Recipe

Answers = tuple[NDArray[Any], NDArray[np.int64]]
"""Answers (m, *output_shape), and which of the queries held out they are for (m,)."""

LEAST_VALIDATED = 2000
"""Reconstructions by which an epoch is judged at least; few queries are grouped repeatedly."""

SCALING = 2048
"""The most groups by which queries and outputs are scaled."""


class Distillation(ABC):
    """Fitting a module to F's predictions, scored on queries that it does not see.

    `foreign`: F comes from elsewhere and gives no weights to start from, so queries and predictions
    may be of any scale.
    """

    module: nn.Module
    steps: int

    def __init__(self, data: DistillationData) -> None:
        self.data = data
        self.targets = data.transform.targets(data.predictions)

    @abstractmethod
    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the losses of one epoch's batches."""

    @abstractmethod
    def answers(self) -> Iterator[Answers]:
        """Yield the module's answers to the queries held out, in parts that are scored apart."""

    def score(self) -> float:
        """Return the mean score of the answers to the queries held out."""
        metric, labels = self.data.metric, self.data.held_out.labels
        scores = [score(metric, given, labels[rows]) for given, rows in self.answers()]
        return sum(scores) / len(scores)


class Imitation(Distillation):
    """Fitting a module for single queries; `foreign`, it is scaled around the given one."""

    def __init__(
        self, module: nn.Module, data: DistillationData, recipe: Recipe, *, foreign: bool
    ) -> None:
        super().__init__(data)
        self.steps = recipe.steps_per_epoch(len(data.inputs))
        self.module = module
        targets = None if data.transform.of_classes else self.targets[0]
        if foreign and not isinstance(module, NamedModule):
            (inputs,) = data.inputs.tensors
            self.module = scaled(module, inputs, targets, channel_axis(tuple(inputs.shape[1:])))
        elif foreign and targets is not None:  # it scales its inputs itself
            offset, scale, _ = _spread(targets, ())
            self.module = Scaled(module, scale, offset)

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the losses of one epoch's batches."""
        inputs, transform = self.data.inputs, self.data.transform
        size, device = len(inputs), inputs.device
        order = torch.randperm(size, generator=generator).to(device)
        ways = torch.randint(len(self.targets), (size,), generator=generator).to(device)
        for rows in order.tensor_split(self.steps):
            queries, way = inputs[rows], ways[rows]
            if self.data.mirrored:
                queries = Rows(tuple(mirror(each, way == 1) for each in queries.tensors))
            outputs, targets = run_reduced(self.module, queries), self.targets[way, rows]
            yield transform.difference(outputs, targets) + transform.at_scale(outputs, targets)

    def answers(self) -> Iterator[Answers]:
        """Yield the answers to all queries held out."""
        inputs = self.data.held_out.inputs
        outputs = valid(self.data.output_kind, predict(self.module, inputs))
        yield outputs.cpu().numpy(), np.arange(len(inputs))


class Reconstruction(Distillation):
    """Fitting the r parity models of a code so that predictions of F can be reconstructed.

    All are trained side by side on the same groups, which are drawn anew every epoch. The loss
    compares decoded predictions with F's, or if the recipe says so parity outputs with their
    targets. It is scored by A_d: the mean over slots and parity models, on groups of queries that
    are not trained on, drawn once.
    """

    module: nn.ModuleList

    def __init__(
        self,
        models: nn.ModuleList,
        code: Code,
        data: DistillationData,
        recipe: Recipe,
        *,
        foreign: bool,
    ) -> None:
        super().__init__(data)
        self.module = models
        self._code = code
        self._decoded = recipe.decoded
        (self._inputs,) = data.inputs.tensors
        self._groups = len(data.inputs) // self._code.k
        self.steps = recipe.steps_per_epoch(self._groups)
        self._members = _groups_of(len(data.held_out.inputs), self._code.k)
        if foreign:
            self._scale()

    @torch.no_grad()
    def _scale(self) -> None:
        """Scale parity queries, and outputs of values to their targets, by some groups."""
        k, generator = self._code.k, torch.Generator().manual_seed(0)
        order = torch.randperm(len(self._inputs), generator=generator)
        groups = min(SCALING, self._groups)
        rows = order[: groups * k].view(k, -1).to(self._inputs.device)
        parities = self._encoded(list(self._inputs[rows]))
        predictions = list(self.targets[0, rows])
        classes, channels = self.data.transform.of_classes, channel_axis(self._code.query_shape)
        for j, model in enumerate(self.module):
            targets = None if classes else self._code.targets(predictions, j)
            self.module[j] = scaled(model, parities[j], targets, channels)

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the losses of one epoch's batches."""
        k, device = self._code.k, self._inputs.device
        members = torch.randperm(len(self._inputs), generator=generator)[: self._groups * k]
        members = members.view(k, self._groups).to(device)
        ways = torch.zeros_like(members)
        if self.data.mirrored:
            ways = torch.randint(2, members.shape, generator=generator).to(device)
        for rows, way in zip(
            members.tensor_split(self.steps, dim=1),
            ways.tensor_split(self.steps, dim=1),
            strict=True,
        ):
            queries = list(self._inputs[rows])
            if self.data.mirrored:
                queries = [mirror(each, turn == 1) for each, turn in zip(queries, way, strict=True)]
            yield self._loss(queries, list(self.targets[way, rows]))

    def _loss(self, queries: Sequence[Tensor], predictions: Sequence[Tensor]) -> Tensor:
        total, transform = torch.zeros((), device=predictions[0].device), self.data.transform
        parity_outputs = [
            run_reduced(model, Rows((parities,)))
            for model, parities in zip(self.module, self._encoded(queries), strict=True)
        ]
        for j, outputs in enumerate(parity_outputs):
            targets = self._code.targets(predictions, j)
            if not self._decoded:
                total = total + functional.mse_loss(outputs, targets)
                continue
            total = total + transform.at_scale(outputs, targets)
            for slot, decoded in enumerate(self._decode_each(predictions, outputs, j)):
                apart = transform.difference(decoded, predictions[slot])
                total = total + apart / self._code.k
        return total

    def _decode_each(
        self, predictions: Sequence[Tensor], outputs: Tensor, j: int
    ) -> Iterator[Tensor]:
        """Yield each of k slots, reconstructed from parity output j and the other predictions."""
        parity_outputs = [outputs if row == j else None for row in range(self._code.r)]
        for slot in range(self._code.k):
            available = [None if i == slot else one for i, one in enumerate(predictions)]
            yield self._code.decode(available, parity_outputs)[slot]

    @torch.no_grad()
    def answers(self) -> Iterator[Answers]:
        """Yield the reconstructions of each parity model and slot."""
        held_out, transform = self.data.held_out, self.data.transform
        (inputs,) = held_out.inputs.tensors
        parts = [
            torch.stack(self._encoded(list(inputs[rows])))
            for rows in torch.split(self._members, BATCH, dim=1)
        ]
        targets = transform.targets(held_out.predictions)
        predictions = [targets[rows] for rows in self._members]
        parities = torch.cat(parts, dim=1)
        for j, model in enumerate(self.module):
            outputs = predict(model, Rows((parities[j],)))
            each = self._decode_each(predictions, outputs, j)
            for decoded, rows in zip(each, self._members.numpy(), strict=True):
                yield valid(transform.kind, decoded).cpu().numpy(), rows

    def _encoded(self, queries: Sequence[Tensor]) -> list[Tensor]:
        """Return r parity queries of k queries."""
        (name,) = self._code.query_shapes
        return [parity[name] for parity in self._code.encode([{name: each} for each in queries])]


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
"""The most deviations that a value may be from its mean. Rare features go farther: their deviation
is then taken to be larger."""

EXACT = 1e3
"""The most deviations that a mean may be from 0 if the scaling is folded into layers; beyond that,
their float32 sums would lose too much precision."""

MOST = 2**26
"""Values that a scale is taken from, at most."""


def scaled(
    network: nn.Module, inputs: Tensor, targets: Tensor | None, channels: int | None
) -> nn.Module:
    """Return `network` with its inputs standardised and, if there are `targets`, its outputs scaled
    back.

    To standardise is to subtract the mean and divide by the deviation. For inputs these are taken
    from `inputs` (n, *input_shape): one pair for each index along the axis `channels`, or one for
    each value if that is None. For outputs there is one pair for each value of `targets`
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


class Scaled(NamedModule):
    """`network` of inputs less `shift` times `inverse`, unless it scales them itself; outputs are
    times `scale` plus `offset`."""

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
        if not isinstance(self.network, NamedModule):
            return self
        return Scaled(served(self.network), self.scale, self.offset)

    def slot(self) -> "Scaled":
        """Return the first slot of a Slotwise network as a network for one query alone."""
        assert isinstance(self.network, Slotwise)
        rows = self.network.query_shape[0]
        shift, inverse = (
            each[:rows] if each.ndim and len(each) == self.network.k * rows else each
            for each in (self.shift, self.inverse)
        )
        scale, offset = (each[0] if each.ndim else each for each in (self.scale, self.offset))
        return Scaled(Slot(self.network), scale, offset, shift, inverse)

    @torch.no_grad()
    def folded(self, input_shape: tuple[int, ...]) -> nn.Module:
        """Return the network with the scaling in its first and last layers if these can do it."""
        exact = (self.shift * self.inverse).abs().max() <= EXACT
        if not isinstance(self.network, FullLayers) or not exact:
            return self
        network = deepcopy(self.network)
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        first, last = layers[0], layers[-1]
        first.weight *= self.inverse.expand(input_shape).reshape(-1)
        first.bias.sub_(first.weight @ self.shift.expand(input_shape).reshape(-1))
        scale = self.scale.expand(network.output_shape).reshape(-1)
        last.weight *= scale[:, None]
        last.bias.copy_(last.bias * scale + self.offset.expand(network.output_shape).reshape(-1))
        return network


def _spread(values: Tensor, alike: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, deviation and reach of `values` (n, *shape) over n and the axes `alike` of one.

    The axes stay, with a length of 1. The reach is the largest distance of a value from the mean.
    Where values never vary, deviation and reach are 1.
    """
    axes = (0, *(axis + 1 for axis in alike))
    stride = ceil(values.numel() / MOST)
    some = values.detach()[::stride].cpu().double()
    mean = some.mean(dim=axes, keepdim=True)
    reach = (some - mean).abs().amax(dim=axes, keepdim=True)
    deviation = some.std(dim=axes, correction=0, keepdim=True).maximum(reach / FARTHEST)
    constant = deviation <= 1e-6 * mean.abs()
    each = (mean, deviation.masked_fill(constant, 1), reach.masked_fill(constant, 1))
    mean, deviation, reach = (one[0].float().to(values.device) for one in each)
    return mean, deviation, reach

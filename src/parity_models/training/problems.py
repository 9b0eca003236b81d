"""The learning problems of stand-ins: of a backup, and of a code's networks."""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from parity_models.codes import Code, Networks
from parity_models.codes.weights import some_sets
from parity_models.models.networks.network import NamedModule
from parity_models.tasks import score
from parity_models.training.device import BATCH, Rows, mirror, predict, run_reduced
from parity_models.training.distillation import DistillationData, calibrate_last_layer
from parity_models.training.recipes import Recipe
from parity_models.training.scaling import Rescaled, channel_axis, scaled

Answers = tuple[NDArray[Any], NDArray[Any]]

LEAST_VALIDATED = 2000
"""Reconstructions by which an epoch is judged at least; few queries are grouped repeatedly."""

MOST_SETS = 16
"""Sets of unavailable predictions of one size that a step decodes at most."""

CALIBRATION, SCALING = 256, 2048
"""Groups by which a last layer is calibrated, and by which all is scaled, at most."""

POOL = 16
"""Batches whose groups are sorted by length, so that those of one batch need little padding."""


class Imitation:
    """Fitting a module for single queries to F's predictions, scored on queries it does not see.

    With `foreign`, F comes from elsewhere: queries and predictions may be of any scale, and
    `module` is what scales them around the given one.
    """

    def __init__(
        self, module: nn.Module, data: DistillationData, recipe: Recipe, *, foreign: bool
    ) -> None:
        self.steps = recipe.steps_per_epoch(len(data.inputs))
        self._data = data
        self._targets = data.transform.targets(data.predictions)
        self.module = self._scaled(module) if foreign else module

    def _scaled(self, module: nn.Module) -> nn.Module:
        targets = None if self._data.transform.compared_as == "classes" else self._targets[0]
        if isinstance(module, NamedModule):  # which scales its inputs itself
            return module if targets is None else Rescaled.towards(module, targets)
        (inputs,) = self._data.inputs.tensors
        return scaled(module, inputs, targets, channel_axis(tuple(inputs.shape[1:])))

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the losses of one epoch's batches."""
        inputs, transform = self._data.inputs, self._data.transform
        size, device = len(inputs), inputs.device
        order = torch.randperm(size, generator=generator).to(device)
        ways = torch.randint(len(self._targets), (size,), generator=generator).to(device)
        for rows in order.tensor_split(self.steps):
            queries, way = inputs[rows], ways[rows]
            if self._data.mirrored:
                queries = Rows(tuple(mirror(each, way == 1) for each in queries.tensors))
            outputs, targets = run_reduced(self.module, queries), self._targets[way, rows]
            yield transform.difference(outputs, targets) + transform.at_scale(outputs, targets)

    def score(self) -> float:
        """Return the metric of the module's answers to the queries held out."""
        answers, _ = self.answers()
        return score(self._data.metric, answers, self._data.held_out.labels)

    def answers(self) -> Answers:
        """Return the module's answers to the queries held out, and F's, both (m, ...)."""
        held_out, transform = self._data.held_out, self._data.transform
        outputs = transform.answer(predict(self.module, held_out.inputs))
        return outputs.cpu().numpy(), held_out.predictions.cpu().numpy()


class CodedNetworks(nn.Module):
    """The r parity models of a code, over which it iterates, and its learned encoder and decoder.

    They are trained together. Raises CodeError for a learned coder that does not say how it is
    built, and TrainingError for one that cannot be built for the code's shapes.
    """

    def __init__(self, models: nn.ModuleList, code: Code) -> None:
        super().__init__()
        self.models = models
        self.coders = nn.ModuleDict(
            {name: getattr(code, name).new_network() for name in code.network_shapes}
        )
        networks = Networks(**dict(self.coders.items()))
        self.code = Code(code.spec, code.query_shape, code.output_shape, networks)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.models)


class Reconstruction:
    """Fitting the networks of a code, in `module`, so that predictions of F can be reconstructed.

    All are trained side by side on the same groups, which are drawn anew every epoch. The loss
    compares decoded predictions with F's, or in the published style parity outputs with their
    targets. It is scored by A_d, on groups of queries that are not trained on, drawn once. With
    `foreign`, F comes from elsewhere and gives no weights to start from: queries and predictions
    may be of any scale.
    """

    def __init__(
        self, module: CodedNetworks, data: DistillationData, recipe: Recipe, *, foreign: bool
    ) -> None:
        self.module = module
        self._code = module.code
        self._data = data
        (self._inputs,) = data.inputs.tensors
        self._groups = len(data.inputs) // self._code.k
        self.steps = recipe.steps_per_epoch(self._groups)
        self._style = recipe.style
        self._transform = data.transform
        self._targets = data.transform.targets(data.predictions)
        self._members = _groups_of(len(data.held_out.inputs), self._code.k)
        if foreign or self._transform.compared_as != "classes":
            self._calibrate(foreign)

    @torch.no_grad()
    def _calibrate(self, foreign: bool) -> None:
        """Let outputs of values begin at the scale of their targets; `foreign` inputs, too."""
        k, generator = self._code.k, torch.Generator().manual_seed(0)
        order = torch.randperm(len(self._inputs), generator=generator)
        groups = SCALING if foreign else CALIBRATION
        rows = order[: min(groups, self._groups) * k].view(k, -1).to(self._inputs.device)
        parities = encoded(self._code, list(self._inputs[rows]))
        predictions = list(self._targets[0, rows])
        classes = self._transform.compared_as == "classes"
        for j, model in enumerate(self.module):
            targets = None if classes else self._code.targets(predictions, j)
            if foreign:
                channels = channel_axis(self._code.query_shape)
                self.module.models[j] = scaled(model, parities[j], targets, channels)
            elif targets is not None:
                calibrate_last_layer(model, parities[j], targets)

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the losses of one epoch's batches."""
        k, device = self._code.k, self._inputs.device
        members = torch.randperm(len(self._inputs), generator=generator)[: self._groups * k]
        members = members.view(k, self._groups).to(device)
        ways = torch.zeros_like(members)
        if self._data.mirrored:
            ways = torch.randint(2, members.shape, generator=generator).to(device)
        batches = zip(
            members.tensor_split(self.steps, dim=1),
            ways.tensor_split(self.steps, dim=1),
            strict=True,
        )
        for rows, way in batches:
            queries = list(self._inputs[rows])
            if self._data.mirrored:
                queries = [
                    mirror(query, turn == 1) for query, turn in zip(queries, way, strict=True)
                ]
            yield self._loss(queries, list(self._targets[way, rows]), generator)

    def _loss(
        self,
        queries: Sequence[Tensor],
        predictions: Sequence[Tensor],
        generator: torch.Generator,
    ) -> Tensor:
        total = torch.zeros((), device=predictions[0].device)
        parity_outputs = [
            run_reduced(model, Rows((parities,)))
            for model, parities in zip(self.module, encoded(self._code, queries), strict=True)
        ]
        for j, outputs in enumerate(parity_outputs):
            targets = self._code.targets(predictions, j)
            if self._style == "published":
                total = total + functional.mse_loss(outputs, targets)
                continue
            total = total + self._transform.at_scale(outputs, targets)
            for slot, decoded in enumerate(self._decode_each(predictions, outputs, j)):
                apart = self._transform.difference(decoded, predictions[slot])
                total = total + apart / self._code.k
        if "decoder" in self._code.network_shapes and self._code.r > 1:
            seed = int(torch.randint(2**31, (), generator=generator))
            total = total + self._decoded_together(predictions, parity_outputs, seed)
        return total

    def _decoded_together(
        self, predictions: Sequence[Tensor], parity_outputs: Sequence[Tensor], seed: int
    ) -> Tensor:
        """Return the loss of a learned decoder given all parity outputs.

        Where very many sets of predictions could be recovered, some are drawn by `seed`.
        """
        sets = [
            lost
            for size in range(1, self._code.r + 1)
            for lost in some_sets(self._code.k, size, seed, MOST_SETS)
        ]
        apart = [
            self._transform.difference(decoded, predictions[slot])
            for lost in sets
            for slot, decoded in self._code.decode(
                [None if i in lost else one for i, one in enumerate(predictions)], parity_outputs
            ).items()
        ]
        return torch.stack(apart).mean()

    def _decode_each(
        self, predictions: Sequence[Tensor], outputs: Tensor, j: int
    ) -> Iterator[Tensor]:
        """Yield each of k slots, reconstructed from parity output j and the other predictions."""
        parity_outputs = [outputs if row == j else None for row in range(self._code.r)]
        for slot in range(self._code.k):
            available = [None if i == slot else one for i, one in enumerate(predictions)]
            yield self._code.decode(available, parity_outputs)[slot]

    def score(self) -> float:
        """Return A_d: the mean score of reconstructions, over slots and over parity models."""
        metric, labels = self._data.metric, self._data.held_out.labels
        scores = [score(metric, given, labels[rows]) for given, rows in self._reconstructions()]
        return sum(scores) / len(scores)

    def answers(self) -> Answers:
        """Return reconstructions of the queries held out, and F's predictions, both (m, ...)."""
        given, rows = zip(*self._reconstructions(), strict=True)
        predictions = self._data.held_out.predictions.cpu().numpy()
        return np.concatenate(given), predictions[np.concatenate(rows)]

    @torch.no_grad()
    def _reconstructions(self) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        """For each parity model and slot, yield reconstructions (m, ...) and their rows."""
        held_out = self._data.held_out
        (inputs,) = held_out.inputs.tensors
        parts = [
            torch.stack(encoded(self._code, list(inputs[rows])))
            for rows in torch.split(self._members, BATCH, dim=1)
        ]
        targets = self._transform.targets(held_out.predictions)
        predictions = [targets[rows] for rows in self._members]
        for j, (model, parities) in enumerate(
            zip(self.module, torch.cat(parts, dim=1), strict=True)
        ):
            each = self._decode_each(predictions, predict(model, Rows((parities,))), j)
            for decoded, rows in zip(each, self._members.numpy(), strict=True):
                yield self._transform.answer(decoded).cpu().numpy(), rows


def encoded(code: Code, queries: Sequence[Tensor]) -> list[Tensor]:
    """Return r parity queries of k queries, both of one input."""
    (name,) = code.query_shapes
    return [parity[name] for parity in code.encode([{name: each} for each in queries])]


Problem = Imitation | Reconstruction


def _groups_of(rows: int, k: int) -> Tensor:
    """Draw groups (k, n) of `rows`, enough for LEAST_VALIDATED reconstructions."""
    groups = rows // k
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.randperm(rows, generator=generator)[: groups * k].view(k, -1)
        for _ in range(ceil(LEAST_VALIDATED / (groups * k)))
    ]
    return torch.cat(drawn, dim=1)

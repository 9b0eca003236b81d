"""The problem a parity model solves: from parity queries, what reconstructs predictions of F."""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from parity_models.codes import Code
from parity_models.codes.weights import some_sets
from parity_models.tasks import score
from parity_models.training.device import run_reduced
from parity_models.training.device_queries import BATCH, mirror, predict
from parity_models.training.distillation import calibrate
from parity_models.training.learned import CodedNetworks
from parity_models.training.lessons import Lessons
from parity_models.training.recipes import Style
from parity_models.training.rows import tensor
from parity_models.training.scaling import channel_axis, scaled

LEAST_VALIDATED = 2000
"""Reconstructions by which an epoch is judged at least; few queries are grouped repeatedly."""

MOST_SETS = 16
"""Sets of unavailable predictions of one size that a step decodes at most."""

CALIBRATION, SCALING = 256, 2048
"""Groups by which a last layer is calibrated, and by which all is scaled, at most."""


class Reconstruction:
    """Training the networks of a code, in `module`, towards a deployed model F.

    All are trained side by side on the same groups, which are drawn anew from the lessons' queries
    every epoch, `steps` batches of them. The loss compares decoded predictions with F's, or in the
    published `style` parity outputs with their targets. With `foreign`, F comes from elsewhere
    and gives no weights to start from: queries and predictions may be of any scale.
    """

    def __init__(
        self,
        module: CodedNetworks,
        lessons: Lessons,
        *,
        steps: int,
        style: Style,
        foreign: bool,
    ) -> None:
        self.module = module
        self.steps = steps
        self._code = module.code
        self._lessons = lessons
        self._inputs = tensor(lessons.inputs)
        self._groups = len(lessons.inputs) // self._code.k
        self._style = style
        self._likeness = lessons.likeness
        self._targets = self._likeness.targets(lessons.predictions)
        self._validation = Validation(self._code.k, lessons)
        if foreign or self._likeness.compared_as != "classes":
            self._calibrate(foreign)

    @torch.no_grad()
    def _calibrate(self, foreign: bool) -> None:
        """Have outputs of values begin at the scale of their targets; `foreign` inputs, too."""
        k, generator = self._code.k, torch.Generator().manual_seed(0)
        order = torch.randperm(len(self._inputs), generator=generator)
        groups = SCALING if foreign else CALIBRATION
        rows = order[: min(groups, self._groups) * k].view(k, -1).to(self._inputs.device)
        parities = encoded(self._code, list(self._inputs[rows]))
        predictions = list(self._targets[0, rows])
        classes = self._likeness.compared_as == "classes"
        for j, model in enumerate(self.module):
            targets = None if classes else self._code.targets(predictions, j)
            if foreign:
                channels = channel_axis(self._code.query_shape)
                self.module.models[j] = scaled(model, parities[j], targets, channels)
            elif targets is not None:
                calibrate(model, parities[j], targets)

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        k, device = self._code.k, self._inputs.device
        members = torch.randperm(len(self._inputs), generator=generator)[: self._groups * k]
        members = members.view(k, self._groups).to(device)
        ways = torch.zeros_like(members)
        if self._lessons.mirrored:
            ways = torch.randint(2, members.shape, generator=generator).to(device)
        batches = zip(
            members.tensor_split(self.steps, dim=1),
            ways.tensor_split(self.steps, dim=1),
            strict=True,
        )
        for rows, way in batches:
            queries = list(self._inputs[rows])
            if self._lessons.mirrored:
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
            run_reduced(model, parities)
            for model, parities in zip(self.module, encoded(self._code, queries), strict=True)
        ]
        for j, outputs in enumerate(parity_outputs):
            targets = self._code.targets(predictions, j)
            if self._style == "published":
                total = total + functional.mse_loss(outputs, targets)
                continue
            total = total + self._likeness.at_scale(outputs, targets)
            for slot, decoded in enumerate(_decode_each(self._code, predictions, outputs, j)):
                apart = self._likeness.difference(decoded, predictions[slot])
                total = total + apart / self._code.k
        if "decoder" in self._code.network_shapes and self._code.r > 1:
            seed = int(torch.randint(2**31, (), generator=generator))
            total = total + self._decoded_together(predictions, parity_outputs, seed)
        return total

    def _decoded_together(
        self, predictions: Sequence[Tensor], parity_outputs: Sequence[Tensor], seed: int
    ) -> Tensor:
        """What a learned decoder makes of all parity outputs, whatever they can recover.

        Where that is very much, some of it is drawn by `seed`.
        """
        sets = [
            lost
            for size in range(1, self._code.r + 1)
            for lost in some_sets(self._code.k, size, seed, MOST_SETS)
        ]
        apart = [
            self._likeness.difference(decoded, predictions[slot])
            for lost in sets
            for slot, decoded in self._code.decode(
                [None if i in lost else one for i, one in enumerate(predictions)], parity_outputs
            ).items()
        ]
        return torch.stack(apart).mean()

    def score(self) -> float:
        return self._validation.score(self.module)

    def answers(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Reconstructions of the queries held out, and what F says of them, both (m, ...)."""
        given, rows = zip(*self._validation.answers(self.module), strict=True)
        predictions = self._lessons.held_out.predictions.cpu().numpy()
        return np.concatenate(given), predictions[np.concatenate(rows)]


class Validation:
    """Groups of queries that are not trained on, with what is right for each of them."""

    def __init__(self, k: int, lessons: Lessons) -> None:
        held_out = lessons.held_out
        groups = len(held_out.inputs) // k
        generator = torch.Generator().manual_seed(0)
        members = torch.cat(
            [
                torch.randperm(len(held_out.inputs), generator=generator)[: groups * k].view(k, -1)
                for _ in range(ceil(LEAST_VALIDATED / (groups * k)))
            ],
            dim=1,
        )
        self._lessons = lessons
        self._members = members
        targets = lessons.likeness.targets(held_out.predictions)
        self._targets = [targets[rows] for rows in members]

    def score(self, module: CodedNetworks) -> float:
        """A_d: the mean score of reconstructions, over slots and over the r parity models."""
        metric, labels = self._lessons.metric, self._lessons.held_out.labels
        scores = [score(metric, given, labels[rows]) for given, rows in self.answers(module)]
        return sum(scores) / len(scores)

    @torch.no_grad()
    def answers(self, module: CodedNetworks) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        """For each parity model and slot, reconstructions (m, ...) and the rows they are of."""
        inputs = tensor(self._lessons.held_out.inputs)
        parts = [
            torch.stack(encoded(module.code, list(inputs[rows])))
            for rows in torch.split(self._members, BATCH, dim=1)
        ]
        for j, (model, parities) in enumerate(zip(module, torch.cat(parts, dim=1), strict=True)):
            outputs = predict(model, parities)
            each = _decode_each(module.code, self._targets, outputs, j)
            for decoded, rows in zip(each, self._members.numpy(), strict=True):
                yield self._lessons.likeness.answer(decoded).cpu().numpy(), rows


def encoded(code: Code, queries: Sequence[Tensor]) -> list[Tensor]:
    """Return r parity queries of k queries, both of one input."""
    (name,) = code.query_shapes
    return [parity[name] for parity in code.encode([{name: each} for each in queries])]


def _decode_each(
    code: Code, predictions: Sequence[Tensor], outputs: Tensor, j: int
) -> Iterator[Tensor]:
    """Each of k slots in turn, reconstructed from parity output j and the other predictions."""
    parity_outputs = [outputs if row == j else None for row in range(code.r)]
    for slot in range(code.k):
        available = [None if i == slot else one for i, one in enumerate(predictions)]
        yield code.decode(available, parity_outputs)[slot]

"""The problem a parity model solves: from parity queries, what reconstructs predictions of F."""

from collections.abc import Iterator, Sequence
from math import ceil

import torch
from torch import Tensor, nn

from parity_models.codes import Code
from parity_models.tasks import METRICS, Split, score
from parity_models.training.distillation import calibrate, difference, squared_error
from parity_models.training.queries import mirror, predict, predict_both_ways

LEAST_VALIDATED = 2000
"""Reconstructions by which an epoch is judged at least; few queries are grouped repeatedly."""

CALIBRATION = 256
"""Groups by which the last layer is calibrated, at most."""


class Reconstruction:
    """Training the r parity models in `module` (an nn.ModuleList) towards a deployed model.

    The r models are trained side by side on the same groups, which are drawn anew from `inputs`
    (n, *query_shape) every epoch, `steps` batches of them. With `mirrored`, queries are turned
    left to right at random, and so are those that F predicts. `validation` gives the score, and its
    metric says what predictions are.
    """

    def __init__(
        self,
        module: nn.ModuleList,
        code: Code,
        deployed: nn.Module,
        inputs: Tensor,
        *,
        steps: int,
        mirrored: bool,
        validation: "Validation",
    ) -> None:
        self.module = module
        self.steps = steps
        self._code = code
        self._inputs = inputs
        self._groups = len(inputs) // code.k
        self._mirrored = mirrored
        self._validation = validation
        # F is run once over each way a query can come, not once per epoch.
        self._predictions = predict_both_ways(deployed, inputs, mirrored)
        self._kind = METRICS[validation.metric].kind
        self._scale = self._predictions.flatten(0, 1).std(dim=0).clamp_min(1e-6)
        if self._kind != "classes":
            self._calibrate()

    def _calibrate(self) -> None:
        k, generator = self._code.k, torch.Generator().manual_seed(0)
        order = torch.randperm(len(self._inputs), generator=generator)
        rows = order[: min(CALIBRATION, self._groups) * k].view(k, -1).to(self._inputs.device)
        parities = self._code.encode(list(self._inputs[rows]))
        predictions = list(self._predictions[0, rows])
        for j, model in enumerate(self.module):
            calibrate(model, parities[j], self._code.targets(predictions, j))

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        k, device = self._code.k, self._inputs.device
        members = torch.randperm(len(self._inputs), generator=generator)[: self._groups * k]
        members = members.view(k, self._groups).to(device)
        ways = torch.zeros_like(members)
        if self._mirrored:
            ways = torch.randint(2, members.shape, generator=generator).to(device)
        batches = zip(
            members.tensor_split(self.steps, dim=1),
            ways.tensor_split(self.steps, dim=1),
            strict=True,
        )
        for rows, way in batches:
            queries = list(self._inputs[rows])
            if self._mirrored:
                queries = [
                    mirror(query, turn == 1) for query, turn in zip(queries, way, strict=True)
                ]
            yield self._loss(queries, list(self._predictions[way, rows]))

    def _loss(self, queries: Sequence[Tensor], predictions: Sequence[Tensor]) -> Tensor:
        total = torch.zeros((), device=predictions[0].device)
        for j, (model, parities) in enumerate(
            zip(self.module, self._code.encode(queries), strict=True)
        ):
            outputs = model(parities)
            targets = self._code.targets(predictions, j)
            if self._kind == "classes":
                total = total + squared_error(outputs, targets)
            for slot, decoded in enumerate(_decode_each(self._code, predictions, outputs, j)):
                apart = difference(self._kind, decoded, predictions[slot], self._scale)
                total = total + apart / self._code.k
        return total

    def score(self) -> float:
        return self._validation.score(self.module)


class Validation:
    """Groups of queries that are not trained on, with what is right for each of them."""

    def __init__(
        self, code: Code, deployed: nn.Module, split: Split, metric: str, device: torch.device
    ) -> None:
        self._code = code
        self.metric = metric
        inputs = torch.from_numpy(split.inputs).to(device)
        groups = len(inputs) // code.k
        generator = torch.Generator().manual_seed(0)
        members = torch.cat(
            [
                torch.randperm(len(inputs), generator=generator)[: groups * code.k].view(code.k, -1)
                for _ in range(ceil(LEAST_VALIDATED / (groups * code.k)))
            ],
            dim=1,
        )
        predictions = predict(deployed, inputs)
        self._parities = code.encode([inputs[rows] for rows in members])
        self._predictions = [predictions[rows] for rows in members]
        self._labels = [split.labels[rows] for rows in members.numpy()]

    def score(self, module: nn.ModuleList) -> float:
        """A_d: the mean score of reconstructions, over slots and over the r parity models."""
        scores = []
        for j, (model, parities) in enumerate(zip(module, self._parities, strict=True)):
            outputs = predict(model, parities)
            each = _decode_each(self._code, self._predictions, outputs, j)
            scores += [
                score(self.metric, decoded.cpu().numpy(), labels)
                for decoded, labels in zip(each, self._labels, strict=True)
            ]
        return sum(scores) / len(scores)


def _decode_each(
    code: Code, predictions: Sequence[Tensor], outputs: Tensor, j: int
) -> Iterator[Tensor]:
    """Each of k slots in turn, reconstructed from parity output j and the other predictions."""
    parity_outputs = [outputs if row == j else None for row in range(code.r)]
    for slot in range(code.k):
        available = [None if i == slot else one for i, one in enumerate(predictions)]
        yield code.decode(available, parity_outputs)[slot]

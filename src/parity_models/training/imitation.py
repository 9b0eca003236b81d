"""The problem a backup solves: from single queries, what F predicts for them."""

from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parity_models.models.networks.network import NamedModule
from parity_models.tasks import score
from parity_models.training.device import run_reduced
from parity_models.training.device_queries import mirror, predict
from parity_models.training.lessons import Lessons
from parity_models.training.rows import tensor
from parity_models.training.scaling import Rescaled, channel_axis, scaled


class Imitation:
    """Fitting a module to what F predicts, scored on queries that it does not see.

    An epoch has so many `steps`. With `foreign`, F comes from elsewhere: queries and predictions
    may be of any scale, and `module` is what scales them around the given one.
    """

    def __init__(self, module: nn.Module, lessons: Lessons, *, steps: int, foreign: bool) -> None:
        self.steps = steps
        self._lessons = lessons
        self._targets = lessons.likeness.targets(lessons.predictions)
        self.module = module
        if foreign:
            classes = lessons.likeness.compared_as == "classes"
            self.module = _foreign(module, lessons, None if classes else self._targets[0])

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        inputs, likeness = self._lessons.inputs, self._lessons.likeness
        size, device = len(inputs), inputs.device
        order = torch.randperm(size, generator=generator).to(device)
        ways = torch.randint(len(self._targets), (size,), generator=generator).to(device)
        for rows in order.tensor_split(self.steps):
            queries, way = inputs[rows], ways[rows]
            if self._lessons.mirrored:
                queries = mirror(tensor(queries), way == 1)
            outputs, targets = run_reduced(self.module, queries), self._targets[way, rows]
            yield likeness.difference(outputs, targets) + likeness.at_scale(outputs, targets)

    def score(self) -> float:
        answers, _ = self.answers()
        return score(self._lessons.metric, answers, self._lessons.held_out.labels)

    def answers(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """What the module says of the queries held out, and what F does, both (m, ...)."""
        held_out, likeness = self._lessons.held_out, self._lessons.likeness
        outputs = likeness.answer(predict(self.module, held_out.inputs))
        return outputs.cpu().numpy(), held_out.predictions.cpu().numpy()


def _foreign(module: nn.Module, lessons: Lessons, targets: Tensor | None) -> nn.Module:
    """`module` for the inputs, and the `targets`, of a model from elsewhere."""
    inputs = lessons.inputs
    if isinstance(inputs, Tensor):
        return scaled(module, inputs, targets, channel_axis(tuple(inputs.shape[1:])))
    assert isinstance(module, NamedModule)  # which scales its inputs itself
    return module if targets is None or module.learned else Rescaled.towards(module, targets)

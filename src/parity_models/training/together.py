"""The problem that a network for k queries at once solves: what F predicts for each of them."""

from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parity_models.tasks import score
from parity_models.training.device import run_reduced
from parity_models.training.device_queries import predict
from parity_models.training.lessons import Lessons
from parity_models.training.recipes import Recipe
from parity_models.training.rows import DeviceQueries, Rows

POOL = 16
"""Batches whose groups are sorted by length, so that those of one batch need little padding."""


class Together:
    """Fitting a module that takes k queries at once, (n, k, ...), to what F predicts for each.

    Groups are drawn anew for each epoch, `steps` batches of them. It is scored on queries that it
    does not see, in groups that are drawn once.
    """

    def __init__(self, module: nn.Module, lessons: Lessons, *, k: int, steps: int) -> None:
        self.module, self.steps = module, steps
        self._lessons, self._k = lessons, k
        self._inputs = _named(lessons.inputs)
        self._targets = lessons.likeness.targets(lessons.predictions)[0]
        held_out = _named(lessons.held_out.inputs)
        generator = torch.Generator().manual_seed(0)
        count = len(held_out) // k * k
        self._judged = torch.randperm(len(held_out), generator=generator)[:count]
        self._held_out = held_out[self._judged].in_groups(k)

    @classmethod
    def of(cls, module: nn.Module, lessons: Lessons, k: int, recipe: Recipe) -> "Together":
        """The problem with as many steps as the `recipe` wants."""
        return cls(module, lessons, k=k, steps=recipe.steps_per_epoch(len(lessons.inputs) // k))

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        likeness = self._lessons.likeness
        for rows in self._batches(generator):
            groups = self._inputs[rows].in_groups(self._k)
            outputs = run_reduced(self.module, groups).flatten(0, 1)
            targets = self._targets[rows.to(self._targets.device)]
            yield likeness.difference(outputs, targets) + likeness.at_scale(outputs, targets)

    def _batches(self, generator: torch.Generator) -> list[Tensor]:
        """The rows of the groups of each batch, group by group."""
        groups = len(self._inputs) // self._k
        drawn = torch.randperm(len(self._inputs), generator=generator)[: groups * self._k]
        members = drawn.view(groups, self._k)
        longest = self._inputs.sizes[members].amax(1).sum(1)
        pools = [
            pool[longest[pool].argsort(stable=True)]
            for pool in torch.arange(groups).tensor_split(max(1, self.steps // POOL))
        ]
        batches = members[torch.cat(pools)].tensor_split(self.steps)
        order = torch.randperm(self.steps, generator=generator).tolist()
        return [batches[place].flatten() for place in order]

    def score(self) -> float:
        answers, _ = self.answers()
        labels = self._lessons.held_out.labels[self._judged.numpy()]
        return score(self._lessons.metric, answers, labels)

    def answers(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """What the module says of the queries held out, and what F does, both (m, ...)."""
        outputs = predict(self.module, self._held_out).flatten(0, 1)
        answers = self._lessons.likeness.answer(outputs)
        predictions = self._lessons.held_out.predictions.cpu()[self._judged]
        return answers.cpu().numpy(), predictions.numpy()


def _named(queries: DeviceQueries) -> Rows:
    """Queries of named inputs, which alone are stacked along a new axis."""
    assert isinstance(queries, Rows)
    return queries

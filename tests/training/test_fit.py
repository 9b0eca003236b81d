"""Training never leaves a network worse than it began."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from parity_models.models.networks.network import NamedModule
from parity_models.training.fit import fit
from parity_models.training.recipes import Budget, recipe_for


class Spoilt(NamedModule):
    """Begins with what is right, and learns what is wrong."""

    learned = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Spoiling:
    module = Spoilt()
    steps = 3

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        for _ in range(self.steps):
            yield (self.module.weight - 1).square().sum()

    def score(self) -> float:
        return 1 - abs(self.module.weight.item())


def test_what_training_makes_worse_stays_as_it_began(tmp_path: Path) -> None:
    problem = Spoiling()
    fitted = fit(
        problem,
        recipe_for(None, "deployed", (1,)),
        Budget(epochs=2),
        seed=0,
        checkpoint=tmp_path / "checkpoint",
        options={},
    )
    assert (fitted.score, fitted.best_epoch, fitted.epochs) == (1.0, 0, 2)
    assert problem.module.weight.item() == 0

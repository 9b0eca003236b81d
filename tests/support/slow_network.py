"""A network that takes long to predict, and learns in no time."""

import time

from torch import Tensor, nn

PREDICTING = 0.4
"""Seconds for each batch."""


class SlowToPredict(nn.Module):
    """Linear."""

    def __init__(self, takes: tuple[int, ...], gives: tuple[int, ...]) -> None:
        super().__init__()
        self._linear = nn.Linear(takes[0], gives[0])

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            time.sleep(PREDICTING)
        output: Tensor = self._linear(input)
        return output

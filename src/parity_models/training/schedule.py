"""How long training goes on, and how the learning rate goes over that time."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import cos, pi
from typing import Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from parity_models.errors import TrainingError


@dataclass(frozen=True)
class Budget:
    """When training ends: after so many epochs, so many seconds, or what comes first."""

    epochs: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.epochs is None and self.seconds is None:
            raise TrainingError("give a number of epochs, of seconds, or both")
        if self.epochs is not None and self.epochs < 1:
            raise TrainingError(f"train for 1 epoch or more, not {self.epochs}")
        if self.seconds is not None and not self.seconds > 0:
            raise TrainingError(f"train for more than 0 seconds, not {self.seconds}")

    def spent(self, epochs: float, seconds: float) -> float:
        """How much of the budget is used up, from 0 to 1."""
        by_epochs = epochs / self.epochs if self.epochs is not None else 0.0
        by_seconds = seconds / self.seconds if self.seconds is not None else 0.0
        return min(1.0, max(by_epochs, by_seconds))


class Schedule(Protocol):
    """An optimiser, and its learning rate by the share of the budget that is spent."""

    def optimizer(self, weights: Iterable[nn.Parameter]) -> Optimizer: ...

    def at(self, spent: float) -> float:
        """The learning rate when `spent` (0 to 1) of the budget is used up."""


@dataclass(frozen=True)
class OneCycle:
    """AdamW with a warm-up, then down along half a cosine.

    Both follow the share of the budget spent, so that a run limited in time anneals completely
    whatever the machine's speed (one-cycle: Smith, Topin, 2018). `warmup` is the share of the
    budget after which `learning_rate` is reached.
    """

    learning_rate: float
    weight_decay: float
    warmup: float = 0.2

    def optimizer(self, weights: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.AdamW(weights, weight_decay=self.weight_decay, fused=True)

    def at(self, spent: float) -> float:
        if spent < self.warmup:
            return self.learning_rate * (0.04 + 0.96 * spent / self.warmup)
        through = (spent - self.warmup) / (1 - self.warmup)
        return self.learning_rate * 0.5 * (1 + cos(pi * through))


@dataclass(frozen=True)
class Constant:
    """Adam with one learning rate throughout, weight decay added to the gradient."""

    learning_rate: float
    weight_decay: float

    def optimizer(self, weights: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.Adam(weights, weight_decay=self.weight_decay, fused=True)

    def at(self, spent: float) -> float:
        return self.learning_rate

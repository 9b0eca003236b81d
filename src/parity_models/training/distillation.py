"""The loss of a network that imitates another (Hinton, Vinyals, Dean, 2015)."""

from torch import Tensor
from torch.nn import functional

TEMPERATURE = 2.0
"""Softens the predictions that are distilled."""

SQUARED_ERROR = 0.02
"""Weight of the squared error towards the targets: enough to hold outputs at the scale and
offset of F's, which distillation leaves open, too little to cost accuracy."""


def divergence(outputs: Tensor, targets: Tensor) -> Tensor:
    """Kullback-Leibler divergence from softened targets to softened outputs, (n, classes)."""
    each = functional.kl_div(
        functional.log_softmax(outputs / TEMPERATURE, dim=-1),
        functional.log_softmax(targets / TEMPERATURE, dim=-1),
        reduction="none",
        log_target=True,
    )
    return each.sum(dim=-1).mean() * TEMPERATURE**2


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The weighted mean squared error between tensors of any one shape."""
    return SQUARED_ERROR * functional.mse_loss(outputs, targets)

"""How a network comes to imitate another (Hinton, Vinyals, Dean, 2015): losses, and a start."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from parity_models.models.networks.stacked import Stacked
from parity_models.tasks.metrics import PredictionKind, is_map

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


def deviations(predictions: Tensor) -> Tensor:
    """The deviation of each value of F's `predictions` (ways, n, *output_shape).

    One that never varies gets the largest deviation of all, or its errors would weigh without
    bounds. All values of a map get one deviation: at its edges they hardly vary, and little else
    would be learned.
    """
    each = predictions.flatten(0, 1).std(dim=0)
    if is_map(each.shape):
        return each.square().mean().sqrt().clamp_min(1e-6).expand_as(each)
    largest = each.max().clamp_min(1e-6)
    return torch.where(each > 1e-6 * largest, each, largest)


def difference(kind: PredictionKind, outputs: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
    """How far predictions of a `kind` are from those of F: what an imitator minimises.

    Classes diverge; of boxes and values it is the squared error, in units of `scale`, the
    deviations of F's predictions (*output_shape).
    """
    if kind == "classes":
        return divergence(outputs, targets)
    return functional.mse_loss(outputs / scale, targets / scale)


def calibrate(module: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Have `module` start with outputs of the mean and deviation of its `targets` (n, ...).

    Changes the weights and bias of its last layer, if that is a full one with a bias. (For the sum
    of boxes that starts at k times the mean box: Kosaian et al., SOSP 2019, section 4.)
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    slots = module.k if isinstance(module, Stacked) else 1
    if not layers or layers[-1].out_features * slots != targets[0].numel():
        return
    last = layers[-1]
    if last.bias is None:
        return
    width = last.out_features
    wanted = targets.reshape(-1, width)
    with torch.no_grad():
        outputs = module.train()(inputs).reshape(-1, width)
        spread = outputs.std(dim=0, correction=0).clamp_min(1e-6)
        ratio = wanted.std(dim=0, correction=0) / spread
        last.weight *= ratio[:, None]
        last.bias.copy_(wanted.mean(dim=0) + ratio * (last.bias - outputs.mean(dim=0)))

"""Networks for queries and predictions in units of their own: kilometres, prices, pixels to 255.

Networks learn where what goes in and what comes out is about as large as one. A deployed model from
elsewhere need not be like that: it may scale its inputs itself, and predict in any unit. So what
imitates it is scaled by what it is trained on.
"""

from copy import deepcopy
from math import prod

import torch
from torch import Tensor, nn

from parity_models.models.networks import MLP, Linear

NEAR, NARROW, WIDE = 2.0, 0.2, 5.0
"""Inputs whose means are as near to 0, and whose deviations between these, are left as they are."""

MOST = 2**26
"""Values that a scale is taken from, at most."""


def scaled(network: nn.Module, inputs: Tensor, targets: Tensor | None) -> nn.Module:
    """`network` with inputs, and outputs if it has `targets`, less their mean and in deviations.

    The means and deviations are those of `inputs` (n, *input_shape), for each feature of vectors
    and each channel of sequences and images, and of each of the values of `targets`
    (n, *output_shape).
    """
    shift, deviation = _spread(inputs, _alike(tuple(inputs.shape[1:])))
    if shift.abs().max() < NEAR and NARROW < deviation.min() <= deviation.max() < WIDE:
        if targets is None:
            return network
        shift, deviation = torch.zeros_like(shift), torch.ones_like(deviation)
    one = torch.ones((), device=inputs.device)
    offset, scale = (0 * one, one) if targets is None else _spread(targets, ())
    return Scaled(network, shift, 1 / deviation, scale, offset)


class Scaled(nn.Module):
    """`network` of inputs less `shift` times `inverse`; outputs are times `scale` plus `offset`."""

    shift: Tensor
    inverse: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(
        self, network: nn.Module, shift: Tensor, inverse: Tensor, scale: Tensor, offset: Tensor
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("shift", shift)
        self.register_buffer("inverse", inverse)
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, input: Tensor) -> Tensor:
        outputs: Tensor = self.network((input - self.shift) * self.inverse)
        return outputs * self.scale + self.offset


@torch.no_grad()
def plain(module: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """`module`, without scaling as steps of their own where its first and last layers can do it."""
    if not isinstance(module, Scaled) or not isinstance(module.network, Linear | MLP):
        return module
    network = deepcopy(module.network)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    first, last = layers[0], layers[-1]
    first.weight *= module.inverse.expand(input_shape).reshape(-1)
    first.bias.sub_(first.weight @ module.shift.expand(input_shape).reshape(-1))
    scale = module.scale.expand(network.output_shape).reshape(-1)
    last.weight *= scale[:, None]
    last.bias.copy_(last.bias * scale + module.offset.expand(network.output_shape).reshape(-1))
    return network


def _alike(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of one input along which values are of one kind: all but that of channels."""
    if len(shape) < 2:
        return ()
    channels = shape.index(min(shape)) if len(shape) == 2 else 0
    return tuple(axis for axis in range(len(shape)) if axis != channels)


def _spread(values: Tensor, alike: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of `values` (n, *shape) over n and the axes `alike` of one, which stay.

    The deviation of values that are always the same is 1.
    """
    axes = (0, *(axis + 1 for axis in alike))
    some = values[: max(2, MOST // prod(values.shape[1:]))].cpu().double()
    mean = some.mean(dim=axes, keepdim=True)[0]
    deviation = some.std(dim=axes, correction=0, keepdim=True)[0]
    deviation = torch.where(deviation > 1e-6 * mean.abs(), deviation, torch.ones_like(deviation))
    return mean.float().to(values.device), deviation.float().to(values.device)

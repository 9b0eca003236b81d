"""Networks for queries and predictions in units of their own: kilometres, prices, pixels to 255.

Networks train well when inputs and outputs are near unit scale. A user's deployed model may take
and predict values of any scale, and scale its inputs itself. So a network that imitates it is
scaled by the mean and deviation of its training data.
"""

from copy import deepcopy
from math import ceil

import torch
from torch import Tensor, nn

from parity_models.models.networks.network import NamedModule
from parity_models.models.networks.perceptrons import FullLayers
from parity_models.models.networks.slotwise import Slot, Slotwise, Stacked

NEAR, NARROW, WIDE = 2.0, 0.2, 5.0
"""Inputs are left unscaled if every mean is nearer to 0 than NEAR, every deviation is below WIDE,
and every value goes farther than NARROW from its mean at least once."""

FARTHEST = 10.0
"""The most deviations that a value may be from its mean. Rare features go farther: their deviation
is then taken to be larger."""

EXACT = 1e3
"""The most deviations that a mean may be from 0 if the scaling is folded into layers; beyond that,
their float32 sums would lose too much precision."""

MOST = 2**26
"""Values that a scale is taken from, at most."""


def channel_axis(query_shape: tuple[int, ...]) -> int | None:
    """Return the axis of a query along which values differ in kind; None: each value is of its own
    kind.

    It is the axis of channels in images. In sequences it is the shorter axis, or the first of two
    equal ones.
    """
    if len(query_shape) < 2:
        return None
    return int(len(query_shape) == 2 and query_shape[1] < query_shape[0])


def scaled(
    network: nn.Module, inputs: Tensor, targets: Tensor | None, channels: int | None
) -> nn.Module:
    """Return `network` with its inputs standardised and, if there are `targets`, its outputs scaled
    back.

    To standardise is to subtract the mean and divide by the deviation. For inputs these are taken
    from `inputs` (n, *input_shape): one pair for each index along the axis `channels`, or one for
    each value if that is None. For outputs there is one pair for each value of `targets`
    (n, *output_shape).
    """
    axes = range(inputs.ndim - 1)
    alike = () if channels is None else tuple(axis for axis in axes if axis != channels)
    shift, deviation, reach = _spread(inputs, alike)
    if shift.abs().max() < NEAR and deviation.max() < WIDE and reach.min() > NARROW:
        if targets is None:
            return network
        shift, deviation = torch.zeros_like(shift), torch.ones_like(deviation)
    if targets is None:
        return Scaled(network, shift, 1 / deviation, shift.new_ones(()), shift.new_zeros(()))
    offset, scale, _ = _spread(targets, ())
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

    def slot(self) -> "Scaled":
        """Return the first slot of a Slotwise network as a network for one query alone."""
        assert isinstance(self.network, Slotwise)
        rows = self.network.query_shape[0]
        shift, inverse = (
            each[:rows] if each.ndim and len(each) == self.network.k * rows else each
            for each in (self.shift, self.inverse)
        )
        scale, offset = (each[0] if each.ndim else each for each in (self.scale, self.offset))
        return Scaled(Slot(self.network), shift, inverse, scale, offset)

    @torch.no_grad()
    def folded(self, input_shape: tuple[int, ...]) -> nn.Module:
        """Return the network with the scaling in its first and last layers if these can do it."""
        exact = (self.shift * self.inverse).abs().max() <= EXACT
        if not isinstance(self.network, FullLayers) or not exact:
            return self
        network = deepcopy(self.network)
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        first, last = layers[0], layers[-1]
        first.weight *= self.inverse.expand(input_shape).reshape(-1)
        first.bias.sub_(first.weight @ self.shift.expand(input_shape).reshape(-1))
        scale = self.scale.expand(network.output_shape).reshape(-1)
        last.weight *= scale[:, None]
        last.bias.copy_(last.bias * scale + self.offset.expand(network.output_shape).reshape(-1))
        return network


class Rescaled(NamedModule):
    """`network`, whose outputs are times `scale` plus `offset`."""

    scale: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    @classmethod
    def towards(cls, network: nn.Module, targets: Tensor) -> "Rescaled":
        """Return one with outputs in deviations of `targets` (n, *output_shape), around their
        mean."""
        offset, scale, _ = _spread(targets, ())
        return cls(network, scale, offset)

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs: Tensor = self.network(*inputs)
        return outputs * self.scale + self.offset

    def served(self) -> nn.Module:
        assert isinstance(self.network, NamedModule)
        return Rescaled(self.network.served(), self.scale, self.offset)


def calibrate_last_layer(module: nn.Module, inputs: Tensor, targets: Tensor) -> None:
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
    wanted = targets.reshape(-1, last.out_features)
    with torch.no_grad():
        outputs = module.train()(inputs).reshape(wanted.shape)
        spread = outputs.std(dim=0, correction=0).clamp_min(1e-6)
        ratio = wanted.std(dim=0, correction=0) / spread
        last.weight *= ratio[:, None]
        last.bias.copy_(wanted.mean(dim=0) + ratio * (last.bias - outputs.mean(dim=0)))


def _spread(values: Tensor, alike: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, deviation and reach of `values` (n, *shape) over n and the axes `alike` of one.

    The axes stay, with a length of 1. The reach is the largest distance of a value from the mean.
    Where values never vary, deviation and reach are 1.
    """
    axes = (0, *(axis + 1 for axis in alike))
    stride = ceil(values.numel() / MOST)
    some = values.detach()[::stride].cpu().double()
    mean = some.mean(dim=axes, keepdim=True)
    reach = (some - mean).abs().amax(dim=axes, keepdim=True)
    deviation = some.std(dim=axes, correction=0, keepdim=True).maximum(reach / FARTHEST)
    constant = deviation <= 1e-6 * mean.abs()
    each = (mean, deviation.masked_fill(constant, 1), reach.masked_fill(constant, 1))
    mean, deviation, reach = (one[0].float().to(values.device) for one in each)
    return mean, deviation, reach

"""The deployed model's own layers, thinner and in small integers, for rows of integers."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from parity_models.errors import TrainingError
from parity_models.models.networks.images import Shape
from parity_models.models.networks.network import Effort, NamedModule, NamedNetwork, times
from parity_models.models.networks.queried import Queried
from parity_models.models.own_layers import OwnLayers
from parity_models.options import Option

LARGEST = 127
"""The largest integer that values are rounded to, either sign."""

LARGEST_WEIGHT = 63
"""The largest integer that weights are rounded to: they have 7 bits. Processors without VNNI add
up two products of an unsigned and a signed byte in 16 bits, and saturate; with 2 * 255 * 63 below
2**15, every processor computes what was trained and calibrated."""

ROWS = 32
"""Rows whose maps are computed at once: they are large."""

ACTIVATIONS = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "gelu": nn.GELU("tanh"),
    "tanh": nn.Tanh(),
}


class OwnLayersNetwork(NamedNetwork):
    """The deployed model's own layers, with a share of its maps, in small integers.

    It takes one input of integers (n, length), and is there for a model that looks them up as
    vectors, and has one convolution, the largest value of each of its maps, and one full layer.
    Vectors and normalisation are the model's, convolution and full layer start as the model's and
    are learned. With all maps it agrees before it has learned anything.
    """

    name = "own-layers"
    deployed = Effort(3, 64, 1e-3, 1e-2, mirror=False, threaded=True)
    parity = Effort(3, 64, 1e-3, 1e-2, mirror=False, threaded=True)
    proposed = ("own-layers@0.25", "own-layers@0.5", "own-layers")

    @dataclass(frozen=True, kw_only=True)
    class Options(NamedNetwork.Options):
        """What can be set."""

        width: Annotated[
            float,
            Option("The share of the convolution's maps that is kept.", above=0, at_most=1),
        ] = 1.0

    @classmethod
    def takes(cls, queried: Queried) -> bool:
        return len(queried) == 1 and queried[0].layers is not None

    @classmethod
    def build_named(cls, options: Any, queried: Queried, outputs: Shape) -> NamedModule:
        layers = queried[0].layers if len(queried) == 1 else None
        if layers is None or outputs != (layers.head.shape[1],):
            raise TrainingError(
                "own-layers takes one input of integers, of a model whose layers it found: vectors "
                "of these, one convolution, the largest value of each map, and one full layer; "
                "choose another network"
            )
        return Thinned(layers, options.width)


class Thinned(NamedModule):
    """Rows of integers (n, length) to (n, outputs), by those of the `layers` that tell most."""

    learned = True
    table: Tensor
    gain: Tensor
    shift: Tensor
    reach: Tensor

    def __init__(self, layers: OwnLayers, width: float) -> None:
        super().__init__()
        self.layers = layers
        kept = _telling(layers, times(width, len(layers.kernel)))
        # Not among the weights that are kept: they are the deployed model's.
        self.register_buffer("table", torch.tensor(layers.table), persistent=False)
        self.register_buffer("gain", torch.tensor(layers.gain), persistent=False)
        self.register_buffer("shift", torch.tensor(layers.shift), persistent=False)
        # How far from 0 values go that enter the convolution; of the first batch, then for good.
        self.register_buffer("reach", torch.zeros(()))
        self.kernel = nn.Parameter(torch.tensor(layers.kernel)[kept].clone())
        self.offset = nn.Parameter(torch.tensor(layers.offset)[kept].clone())
        self.head = nn.Linear(len(kept), layers.head.shape[1])
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor(layers.head).T[:, kept])
            self.head.bias.copy_(torch.tensor(layers.bias))

    def forward(self, *inputs: Tensor) -> Tensor:
        kernel = self.kernel + (self.rounded_kernel() - self.kernel).detach()
        largest = torch.cat([self._largest(rows, kernel) for rows in inputs[0].split(ROWS)])
        return self.leave(largest + self.offset)

    def _largest(self, rows: Tensor, kernel: Tensor) -> Tensor:
        """The largest value of each map: (n, maps)."""
        with torch.no_grad():
            entering = self.enter(rows.long())
            if not self.reach:
                self.reach.copy_(entering.abs().amax((1, 2)).mean())
            step = self.reach / LARGEST
            entering = (entering / step).round().clamp(-LARGEST - 1, LARGEST) * step
        # All of it in 32 bits, where the rest is trained in 16.
        with torch.autocast(rows.device.type, enabled=False):
            # torch declares no types for `apply`.
            found: Tensor = _Largest.apply(entering.float(), kernel.float())  # type: ignore[no-untyped-call]
        return found

    def enter(self, rows: Tensor) -> Tensor:
        """What enters the convolution: (n, positions, channels)."""
        layers, channels = self.layers, self.kernel.shape[1]
        vectors = functional.embedding(rows.clamp(0, len(self.table) - 1), self.table)
        values = vectors.reshape(rows.shape[0], -1, channels)
        if layers.standardised == "positions":
            turned = values.transpose(1, 2)
            size = (turned.shape[2],)
            turned = functional.layer_norm(turned, size, self.gain, self.shift, layers.epsilon)
            values = turned.transpose(1, 2)
        elif layers.standardised == "channels":
            size = (channels,)
            values = functional.layer_norm(values, size, self.gain, self.shift, layers.epsilon)
        return functional.pad(values, (0, 0, *layers.padding)) if any(layers.padding) else values

    def leave(self, largest: Tensor) -> Tensor:
        """Outputs of the largest values of maps, to which what is added to maps was added."""
        found: Tensor = ACTIVATIONS[self.layers.activation](largest)
        if self.layers.again is not None:
            found = functional.layer_norm(found, found.shape[1:], eps=self.layers.again)
        outputs: Tensor = self.head(found)
        return outputs

    def rounded_kernel(self) -> Tensor:
        """The kernel as it is served: whole multiples of a step for each map."""
        step = self.steps()
        return (self.kernel / step).round() * step

    def steps(self) -> Tensor:
        """Those of the kernel: (maps, 1, 1)."""
        return (
            self.kernel.detach().abs().amax((1, 2), keepdim=True).clamp_min(1e-9) / LARGEST_WEIGHT
        )

    def served(self) -> nn.Module:
        return _Served(self)


class _Largest(torch.autograd.Function):
    """The largest value of each map of a convolution over `entering` (n, positions, channels).

    What is entering learns nothing; a map's weights learn from the window that its value is of,
    which is a small part of what a convolution's gradient takes to compute.
    """

    @staticmethod
    def forward(ctx: Any, entering: Tensor, kernel: Tensor) -> Tensor:
        maps = functional.conv1d(entering.transpose(1, 2), kernel)
        found, places = maps.max(dim=2)
        ctx.save_for_backward(entering, places)
        ctx.window = kernel.shape[2]
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        entering, places = ctx.saved_tensors
        rows = torch.arange(len(entering), device=entering.device)[:, None]
        weighs = gradients[0].T.unsqueeze(1)  # (maps, 1, n)
        of_window = [
            torch.bmm(weighs, entering[rows, places + i].transpose(0, 1)).squeeze(1)
            for i in range(ctx.window)
        ]
        return None, torch.stack(of_window, dim=2)


class _Served(nn.Module):
    """The same in integers, where a matrix of windows takes the place of the convolution."""

    weights: Tensor
    scale: Tensor
    step: Tensor
    zero: Tensor

    @torch.no_grad()
    def __init__(self, thinned: Thinned) -> None:
        super().__init__()
        self.thinned = thinned
        steps = thinned.steps()
        whole = (thinned.kernel / steps).round().to(torch.int8)
        self.window = whole.shape[2]
        self.register_buffer("weights", whole.permute(2, 1, 0).flatten(0, 1).contiguous())
        reach = thinned.reach if thinned.reach else torch.ones(())
        self.register_buffer("step", (reach / LARGEST).float().clone())
        self.register_buffer("scale", steps.flatten() * self.step)
        self.register_buffer("zero", torch.tensor(LARGEST + 1, dtype=torch.uint8))

    def forward(self, *inputs: Tensor) -> Tensor:
        entering = self.thinned.enter(inputs[0].long())
        whole = torch.onnx.ops.symbolic(
            "QuantizeLinear",
            (entering, self.step, self.zero),
            dtype=torch.uint8,
            shape=entering.shape,
            version=13,
        )
        assert isinstance(whole, Tensor)
        places = entering.shape[1] - self.window + 1
        windows = torch.cat([whole[:, i : i + places] for i in range(self.window)], dim=2)
        maps = torch.onnx.ops.symbolic(
            "MatMulInteger",
            (windows, self.weights, self.zero),
            dtype=torch.int32,
            shape=(entering.shape[0], places, self.weights.shape[1]),
            version=10,
        )
        assert isinstance(maps, Tensor)
        return self.thinned.leave(maps.amax(1).float() * self.scale + self.thinned.offset)


def _telling(layers: OwnLayers, maps: int) -> Tensor:
    """The places of so many maps that the full layer weighs most, in their order."""
    weights = torch.tensor(layers.head)
    weighs = (weights - weights.mean(dim=1, keepdim=True)).norm(dim=1)
    kept: Tensor = weighs.argsort(descending=True, stable=True)[:maps].sort().values
    return kept

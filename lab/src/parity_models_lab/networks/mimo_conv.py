"""A residual network whose trunk runs once for k images, laid over one another inside it."""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from parity_models.codes import Code
from parity_models.errors import TrainingError
from parity_models.models.networks.images import Grid, Shape, places
from parity_models.models.networks.network import Effort, Scalable
from parity_models.models.networks.resnet import SMALLEST, SmallResNet
from parity_models.models.networks.slotwise import Stacked, copy_weights


class MIMOConv(Scalable, Stacked):
    """resnet-small for k stacked images at once, at about the cost of one.

    Each image passes the stem by itself. Then all channels of a pixel are multiplied by a matrix,
    the key of the image's slot, and the k images are added up. The stages run once on the sum. What
    they give is multiplied by a matrix for each slot, which finds that slot's features, and one
    head answers all slots. Keys begin as rotations drawn at random, but for the first, which at
    first turns nothing; all is learned. (MIMOConv: Menet et al., NeurIPS 2023, section 3. Its keys
    are circular convolutions over the channels, which are matrices of a certain form.)

    Takes (n, k * channels, height, width) or (n, k, channels, height, width), gives (n, k,
    *outputs). The head sees the last feature map at each of `places`, rows and columns, apart.
    """

    name = "mimo-conv"
    parity = Effort(20, 64, 1e-2, 5e-2, mirror=True, threaded=True)

    @classmethod
    def build(cls, options: Any, inputs: Shape, outputs: Shape, grid: Grid) -> nn.Module:
        raise TrainingError(
            "mimo-conv answers several images at once: it is a parity model; train it with parm "
            "parity --encoder stack --decoder separate"
        )

    @classmethod
    def parity_grid(cls, code: Code) -> Grid:
        return places(code.query_shape)

    @classmethod
    def build_parity(cls, options: Any, code: Code, grid: Grid) -> nn.Module:
        spec, axis = code.spec, code.encoder.stacked_axis
        if axis is None or not code.decoder.reads_off:
            raise TrainingError(
                f"mimo-conv answers each of k stacked images, and is no network for {spec.encoder} "
                f"with {spec.decoder}: use --encoder stack --decoder separate"
            )
        if axis != 0:
            raise TrainingError(
                "mimo-conv takes images that are stacked along their first axis, not along axis "
                f"{axis}: leave --axis out"
            )
        return cls(code.query_shape, code.output_shape, code.k, grid, options.width)

    def __init__(
        self, query_shape: Shape, outputs: Shape, k: int, places: Grid = (1, 1), width: float = 1.0
    ) -> None:
        super().__init__()
        if len(query_shape) != 3 or min(query_shape[1:]) < SMALLEST:
            raise TrainingError(
                "mimo-conv takes images of shape (channels, height, width), at least "
                f"{SMALLEST}x{SMALLEST}, not queries of shape {query_shape}; use mlp"
            )
        self.k = k
        self.query_shape = query_shape
        self.network = SmallResNet(query_shape, outputs, places, width)
        first, last = self.network.channels[0], self.network.channels[-1]
        self.bind = nn.Conv2d(k * first, first, 1, bias=False)
        self.unbind = nn.Conv2d(last, k * last, 1)
        with torch.no_grad():
            self.bind.weight.copy_(_keys(k, first).movedim(0, 1).reshape(first, -1, 1, 1))
            self.unbind.weight.copy_(_keys(k, last).reshape(-1, last, 1, 1))
            if self.unbind.bias is not None:
                self.unbind.bias.zero_()

    def forward(self, input: Tensor) -> Tensor:
        each = self.network.enter(input.reshape(-1, *self.query_shape))
        sum_of_bound = self.bind(each.reshape(-1, self.k * each.shape[1], *each.shape[2:]))
        features = self.network.stages(sum_of_bound / self.k**0.5)
        found = functional.relu(self.unbind(features))
        outputs: Tensor = self.network.leave(found.reshape(-1, features.shape[1], *found.shape[2:]))
        return outputs.reshape(-1, self.k, *outputs.shape[1:])

    def start_from(self, deployed: nn.Module, *, first: bool) -> bool:
        """Begin as the deployed model, if that is a resnet-small, for an image that no other is
        added to."""
        return copy_weights(self.network, deployed, prod(self.network.grid))


def _keys(k: int, width: int) -> Tensor:
    """The identity, and k - 1 rotations drawn at random: (k, width, width)."""
    turns = [nn.init.orthogonal_(torch.empty(width, width)) for _ in range(1, k)]
    return torch.stack([torch.eye(width), *turns])

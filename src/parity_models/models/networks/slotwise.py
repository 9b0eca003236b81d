"""One network that answers k stacked images or sequences at about the cost of one."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from parity_models.codes import Code
from parity_models.models.networks.queried import Shape

MAX_FOLD = 4
"""The most pixels that are folded into one: of more, little would be left of an image."""


class Stacked(nn.Module, ABC):
    """Takes parity queries of k stacked queries and gives (n, k, *outputs), all slots by one last
    layer."""

    k: int

    @abstractmethod
    def start_from(self, deployed: nn.Module, *, first: bool) -> bool:
        """Begin with the weights of the deployed model; return whether any layers are alike.

        Parity models that start alike stay alike, and their mean is no better than each: one that
        is not the `first` of its code may begin with other weights here and there.
        """


class Slotwise(Stacked):
    """Runs the network that `build` makes on each of k images stacked along their channels.

    Takes (n, k * channels, height, width), gives (n, k, *outputs). First every block of k pixels,
    or MAX_FOLD, is folded into the channels of one place (space to depth): no pixel is lost, only
    the network's first layer grows, and k images take about as long as one does unfolded. The
    slots share the network, so they do not disturb each other, and a group of k trains it k times.
    Sequences, stacked along their first axis, become images of one row, which are folded along it:
    `build` makes a network for (channels, 1, time) then.
    """

    def __init__(self, k: int, query_shape: Shape, build: Callable[[Shape], nn.Module]) -> None:
        super().__init__()
        self.k = k
        self.query_shape = query_shape
        self.image_shape = channels, height, width = image_shape(query_shape)
        pixels = min(k, MAX_FOLD)
        rows = 1 if height == 1 else round(pixels**0.5)
        self.block = rows, columns = rows, ceil(pixels / rows)
        folded = (channels * rows * columns, ceil(height / rows), ceil(width / columns))
        self.network = build(folded)

    def forward(self, input: Tensor) -> Tensor:
        outputs: Tensor = self.network(self.fold(input.reshape(-1, *self.query_shape)))
        return outputs.reshape(-1, self.k, *outputs.shape[1:])

    def fold(self, queries: Tensor) -> Tensor:
        """Return queries (n, *query_shape) as images whose blocks are channels of one place."""
        images = as_images(queries, self.query_shape)
        (channels, height, width), (rows, columns) = self.image_shape, self.block
        beyond = (0, -width % columns, 0, -height % rows)
        if any(beyond):
            images = functional.pad(images, beyond, mode="replicate")
        down, across = images.shape[2] // rows, images.shape[3] // columns
        blocks = images.reshape(-1, channels, down, rows, across, columns)
        inside_first = blocks.permute(0, 1, 3, 5, 2, 4)
        return inside_first.reshape(-1, channels * rows * columns, down, across)

    def start_from(self, deployed: nn.Module, *, first: bool) -> bool:
        """Begin as the deployed network would on images shrunk by area averaging. If this is not
        the `first` parity model, its first layer keeps its random weights."""
        return copy_weights(self.network, deployed, prod(self.block), shared=first)


class Slot(nn.Module):
    """One slot of `slotwise`: takes (n, *query_shape), gives (n, *outputs), in 1 / k of the time
    that `slotwise` takes for k."""

    def __init__(self, slotwise: Slotwise) -> None:
        super().__init__()
        self._slotwise = slotwise

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs that `slotwise` would give in any slot."""
        outputs: Tensor = self._slotwise.network(self._slotwise.fold(input))
        return outputs


def has_slots(code: Code) -> bool:
    """Return whether images or sequences are stacked along their first axis and answered apart."""
    return (
        code.encoder.stacked_axis == 0
        and code.decoder.reads_off
        and code.parity_shape[1:] == code.query_shape[1:]
        and len(code.query_shape) in (2, 3)
    )


def image_shape(shape: Shape) -> Shape:
    """Return the shape (channels, 1, time) of a sequence as an image of one row; other shapes as
    they are.

    The longer axis of a sequence is time; of equal ones the last.
    """
    if len(shape) != 2:
        return shape
    channels, time = sorted(shape)
    return channels, 1, time


def as_images(queries: Tensor, shape: Shape) -> Tensor:
    """Return sequences or images (n, *shape) as images (n, *image_shape(shape))."""
    if len(shape) != 2:
        return queries
    if shape[0] > shape[1]:
        queries = queries.transpose(1, 2)
    return queries.unsqueeze(2)


@torch.no_grad()
def copy_weights(to: nn.Module, of: nn.Module, share: int = 1, *, shared: bool = True) -> bool:
    """Copy the weights of one module to another of its class; return whether there were any.

    A layer that has `share` inputs for each one of the original's gives each its share of the
    weight, so that it begins as the original does with their mean; unless such layers are not to
    be `shared`. Layers of other shapes stay as they are.
    """
    copied = False
    if type(to) is not type(of):
        return copied
    own = to.state_dict()
    for name, weights in of.state_dict().items():
        mine = own.get(name)
        if mine is None:  # of the same class, but with fewer layers
            continue
        larger = mine.ndim == weights.ndim > 1 and mine.shape[1] == share * weights.shape[1]
        if larger and shared:
            weights = weights.repeat_interleave(share, 1) / share
        if mine.shape == weights.shape:
            mine.copy_(weights)
            copied = True
    return copied

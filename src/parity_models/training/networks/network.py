"""The base of networks: architectures for any queries, with the settings they are trained with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, cos, pi
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from parity_models import options
from parity_models.codes import Code
from parity_models.errors import TrainingError
from parity_models.options import option
from parity_models.training.networks.queried import Grid, Queried, Shape

SMALL = 64
"""Images with a side shorter than this, in pixels, are small. Networks made for photographs shrink
images in their first layers; small images keep their size there."""

MAX_FOLD = 4
"""The most pixels that are folded into one: with more, little of an image would be left."""


LEAST_STEPS, LEAST_STEPS_PER_EPOCH = 2000, 16
"""The fewest steps of a run, by default, and of an epoch, even with little training data."""

WARM_UP = 0.2
"""The share of the budget after which the learning rate is reached."""


@dataclass(frozen=True)
class Effort:
    """The settings of training a network, by default those that measured best
    (lab/notes/training.md): AdamW with an annealed learning rate.

    `epochs` is the default length; `batch` counts queries of a deployed model and groups of a
    parity model; `mirror` flips queries horizontally at random, if the task allows it.
    `threaded` shares a step between threads: for short steps that gains little, and on a busy
    machine threads that wait for each other cost ten times as much.

    A subclass may train in another `style`. With `from_deployed`, parity models start from weights
    of the deployed model where layers are alike; with `decoded`, their loss compares decoded
    predictions, otherwise parity outputs.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    mirror: bool
    threaded: bool
    style: ClassVar[str] = "distilled"
    from_deployed: ClassVar[bool] = True
    decoded: ClassVar[bool] = True

    @property
    def options(self) -> dict[str, str | int | float | bool]:
        """The settings that determine a run's result, by name."""
        names = ("batch", "learning_rate", "weight_decay", "mirror", "style")
        return {name: getattr(self, name) for name in names}

    def optimizer(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser of `weights`."""
        return torch.optim.AdamW(weights, weight_decay=self.weight_decay, fused=True)

    def rate_at(self, spent: float) -> float:
        """Return the learning rate when `spent` (0 to 1) of the budget is used up.

        It warms up, then goes down along half a cosine (one-cycle: Smith, Topin, 2018). Both follow
        the share of the budget, so that a run limited in time anneals completely whatever the
        machine's speed.
        """
        if spent < WARM_UP:
            return self.learning_rate * (0.04 + 0.96 * spent / WARM_UP)
        through = (spent - WARM_UP) / (1 - WARM_UP)
        return self.learning_rate * 0.5 * (1 + cos(pi * through))

    def steps_per_epoch(self, items: int) -> int:
        """Return the number of batches of an epoch over `items`; small data gets small batches."""
        return min(items, max(LEAST_STEPS_PER_EPOCH, ceil(items / self.batch)))

    def usual_epochs(self, steps_per_epoch: int) -> int:
        """Return the default number of epochs."""
        return max(self.epochs, ceil(LEAST_STEPS / steps_per_epoch))


class Network(ABC):
    """An architecture, built for any queries and outputs.

    A subclass has a `name`, `Options`, and the settings it is trained with: `deployed`, on labels
    or as a backup, and `parity`, as a parity model. None: chosen by the shape of its inputs.
    """

    name: ClassVar[str]
    deployed: ClassVar[Effort | None] = None
    parity: ClassVar[Effort | None] = None

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """No options."""

    @classmethod
    def takes(cls, queried: Queried) -> bool:
        """Return whether it can learn from such queries. By default these are arrays."""
        return queried.is_array

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        """Return the names, with options, worth trying for such queries, the fastest first."""
        return ()

    @classmethod
    @abstractmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        """Return a freshly initialised module for single queries.

        It takes a tensor (n, *shape) for each input, in their order, and gives (n, *outputs).
        Raises TrainingError for queries that it cannot take.
        """

    @classmethod
    def parity_grid(cls, code: Code) -> Grid:
        """Return the grid of a parity model for `code`."""
        return tiles(code)

    @classmethod
    def slot_by_slot(cls, options: Any) -> bool:
        """Return whether a parity model for stacked images runs on each slot separately."""
        return True

    @classmethod
    def build_parity(cls, options: Any, code: Code, grid: Grid) -> nn.Module:
        """Return a module that takes (n, *parity_shape) of `code` and gives (n,
        *parity_output_shape).

        By default it is made by `build`: for each slot separately (see EachSlot), or for the whole
        parity query. Raises TrainingError for a code that it does not support.
        """
        outputs = code.output_shape
        stacked = code.encoder.stacked_axis == 0 and code.decoder.reads_off
        images = len(code.query_shape) == 3 and code.parity_shape[1:] == code.query_shape[1:]
        if stacked and images and cls.slot_by_slot(options):
            with suppress(TrainingError):  # folded queries are too small for it
                folded = Folded(
                    code.k,
                    code.query_shape,
                    lambda shape: cls.build(options, Queried.of(shape), outputs),
                )
                return EachSlot(folded, code.k, code.query_shape)
        return cls.build(options, Queried.of(code.parity_shape, grid), code.parity_output_shape)


class Scalable(Network):
    """A network whose channels or hidden units can be multiplied."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Network.Options):
        """The width."""

        width: float = option(
            1.0, "A multiple of the channels or hidden units of each layer.", gt=0, le=4
        )


def times(width: float, units: int) -> int:
    """Return a multiple `width` of this many units or channels, at least one."""
    return max(1, round(units * width))


def is_small(shape: Shape) -> bool:
    """Return whether queries of this shape are small images."""
    return len(shape) == 3 and min(shape[1:]) < SMALL


def tiles(code: Code) -> Grid:
    """Return the encoder's grid of tiles if each tile's output is decoded alone, else 1 x 1."""
    grid: Grid = code.encoder.grid
    return grid if code.decoder.reads_off else (1, 1)


# One network that answers k queries


class EachSlot(nn.Module):
    """Runs `network`, for single queries, on each of k queries. It gives (n, k, *outputs).

    The queries lie along a new first axis of each input (n, k, *shape); or they are images of
    `query_shape`, stacked along their channels. The slots share the network, so they do not disturb
    each other, and a group of k trains it k times. `network` answers one query in 1 / k of the
    time.
    """

    def __init__(self, network: nn.Module, k: int, query_shape: Shape | None = None) -> None:
        super().__init__()
        self.network, self._k, self._query_shape = network, k, query_shape

    def forward(self, *inputs: Tensor) -> Tensor:
        if self._query_shape is None:
            queries = [each.flatten(0, 1) for each in inputs]
        else:
            queries = [each.reshape(-1, *self._query_shape) for each in inputs]
        outputs: Tensor = self.network(*queries)
        return outputs.reshape(-1, self._k, *outputs.shape[1:])


class Folded(nn.Module):
    """Runs the network that `build` makes on folded images: takes (n, *query_shape).

    Each block of k pixels (MAX_FOLD at most) becomes the channels of one pixel (space to depth). No
    pixel is lost, only the network's first layer grows, and k images take about as long as one does
    unfolded.
    """

    def __init__(self, k: int, query_shape: Shape, build: Callable[[Shape], nn.Module]) -> None:
        super().__init__()
        channels, height, width = self._query_shape = query_shape
        pixels = min(k, MAX_FOLD)
        rows = 1 if height == 1 else round(pixels**0.5)
        self.block = rows, columns = rows, ceil(pixels / rows)
        self._shape = (channels * rows * columns, ceil(height / rows), ceil(width / columns))
        self.network = build(self._shape)

    def forward(self, queries: Tensor) -> Tensor:
        (channels, height, width), (rows, columns) = self._query_shape, self.block
        beyond = (0, -width % columns, 0, -height % rows)
        if any(beyond):
            queries = functional.pad(queries, beyond, mode="replicate")
        blocks = queries.reshape(-1, channels, self._shape[1], rows, self._shape[2], columns)
        inside_first = blocks.permute(0, 1, 3, 5, 2, 4)
        outputs: Tensor = self.network(inside_first.reshape(-1, *self._shape))
        return outputs


@torch.no_grad()
def copy_weights(to: nn.Module, of: nn.Module, share: int = 1, *, shared: bool = True) -> bool:
    """Copy the weights of one module to another of its class; return whether there were any.

    If `shared`, a layer that has `share` inputs for each of the original's divides the weight among
    them, and so begins as the original does with their mean. Layers of other shapes stay as they
    are.
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

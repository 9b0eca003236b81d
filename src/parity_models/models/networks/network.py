"""The base of networks: architectures for any queries, with the settings they are trained with."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import nn

from parity_models import options
from parity_models.codes import Code
from parity_models.errors import TrainingError
from parity_models.models.networks.queried import Grid, Queried, Shape
from parity_models.models.networks.slotwise import Slotwise, has_slots
from parity_models.options import Option

SMALL = 64
"""Images with a side shorter than this, in pixels, are small. Networks made for photographs shrink
images in their first layers; small images keep their size there."""


@dataclass(frozen=True)
class Effort:
    """Default settings of a training, those that measured best (lab/notes/training.md).

    `epochs` is the default length; `batch` counts queries of a deployed model and groups of a
    parity model; `mirror` flips queries horizontally at random, where the task allows it.
    `threaded` shares a step between threads: for short steps that gains little, and on a busy
    machine threads that wait for each other cost ten times as much.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    mirror: bool
    threaded: bool


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
        """None."""

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
        """Return the grid of a parity model for `code`, unless it is trained as published."""
        return tiles(code)

    @classmethod
    def slot_by_slot(cls, options: Any) -> bool:
        """Return whether a parity model for stacked arrays runs on each slot separately."""
        return True

    @classmethod
    def build_parity(cls, options: Any, code: Code, grid: Grid) -> nn.Module:
        """Return a module that takes (n, *parity_shape) of `code` and gives (n,
        *parity_output_shape).

        By default it is made by `build`: for each slot separately (see Slotwise), or for the whole
        parity query. Raises TrainingError for a code that it does not support.
        """
        outputs = code.output_shape
        if has_slots(code) and cls.slot_by_slot(options):
            try:
                return Slotwise(
                    code.k,
                    code.query_shape,
                    lambda shape: cls.build(options, Queried.of(shape), outputs),
                )
            except TrainingError:  # folded queries are too small for it
                if len(code.query_shape) == 2:
                    # Joined, sequences would pass for a longer one, or have another time axis.
                    raise
        return cls.build(options, Queried.of(code.parity_shape, grid), code.parity_output_shape)


class Scalable(Network):
    """A network that comes with a multiple of its channels or hidden units."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Network.Options):
        """The width."""

        width: Annotated[
            float,
            Option("Channels or hidden units of each layer, as a multiple.", above=0, at_most=4),
        ] = 1.0


class NamedModule(nn.Module):
    """A module that scales its inputs itself, one tensor (n, *shape) for each."""

    def served(self) -> nn.Module:
        """Return the module as it is exported, with all that is constant computed in advance."""
        return self


def times(width: float, units: int) -> int:
    """Return a multiple `width` of so many units or channels, at least one."""
    return max(1, round(units * width))


def is_small(shape: Shape) -> bool:
    """Return whether queries of this shape are small images."""
    return len(shape) == 3 and min(shape[1:]) < SMALL


def tiles(code: Code) -> Grid:
    """Return the encoder's grid of tiles if each tile's output is decoded alone, else 1 x 1."""
    grid: Grid = code.encoder.grid
    return grid if code.decoder.reads_off else (1, 1)

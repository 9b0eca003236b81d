"""The base of networks: architectures for any shapes, with the settings they are trained with."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import nn

from parity_models import options
from parity_models.codes import Code
from parity_models.errors import TrainingError
from parity_models.models.networks.images import Grid, Shape, tiles
from parity_models.models.networks.queried import Queried
from parity_models.models.networks.slotwise import Slotwise, has_slots
from parity_models.options import Option


@dataclass(frozen=True)
class Effort:
    """The settings of a training by default, those that measured best (lab/notes/training.md).

    `epochs` is the default length; `batch` counts queries of a deployed model and groups of a
    parity model; `mirror` has queries turned left to right at random, where the task allows it.
    `threaded` shares a step between threads: for short steps that gains little, and while other
    programs compute, too, threads that wait for each other cost ten times what they gain.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    mirror: bool
    threaded: bool


class Network(ABC):
    """An architecture, for all models of a bundle alike, built for any shapes.

    A subclass says its `name`, its `Options`, and what it is trained with: `deployed`, on labels or
    as a backup that imitates the deployed model, and `parity`, on the deployed model's
    predictions. None: what suits its inputs.
    """

    name: ClassVar[str]
    deployed: ClassVar[Effort | None] = None
    parity: ClassVar[Effort | None] = None

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """None."""

    @classmethod
    @abstractmethod
    def build(cls, options: Any, inputs: Shape, outputs: Shape, grid: Grid) -> nn.Module:
        """A module that takes (n, *inputs) and gives (n, *outputs), freshly initialised.

        `grid` are the rows and columns of tiles in an input that concatenation made: networks that
        average their last feature map over the whole image do so tile by tile, so that the head
        sees which slot a feature comes from. Raises TrainingError for inputs that it cannot take.
        """

    @classmethod
    def check_single(cls, options: Any) -> None:
        """Raise TrainingError for options that models for single queries cannot have."""
        return

    @classmethod
    def parity_grid(cls, code: Code) -> Grid:
        """Return the grid of a parity model for `code`, unless it is trained as published."""
        return tiles(code)

    @classmethod
    def slot_by_slot(cls, options: Any) -> bool:
        """Return whether a parity model for stacked images or sequences runs on each by itself."""
        return True

    @classmethod
    def folded(cls, options: Any) -> int:
        """Return the pixels of a stacked image that become one place; 0: as many as images."""
        return 0

    @classmethod
    def build_parity(cls, options: Any, code: Code, grid: Grid) -> nn.Module:
        """A module that takes (n, *parity_shape) of `code` and gives (n, *parity_output_shape).

        By default, what `build` makes: for each slot by itself (see Slotwise), or for the whole
        parity query. Raises TrainingError for a code that it cannot be for.
        """
        if has_slots(code) and cls.slot_by_slot(options):
            try:
                return Slotwise(
                    code.k,
                    code.query_shape,
                    lambda shape: cls.build(options, shape, code.output_shape, (1, 1)),
                    cls.folded(options),
                )
            except TrainingError:  # folded queries are too small for it
                if len(code.query_shape) == 2:
                    # Joined, sequences would pass for one that is longer, or has another time axis.
                    raise
        return cls.build(options, code.parity_shape, code.parity_output_shape, grid)

    @classmethod
    def ladder(cls, query_shape: Shape) -> tuple[str, ...]:
        """Its names, with options, that are worth trying for queries of one float32 input, the
        fastest first. By default there are none."""
        return ()


class Plain(Network):
    """A network that is one module, made with the shapes of its inputs and outputs alone."""

    @classmethod
    def build(cls, options: Any, inputs: Shape, outputs: Shape, grid: Grid) -> nn.Module:
        make: Any = cls
        module: nn.Module = make(inputs, outputs)
        return module


class Scalable(Network):
    """A network that comes with a multiple of its channels or hidden units."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Network.Options):
        """What can be set."""

        width: Annotated[
            float,
            Option("Channels or hidden units of each layer, as a multiple.", above=0, at_most=4),
        ] = 1.0

    @classmethod
    def build(cls, options: Any, inputs: Shape, outputs: Shape, grid: Grid) -> nn.Module:
        make: Any = cls
        module: nn.Module = make(inputs, outputs, width=options.width)
        return module


class Convolutional(Scalable):
    """A network that sees the neighbours of each place."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Scalable.Options):
        """What can be set."""

        fold: Annotated[
            int,
            Option(
                "Pixels of each stacked image that become one place of a parity model, which takes "
                "less time by as much; 0 for as many as images are stacked.",
                at_least=0,
                at_most=64,
            ),
        ] = 0

    @classmethod
    def check_single(cls, options: Any) -> None:
        if options.fold:
            raise TrainingError(
                f"{cls.name}@fold={options.fold} is for parity models of stacked images alone; "
                "leave fold out"
            )

    @classmethod
    def folded(cls, options: Any) -> int:
        return int(options.fold)

    @classmethod
    def build_parity(cls, options: Any, code: Code, grid: Grid) -> nn.Module:
        if options.fold and not has_slots(code):
            raise TrainingError(
                f"{cls.name}@fold={options.fold} is for images that are stacked and answered one "
                "by one: use --encoder stack --decoder separate, or leave fold out"
            )
        return super().build_parity(options, code, grid)


class FullLayers(Network):
    """A network of full layers alone, which take inputs of any shape, flattened.

    Its first and last layer can do the scaling of what goes in and comes out.
    """

    output_shape: Shape


class NamedNetwork(Network):
    """A network for queries of several inputs, of integers, or of dynamic shape.

    A subclass says which queries it `takes`, and under `proposed` its names with the options that
    are worth trying for any of these, the fastest first.
    """

    proposed: ClassVar[tuple[str, ...]]

    @classmethod
    @abstractmethod
    def takes(cls, queried: Queried) -> bool:
        """Return whether it can learn from such queries."""

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        """Return the names, with options, that are worth trying for such queries."""
        return cls.proposed if cls.takes(queried) else ()

    @classmethod
    @abstractmethod
    def build_named(cls, options: Any, queried: Queried, outputs: Shape) -> "NamedModule":
        """A module for such queries that gives (n, *outputs), freshly initialised."""

    @classmethod
    def build(cls, options: Any, inputs: Shape, outputs: Shape, grid: Grid) -> nn.Module:
        raise TrainingError(
            f"{cls.name} takes queries of named inputs, in an .npz file with an array for each; "
            "for one float32 input of fixed shape choose another network"
        )


class NamedModule(nn.Module):
    """Takes a tensor (n, *shape) for each input, in the deployed model's order.

    `learned`: it predicts as the deployed model does before it is trained.
    """

    learned: ClassVar[bool] = False

    def served(self) -> nn.Module:
        """Return the module as it is exported, with everything computed that can be."""
        return self


def times(width: float, units: int) -> int:
    """Return a multiple `width` of so many units or channels, at least one."""
    return max(1, round(units * width))

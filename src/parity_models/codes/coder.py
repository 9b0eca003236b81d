"""What encoders and decoders have in common: they are built for one k and r, and may be learned."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from parity_models import options
from parity_models.codes.networks import Network, Shape
from parity_models.errors import CodeError

Array = Any
"""A numpy.ndarray or a torch.Tensor."""


def namespace(array: Array) -> Any:
    """The array API that `array` is computed with."""
    # NumPy 2 has it by itself. Looking it up takes longer than encoding queries of a few kilobytes,
    # and what wraps NumPy imports all of it, which takes a seventh of a server's start.
    return np if isinstance(array, np.ndarray) else array_namespace(array)


class Coder(ABC):
    """One side of a code, for groups of k queries with r parity queries.

    A subclass says its `name` and its `Options`. `network` is what a learned one computes with.
    """

    name: ClassVar[str]

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """None."""

    def __init__(self, k: int, r: int, options: Any = None, network: Network | None = None) -> None:
        self.options: Any = options or self.Options()
        self.network = network
        self.k = k
        self.r = r

    @property
    def network_shapes(self) -> tuple[Shape, Shape] | None:
        """What its network takes and gives, without the batch axis; None: it needs none."""
        return None

    def new_network(self) -> Any:
        """A torch.nn.Module that takes and gives `network_shapes`, to be trained.

        It is called only where there is torch. Raises CodeError where a learned coder does not
        define it.
        """
        raise CodeError(
            f"the {type(self).__name__} is learned, and does not say how; give it new_network()"
        )

    @abstractmethod
    def shape(self) -> Shape:
        """The shape of one parity query, or of a parity model's output for it, without batch axes.

        Raises CodeError for shapes that cannot be coded.
        """

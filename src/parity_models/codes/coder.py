"""The base of encoders and decoders, which may be learned.

Networks are given to learned coders, so that codes compute without any framework. A network is any
callable from arrays to arrays: a torch module while it is trained, a model in ONNX Runtime when it
serves. Without one a code still knows its shapes and its masks. (Kosaian, Rashmi, Venkataraman:
Learning-Based Coded Computation, IEEE JSAIT 2020.)
"""

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal

import numpy as np
from array_api_compat import array_namespace

from parity_models import options
from parity_models.errors import CodeError

Array = Any
"""A numpy.ndarray or a torch.Tensor."""

Shape = tuple[int, ...]
CoderKind = Literal["encoder", "decoder"]
Network = Callable[[Any], Any]
"""A batch of rows in, a batch of rows out: numpy.ndarray or torch.Tensor."""


@dataclass(frozen=True)
class Networks:
    """The networks of a code's learned encoder and decoder, where it has them."""

    encoder: Network | None = None
    decoder: Network | None = None


NO_NETWORKS = Networks()


def namespace(array: Array) -> Any:
    """Return the array API that `array` is computed with."""
    # NumPy 2 has it by itself. Looking it up takes longer than encoding queries of a few kilobytes,
    # and what wraps NumPy imports all of it, which takes a seventh of a server's start.
    return np if isinstance(array, np.ndarray) else array_namespace(array)


class Coder(ABC):
    """One side of a code, for groups of k queries with r parity queries.

    A subclass defines its `name` and its `Options`. A learned one computes with `network`.
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
        """The shapes of its network's input and output, without batch axis, if it has one."""
        return None

    def new_network(self) -> Any:
        """Return a torch.nn.Module that takes and gives `network_shapes`, to be trained.

        It is called only where there is torch. Raises CodeError where a learned coder does not
        define it.
        """
        raise CodeError(
            f"the {type(self).__name__} is learned, and does not say how; give it new_network()"
        )


def network_class(name: str) -> Any:
    """Return the torch module of this name in models/networks/coders.py.

    It is imported by name when one is trained, so that codes and servers run without torch.
    """
    return getattr(import_module("parity_models.models.networks.coders"), name)


def untrained(coder: str) -> CodeError:
    """Return the error of a learned coder that is used without a network."""
    return CodeError(
        f"the {coder} is learned, and no network was given to it; use the code of a bundle that "
        "was trained with it (parm parity)"
    )

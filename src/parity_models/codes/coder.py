"""The base of encoders and decoders."""

from abc import ABC
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from parity_models import options

Array = Any
"""A numpy.ndarray or a torch.Tensor."""

Shape = tuple[int, ...]


def namespace(array: Array) -> Any:
    """Return the array API that `array` is computed with."""
    # NumPy 2 has it by itself. Looking it up takes longer than encoding queries of a few kilobytes,
    # and what wraps NumPy imports all of it, which takes a seventh of a server's start.
    return np if isinstance(array, np.ndarray) else array_namespace(array)


class Coder(ABC):
    """One side of a code, for groups of k queries with r parity queries.

    A subclass defines its `name` and its `Options`.
    """

    name: ClassVar[str]

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """None."""

    def __init__(self, k: int, r: int, options: Any = None) -> None:
        self.options: Any = options or self.Options()
        self.k = k
        self.r = r

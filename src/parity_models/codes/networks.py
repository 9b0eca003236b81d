"""The networks of learned coders: given to them, so that codes compute without any framework.

A network is any callable from arrays to arrays: a torch module while it is trained, a model in
ONNX Runtime when it serves. Without one a code still knows its shapes and what it can decode.
(Kosaian, Rashmi, Venkataraman: Learning-Based Coded Computation, IEEE JSAIT 2020.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from parity_models.errors import CodeError

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


def network_class(name: str) -> Any:
    """The torch module of this name in models/networks/coders.py.

    Found by name, where one is to be trained: codes, and what serves with them, run without torch.
    """
    return getattr(import_module("parity_models.models.networks.coders"), name)


def untrained(coder: str) -> CodeError:
    """The error of a learned coder that is to compute and has no network."""
    return CodeError(
        f"the {coder} is learned, and no network was given to it; use the code of a bundle that "
        "was trained with it (parm parity)"
    )

"""What stand-ins are kept from: inputs unlike those they learned from, outputs that cannot be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from parity_models.models.tensor import tensors_in


class Envelope(Protocol):
    """What a stand-in learned from and for; models.envelope.Envelope fits."""

    def unlike(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Which inputs (n, *input shape) are unlike those it learned from: (n,)."""

    def impossible(self, outputs: NDArray[Any]) -> NDArray[np.bool_]:
        """Which outputs (n, *output shape) cannot be the deployed model's: (n,)."""


@dataclass(frozen=True)
class Screen:
    """Sorts out rows by the bundle's `envelope`, or, without one, what is not finite."""

    envelope: Envelope | None = None

    def unlike(self, rows: NDArray[Any]) -> Sequence[int]:
        """The rows (n, *input shape) that are to be answered by the deployed model alone."""
        return _rows(_not_finite(rows) if self.envelope is None else self.envelope.unlike(rows))

    def impossible(self, outputs: NDArray[Any]) -> Sequence[int]:
        """The rows of a stand-in's outputs (n, *output shape) that cannot be right."""
        if self.envelope is None:
            return _rows(_not_finite(outputs))
        return _rows(self.envelope.impossible(outputs))


def _not_finite(rows: NDArray[Any]) -> NDArray[np.bool_]:
    found = np.zeros(len(rows), np.bool_)
    for tensor in tensors_in(rows):
        if tensor.dtype.kind == "f":
            finite = np.isfinite(tensor)
            if not finite.all():  # hardly ever, so that rows need hardly ever be told apart
                found |= ~finite.reshape(len(rows), -1).all(axis=1)
    return found


def _rows(chosen: NDArray[np.bool_]) -> Sequence[int]:
    return [row for row, is_chosen in enumerate(chosen.tolist()) if is_chosen]

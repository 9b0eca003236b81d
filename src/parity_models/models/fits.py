"""Do some numbers come of others by a standardisation, a gain and a shift? By least squares."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

TOLERANCE = 2e-3
"""By how much what a layer is taken to compute may differ from what the model computes, as a share
of its deviation."""

EPSILONS = (1e-6, 1e-5, 1e-12, 1e-3)
"""What models add to variances before they divide by their roots."""


def standardising(
    values: Floats, results: Floats, axis: int
) -> tuple[float, Floats, Floats] | None:
    """The epsilon, and the gain and the shift of each place along `axis`, that make `values`,
    standardised along it, to `results`."""
    fits = [_line(standardised(values, axis, each), results, axis) for each in EPSILONS]
    at = int(np.argmin([fit[0] for fit in fits]))
    least, gain, shift = fits[at]
    return (EPSILONS[at], gain, shift) if least <= TOLERANCE else None


def standardised(values: Floats, axis: int, epsilon: float) -> Floats:
    """`values` with mean 0 and variance 1 along `axis`."""
    mean, variance = values.mean(axis, keepdims=True), values.var(axis, keepdims=True)
    return np.asarray((values - mean) / np.sqrt(variance + epsilon), np.float32)


def _line(values: Floats, results: Floats, axis: int) -> tuple[float, Floats, Floats]:
    """The gain and the shift of each place along `axis` that bring `values` nearest to `results`,
    and how far apart they are then."""
    one = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
    other = np.moveaxis(results, axis, 0).reshape(one.shape).astype(np.float64)
    mean, wanted = one.mean(1, keepdims=True), other.mean(1, keepdims=True)
    spread = np.square(one - mean).mean(1, keepdims=True)
    gain = ((one - mean) * (other - wanted)).mean(1, keepdims=True) / np.maximum(spread, 1e-12)
    shift = wanted - gain * mean
    least = apart(gain * one + shift, other)
    return least, np.asarray(gain.ravel(), np.float32), np.asarray(shift.ravel(), np.float32)


def alike(one: NDArray[Any], other: NDArray[Any], tolerance: float = TOLERANCE) -> bool:
    """Do they differ by next to nothing?"""
    return apart(one, other) <= tolerance


def apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    """By how much they differ, as a share of the deviation of the `other`."""
    root = np.sqrt(np.square(one - other, dtype=np.float64).mean())
    return float(root / max(float(other.std()), 1e-6))


def predicts(said: Floats, predictions: Any) -> bool:
    """Are `said` the predictions, or logits of these?"""
    if predictions is None or predictions.shape != said.shape:
        return False
    powers = np.exp(said - said.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    return alike(said, predictions) or alike(shares, predictions, 0.05)

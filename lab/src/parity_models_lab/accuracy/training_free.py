"""Codes that need no parity model: k queries become k + r coded queries, all run on F itself.

They are linear in the queries and in the outputs: a matrix (k + r, k) encodes, and for every set of
outputs that arrived a matrix (k, arrived) decodes. Coded queries are not the queries of the group,
so answers are decoded whether or not anything is unavailable.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parity_models.codes.coder import namespace
from parity_models.codes.encoders import require_floating
from parity_models.errors import CodeError, UndecodableError

Array = Any
"""A numpy.ndarray or a torch.Tensor."""
Matrix = NDArray[np.float64]


class TrainingFreeCode(ABC):
    """Encodes k queries into `coded` = k + r, so that r outputs of F may be unavailable.

    Raises CodeError for a k below 2 or a negative r.
    """

    name: ClassVar[str]

    def __init__(self, k: int, r: int) -> None:
        if k < 2 or r < 0:
            raise CodeError(f"a group has k of 2 or more and r of 0 or more, not k={k}, r={r}")
        self.k = k
        self.r = r
        self.coded = k + r

    @cached_property
    def encoding(self) -> Matrix:
        """The weights (k + r, k) of the queries in each coded query."""
        return self._matrix(_chebyshev(self.k), _lobatto(self.coded))

    @property
    def overhead(self) -> float:
        """Work beyond one query per query."""
        return self.r / self.k

    def encode(self, queries: Sequence[Array]) -> list[Array]:
        """Turn k floating-point arrays (*batch, *query_shape) into k + r of the same shape.

        Raises CodeError for another number of queries, and for other types of them.
        """
        if len(queries) != self.k:
            raise CodeError(f"this code takes k={self.k} queries, got {len(queries)}")
        require_floating(queries[0], namespace(queries[0]), self.name)
        return [_combine(weights, queries) for weights in self.encoding]

    def decode(self, outputs: Sequence[Array | None]) -> list[Array]:
        """Approximate F(X_1) .. F(X_k), from k + r arrays (*batch, *output_shape); None is missing.

        Raises UndecodableError if fewer than k are here.
        """
        arrived = [i for i, output in enumerate(outputs) if output is not None]
        if len(arrived) < self.k:
            raise UndecodableError(
                f"the {self.name} code cannot decode k={self.k} predictions from {len(arrived)} "
                f"of {self.coded} coded outputs; wait for {self.k}"
            )
        decoding = self._matrix(_lobatto(self.coded)[arrived], _chebyshev(self.k), decoding=True)
        here = [outputs[i] for i in arrived]
        return [_combine(weights, here) for weights in decoding]

    @abstractmethod
    def _matrix(self, nodes: Matrix, points: Matrix, *, decoding: bool = False) -> Matrix:
        """Return the matrix (points, nodes) from values at the nodes to values at the points."""


class BerrutCode(TrainingFreeCode):
    """Berrut's rational interpolant in both directions, for any F.

    (ApproxIFER: Soleymani et al., AAAI 2022.) Coded queries are the values, at k + r Chebyshev
    points of the second kind, of the interpolant through the queries at k points of the first.
    Signs alternate over the outputs that arrived, which keeps the decoding interpolant free of
    poles.
    """

    name = "berrut"

    def _matrix(self, nodes: Matrix, points: Matrix, *, decoding: bool = False) -> Matrix:
        signs = np.where(np.arange(len(nodes)) % 2, -1.0, 1.0)
        distances = points[:, None] - nodes
        at_node = np.isclose(distances, 0, atol=1e-12)
        terms = signs / np.where(at_node, 1, distances)
        terms = np.where(at_node.any(axis=1, keepdims=True), at_node, terms)
        values: Matrix = terms / terms.sum(axis=1, keepdims=True)
        return values


class NestedRegressionCode(TrainingFreeCode):
    """Smoothing splines in both directions, for any F (NeRCC: Moradi, Maddah-Ali, 2024).

    As BerrutCode, with natural cubic smoothing splines in place of interpolants: `smooth_in`
    and `smooth_out` weigh the curvature of the encoding and of the decoding spline against
    their squared errors at the points. Raises CodeError if one of them is negative.
    """

    name = "nercc"

    def __init__(self, k: int, r: int, smooth_in: float = 0.0, smooth_out: float = 0.0) -> None:
        if smooth_in < 0 or smooth_out < 0:
            raise CodeError(f"smoothing is 0 or more, not {smooth_in} and {smooth_out}")
        super().__init__(k, r)
        self._smooth_in = smooth_in
        self._smooth_out = smooth_out

    def _matrix(self, nodes: Matrix, points: Matrix, *, decoding: bool = False) -> Matrix:
        return smoothing_spline(nodes, points, self._smooth_out if decoding else self._smooth_in)


def _combine(weights: NDArray[np.float64], arrays: Sequence[Array]) -> Array:
    """Σ weights_i arrays_i, in the arrays' precision, without the terms that are zero."""
    first, *rest = map(int, np.flatnonzero(weights))
    total = arrays[first] * float(weights[first])
    for i in rest:
        total = total + arrays[i] * float(weights[i])
    return total


def _chebyshev(n: int) -> Matrix:
    """n Chebyshev points of the first kind, inside (-1, 1), falling."""
    return np.cos((2 * np.arange(n) + 1) * np.pi / (2 * n))


def _lobatto(n: int) -> Matrix:
    """n Chebyshev points of the second kind, -1 and 1 among them, falling."""
    return np.cos(np.arange(n) * np.pi / (n - 1))


def smoothing_spline(nodes: Matrix, points: Matrix, smoothness: float) -> Matrix:
    """The matrix (points, nodes) from values at `nodes` to the smoothing spline's at `points`.

    The spline g minimises Σ (values - g(nodes))² + smoothness · ∫ g''²: an interpolant for 0,
    the line of least squares in the limit. Beyond the outer nodes it is a line. `nodes` are two
    or more, all different, in any order. (Green, Silverman, 1994, chapter 2.)
    """
    order = np.argsort(nodes)
    x = nodes[order]
    n, gaps = len(x), np.diff(x)
    # Second differences Q (n, n-2), and R (n-2, n-2), in which second derivatives solve R s = Qᵀg.
    q = np.zeros((n, n - 2))
    inner = np.arange(n - 2)
    q[inner, inner] = 1 / gaps[:-1]
    q[inner + 1, inner] = -1 / gaps[:-1] - 1 / gaps[1:]
    q[inner + 2, inner] = 1 / gaps[1:]
    r = np.diag((gaps[:-1] + gaps[1:]) / 3)
    r += np.diag(gaps[1:-1] / 6, 1) + np.diag(gaps[1:-1] / 6, -1)
    bends = np.zeros((n, n))
    bends[1:-1] = np.linalg.solve(r + smoothness * q.T @ q, q.T)
    values = np.eye(n) - smoothness * q @ bends[1:-1]
    result = np.zeros((len(points), n))
    result[:, order] = _evaluate(x, values, bends, points)
    return result


def _evaluate(x: Matrix, values: Matrix, bends: Matrix, points: Matrix) -> Matrix:
    """The natural cubic spline at `points`, from its values and second derivatives at `x`."""
    inside = np.clip(points, x[0], x[-1])
    i = np.clip(np.searchsorted(x, inside), 1, len(x) - 1)
    gap = (x[i] - x[i - 1])[:, None]
    right = (inside - x[i - 1])[:, None] / gap
    left = 1 - right
    cubic = (left**3 - left) * bends[i - 1] + (right**3 - right) * bends[i]
    at = left * values[i - 1] + right * values[i] + cubic * gap**2 / 6
    steepness = (values[i] - values[i - 1]) / gap + (
        (1 - 3 * left**2) * bends[i - 1] + (3 * right**2 - 1) * bends[i]
    ) * gap / 6
    result: Matrix = at + (points - inside)[:, None] * steepness
    return result

"""Codes that need no parity model: k queries become n coded queries, all run on F itself.

The baselines of coded computation. All of them are linear in the queries and in the outputs: a
matrix (n, k) encodes, and for every set of outputs that arrived a matrix (k, arrived) decodes.
Except in the code for a linear F, coded queries are not the queries of the group (but for the odd
point that falls on one), so answers are decoded whether or not anything is unavailable.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parity_models.codes.coder import namespace
from parity_models.codes.encoders.encoder import require_floating
from parity_models.codes.splines import smoothing_spline
from parity_models.codes.weights import parity_weights, recovery_weights
from parity_models.errors import CodeError, UndecodableError

Array = Any
"""A numpy.ndarray or a torch.Tensor."""
Matrix = NDArray[np.float64]

REMEMBERED = 256
"""Sets of outputs whose decoding matrices a code keeps at hand."""


class TrainingFreeCode(ABC):
    """Encodes k queries so that r of the n outputs of F may be unavailable.

    `coded` is n, the number of coded queries, `needed` the least number of outputs to decode
    from. Raises CodeError for a k below 2 or a negative r.
    """

    name: ClassVar[str]

    def __init__(self, k: int, r: int, needed: int) -> None:
        if k < 2 or r < 0:
            raise CodeError(f"a group has k of 2 or more and r of 0 or more, not k={k}, r={r}")
        self.k = k
        self.r = r
        self.needed = needed
        self.coded = needed + r
        self._decoding_of = lru_cache(REMEMBERED)(self._decoding)

    @cached_property
    def encoding(self) -> Matrix:
        """The weights (n, k) of the queries in each coded query."""
        return self._encoding()

    @property
    def overhead(self) -> float:
        """Work beyond one query per query: n / k - 1."""
        return self.coded / self.k - 1

    @property
    def systematic(self) -> bool:
        """Are the first k coded queries the queries themselves?"""
        return bool(np.array_equal(self.encoding[: self.k], np.eye(self.k)))

    def encode(self, queries: Sequence[Array]) -> list[Array]:
        """k floating-point arrays (*batch, *query_shape) to n of the same shape.

        Raises CodeError for another number of queries, and for other types of them.
        """
        if len(queries) != self.k:
            raise CodeError(f"this code takes k={self.k} queries, got {len(queries)}")
        require_floating(queries[0], namespace(queries[0]), self.name)
        return [_combine(weights, queries) for weights in self.encoding]

    def decodable(self, arrived: Sequence[bool]) -> bool:
        """Can all k predictions be decoded when these of the n outputs are here?"""
        return sum(arrived) >= self.needed

    def decode(self, outputs: Sequence[Array | None]) -> list[Array]:
        """Approximate F(X_1) .. F(X_k), from n arrays (*batch, *output_shape); None is missing.

        Raises UndecodableError if fewer than `needed` are here.
        """
        arrived = tuple(i for i, output in enumerate(outputs) if output is not None)
        if len(arrived) < self.needed:
            raise UndecodableError(
                f"the {self.name} code cannot decode k={self.k} predictions from {len(arrived)} "
                f"of {self.coded} coded outputs; wait for {self.needed}"
            )
        here = [outputs[i] for i in arrived]
        return [_combine(weights, here) for weights in self._decoding_of(arrived)]

    @abstractmethod
    def _encoding(self) -> Matrix: ...

    @abstractmethod
    def _decoding(self, arrived: tuple[int, ...]) -> Matrix: ...


class LinearCode(TrainingFreeCode):
    """Exact for F(X) = A X + b: the queries themselves, and r averages of them.

    The averages' weights are independent rows, each of which sums to 1, so that the offset b
    comes through unchanged. (Coded computation of linear functions: Lee et al., 2018.) Raises
    CodeError for an r above k as well.
    """

    name = "linear"

    def __init__(self, k: int, r: int) -> None:
        if r > k:
            raise CodeError(f"the linear code has r from 0 to k={k}, got {r}")
        super().__init__(k, r, needed=k)

    def _encoding(self) -> Matrix:
        return np.concatenate([np.eye(self.k), parity_weights(self.k, self.r) / self.k])

    def _decoding(self, arrived: tuple[int, ...]) -> Matrix:
        own = [i for i in arrived if i < self.k]
        missing = tuple(i for i in range(self.k) if i not in own)
        averages = tuple(i - self.k for i in arrived if i >= self.k)
        decoding = np.zeros((self.k, len(arrived)))
        decoding[own, range(len(own))] = 1
        if missing:
            recovery = recovery_weights(self.encoding[self.k :], missing, averages)
            decoding[list(missing), len(own) :] = recovery[:, : len(averages)]
            decoding[list(missing), : len(own)] = recovery[:, len(averages) :]
        return decoding


class LagrangeCode(TrainingFreeCode):
    """Exact for a polynomial F of total degree `degree` (Yu et al., AISTATS 2019).

    The queries are values of a polynomial of degree k - 1; its composition with F has degree
    (k - 1) · degree, and as many outputs and one determine it. Raises CodeError for a degree
    below 1 as well.
    """

    name = "lagrange"

    def __init__(self, k: int, r: int, degree: int) -> None:
        if degree < 1:
            raise CodeError(f"a polynomial F has degree 1 or more, not {degree}")
        super().__init__(k, r, needed=(k - 1) * degree + 1)

    def _encoding(self) -> Matrix:
        nodes = _chebyshev(self.k)
        return _barycentric(nodes, _polynomial_weights(nodes), _lobatto(self.coded))

    def _decoding(self, arrived: tuple[int, ...]) -> Matrix:
        nodes = _lobatto(self.coded)[list(arrived)]
        return _barycentric(nodes, _polynomial_weights(nodes), _chebyshev(self.k))


class BerrutCode(TrainingFreeCode):
    """Berrut's rational interpolant in both directions, for any F (ApproxIFER: Soleymani et
    al., AAAI 2022).

    Coded queries are the values, at k + r Chebyshev points of the second kind, of the
    interpolant through the queries at k points of the first. Signs alternate over the outputs
    that arrived, which keeps the decoding interpolant free of poles.
    """

    name = "berrut"

    def __init__(self, k: int, r: int) -> None:
        super().__init__(k, r, needed=k)

    def _encoding(self) -> Matrix:
        nodes = _chebyshev(self.k)
        return _barycentric(nodes, _alternating(self.k), _lobatto(self.coded))

    def _decoding(self, arrived: tuple[int, ...]) -> Matrix:
        nodes = _lobatto(self.coded)[list(arrived)]
        return _barycentric(nodes, _alternating(len(nodes)), _chebyshev(self.k))


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
        super().__init__(k, r, needed=k)
        self._smooth_in = smooth_in
        self._smooth_out = smooth_out

    def _encoding(self) -> Matrix:
        return smoothing_spline(_chebyshev(self.k), _lobatto(self.coded), self._smooth_in)

    def _decoding(self, arrived: tuple[int, ...]) -> Matrix:
        nodes = _lobatto(self.coded)[list(arrived)]
        return smoothing_spline(nodes, _chebyshev(self.k), self._smooth_out)


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


def _alternating(n: int) -> Matrix:
    return np.where(np.arange(n) % 2, -1.0, 1.0)


def _polynomial_weights(nodes: Matrix) -> Matrix:
    differences = nodes[:, None] - nodes
    np.fill_diagonal(differences, 1)
    weights: Matrix = 1 / differences.prod(axis=1)
    return weights


def _barycentric(nodes: Matrix, weights: Matrix, points: Matrix) -> Matrix:
    """The values (points, nodes) at `points` of what is 1 at one of `nodes` and 0 at the others.

    With `_polynomial_weights`, of polynomials; with alternating signs, of Berrut's rationals.
    """
    distances = points[:, None] - nodes
    at_node = np.isclose(distances, 0, atol=1e-12)
    terms = weights / np.where(at_node, 1, distances)
    terms = np.where(at_node.any(axis=1, keepdims=True), at_node, terms)
    values: Matrix = terms / terms.sum(axis=1, keepdims=True)
    return values

"""Berrut coding, the baseline that needs no parity model: all coded queries run on F itself."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.evaluation.accuracy import some_sets
from parity_models.evaluation.outputs import BATCH, draw_groups
from parity_models.tasks.metrics import score

Array = NDArray[Any]
Matrix = NDArray[np.float64]


class BerrutCode:
    """Berrut's rational interpolant in both directions, for any F.

    (ApproxIFER: Soleymani et al., AAAI 2022.) k queries, 2 or more, become `coded` = k + r, so that
    r outputs of F may be unavailable. Coded queries are the values, at k + r Chebyshev points of
    the second kind, of the interpolant through the queries at k points of the first. Signs
    alternate over the outputs that arrived, which keeps the decoding interpolant free of poles.
    Coded queries are not the queries of the group, so all answers are decoded, whether or not
    anything is unavailable.
    """

    def __init__(self, k: int, r: int) -> None:
        self.k = k
        self.r = r
        self.coded = k + r
        self._queries = np.cos((2 * np.arange(k) + 1) * np.pi / (2 * k))
        self._outputs = np.cos(np.arange(self.coded) * np.pi / (self.coded - 1))
        self._encoding = _interpolant(self._queries, self._outputs)

    def encode(self, queries: Sequence[Array]) -> list[Array]:
        """Turn k floating-point arrays (*batch, *query_shape) into k + r of the same shape."""
        return _combine(self._encoding, queries)

    def decode(self, outputs: Sequence[Array | None]) -> list[Array]:
        """Approximate F(X_1) .. F(X_k), from k + r arrays (*batch, *output_shape) or None."""
        arrived = [i for i, output in enumerate(outputs) if output is not None]
        decoding = _interpolant(self._outputs[arrived], self._queries)
        return _combine(decoding, [output for output in outputs if output is not None])

    def accuracies(
        self, run: Callable[[Array], Array], inputs: Array, labels: Array, metric: str, seed: int
    ) -> tuple[float, ...]:
        """Return the accuracy with 0, 1, .. r of a group's outputs unavailable.

        All sets of outputs are taken as unavailable in turn, or, where these are very many, some
        drawn by `seed`.

        Args:
            run: F, from (n, *query shape) to (n, *output shape).
            inputs: Queries (n, *query shape), drawn by `seed` into groups; only full ones count.
            labels: (n, ...).
            metric: The score of answers.
            seed: Fixes the groups.

        """
        groups = draw_groups(len(inputs), self.k, seed)[: len(inputs) // self.k]
        parts: list[list[Array]] = []
        for start in range(0, len(groups), BATCH):
            coded = self.encode([inputs[rows] for rows in groups[start : start + BATCH].T])
            parts.append([run(queries) for queries in coded])
        outputs = [np.concatenate(each) for each in zip(*parts, strict=True)]
        right = np.concatenate([labels[groups][:, slot] for slot in range(self.k)])

        def accuracy(sets: Sequence[Sequence[int]]) -> float:
            here = ([None if i in lost else o for i, o in enumerate(outputs)] for lost in sets)
            answers = [np.concatenate(self.decode(each)) for each in here]
            return score(metric, np.concatenate(answers), np.concatenate([right] * len(sets)))

        lost = (some_sets(self.coded, number, seed) for number in range(1, self.r + 1))
        return (accuracy([()]), *map(accuracy, lost))


def _interpolant(nodes: Matrix, points: Matrix) -> Matrix:
    """Return the matrix (points, nodes) from values at the nodes to values at the points."""
    signs = np.where(np.arange(len(nodes)) % 2, -1.0, 1.0)
    distances = points[:, None] - nodes
    at_node = np.isclose(distances, 0, atol=1e-12)
    terms = signs / np.where(at_node, 1, distances)
    terms = np.where(at_node.any(axis=1, keepdims=True), at_node, terms)
    values: Matrix = terms / terms.sum(axis=1, keepdims=True)
    return values


def _combine(weights: Matrix, arrays: Sequence[Array]) -> list[Array]:
    """Return Σ weights_i arrays_i for each row of weights, in the arrays' precision."""
    stacked = np.stack(arrays)
    return list(np.tensordot(weights.astype(stacked.dtype), stacked, 1))

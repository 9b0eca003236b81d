"""How right reconstructions are, live: predictions compared with what would have replaced them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.serving.metrics import Metrics

ONE_IN = 20
"""One in so many groups that have a parity output is compared, and one in so many parity units
that nobody waits for any more runs on, to be."""

Outputs = Sequence[NDArray[Any] | None]


@dataclass(slots=True)
class _Sample:
    """A parity unit that runs on, and what is there of its groups, by id."""

    unit: int
    groups: frozenset[int]
    over: dict[int, Outputs] = field(default_factory=dict)


class Comparison:
    """Compares predictions with their reconstructions, where both can be had.

    When a group is over, each of its predictions that is here is reconstructed as if it were
    not, and the two are counted in `metrics`; this takes time that others wait for, so that
    only some groups are taken. Most are over before their parity output is here: now and then
    a parity unit is spared from being cancelled; one at a time.
    """

    def __init__(self, code: Code, metrics: Metrics) -> None:
        self._code = code
        self._metrics = metrics
        self._cancelled = 0
        self._with_parity = 0
        self._sample: _Sample | None = None

    def spares(self, unit: int, groups: Sequence[int]) -> bool:
        """Shall this parity unit, which nobody waits for any more, run on?"""
        self._cancelled += 1
        if self._sample is not None or self._cancelled % ONE_IN:
            return False
        self._sample = _Sample(unit, frozenset(groups))
        return True

    def group_over(self, group: int, predictions: Outputs, parity_outputs: Outputs) -> None:
        """No more queries of the group are waiting; None is what is not here."""
        if any(output is not None for output in parity_outputs):
            self._with_parity += 1
            if self._with_parity % ONE_IN == 0:
                self._compare(predictions, parity_outputs)
        elif self._sample is not None and group in self._sample.groups:
            self._sample.over[group] = predictions

    def finished(self, unit: int, row: int, groups: Sequence[int], outputs: NDArray[Any]) -> None:
        """A parity unit of this row of the code has finished: an output for each of `groups`."""
        sample = self._sample
        if sample is None or sample.unit != unit:
            return
        self._sample = None
        for group, output in zip(groups, outputs, strict=True):
            if group in sample.over:
                here = [output if j == row else None for j in range(self._code.r)]
                self._compare(sample.over[group], here)

    def lost(self, unit: int) -> None:
        """This unit will not finish."""
        if self._sample is not None and self._sample.unit == unit:
            self._sample = None

    def _compare(self, predictions: Outputs, parity_outputs: Outputs) -> None:
        parities = tuple(output is not None for output in parity_outputs)
        for slot, prediction in enumerate(predictions):
            if prediction is None:
                continue
            others = [None if i == slot else other for i, other in enumerate(predictions)]
            available = tuple(other is not None for other in others)
            if self._code.decodable(available, parities)[slot]:
                self._count(self._code.decode(others, parity_outputs)[slot], prediction)

    def _count(self, reconstruction: NDArray[Any], prediction: NDArray[Any]) -> None:
        size = float(np.linalg.norm(prediction))
        if size > 0:
            error = float(np.linalg.norm(reconstruction - prediction)) / size
            self._metrics.reconstruction_error.observe(error)
        self._metrics.compared.inc()
        if reconstruction.argmax() != prediction.argmax():
            self._metrics.disagreements.inc()

"""How right reconstructions are, live: predictions compared with what would have replaced them.

What disagrees may be the stand-in's error, or that of an instance which answers wrongly: so that
the latter is found, the instances that made the two are told with every comparison.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.scheduling import Run
from parity_models.serving.metrics import Metrics

ONE_IN = 20
"""One in so many groups that have a parity output is compared, and one in so many parity units
that nobody waits for any more runs on, to be."""


class Made(NamedTuple):
    """An output (*shape), and the instance that made it."""

    output: NDArray[Any]
    instance: str


Outputs = Sequence[Made | None]
"""None is what is not here."""


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
    a parity unit is spared from being cancelled; one at a time. `compared` is called with every
    instance that made one of the two, and whether they agreed.
    """

    def __init__(self, code: Code, metrics: Metrics, compared: Callable[[str, bool], None]) -> None:
        self._code = code
        self._metrics = metrics
        self._tell = compared
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

    def group_over(self, group: int, predictions: Outputs, parities: Outputs) -> None:
        """No more queries of the group are waiting."""
        if any(parities):
            self._with_parity += 1
            if self._with_parity % ONE_IN == 0:
                self._compare(predictions, parities)
        elif self._sample is not None and group in self._sample.groups:
            self._sample.over[group] = predictions

    def finished(self, row: int, run: Run, outputs: NDArray[Any]) -> None:
        """A parity unit of this row of the code has finished: an output for each of its groups."""
        sample = self._sample
        if sample is None or sample.unit != run.unit:
            return
        self._sample = None
        for group, output in zip(run.subjects, outputs, strict=True):
            if group in sample.over:
                made = Made(output, run.instance)
                here = [made if j == row else None for j in range(self._code.r)]
                self._compare(sample.over[group], here)

    def lost(self, unit: int) -> None:
        """This unit will not finish."""
        if self._sample is not None and self._sample.unit == unit:
            self._sample = None

    def _compare(self, predictions: Outputs, parities: Outputs) -> None:
        parity_outputs = [made.output if made else None for made in parities]
        here = tuple(made is not None for made in parities)
        for slot, prediction in enumerate(predictions):
            if prediction is None:
                continue
            others = [made.output if made else None for made in predictions]
            others[slot] = None
            available = tuple(other is not None for other in others)
            if not self._code.decodable(available, here)[slot]:
                continue
            with np.errstate(all="ignore"):
                reconstruction = self._code.decode(others, parity_outputs)[slot]
                agreed = self._count(reconstruction, prediction.output)
            for made in (prediction, *parities):
                if made is not None:
                    self._tell(made.instance, agreed)

    def _count(self, reconstruction: NDArray[Any], prediction: NDArray[Any]) -> bool:
        size = float(np.linalg.norm(prediction))
        error = float(np.linalg.norm(reconstruction - prediction)) / size if size > 0 else 0.0
        if isfinite(error):  # else the sum of errors would be lost for ever
            self._metrics.reconstruction_error.observe(error)
        self._metrics.compared.inc()
        agreed = bool(reconstruction.argmax() == prediction.argmax())
        if not agreed:
            self._metrics.disagreements.inc()
        return agreed

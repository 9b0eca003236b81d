"""How right stand-ins are, live: predictions compared with what would have replaced them.

What disagrees may be the stand-in's error, or that of an instance which answers wrongly: so that
the latter is found, the instances that made the two are told with every comparison.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.scheduling import Run, Source, source_of
from parity_models.serving.gates import Gates
from parity_models.serving.metrics import Metrics


class Made(NamedTuple):
    """An output (*shape), the instance that made it, and, of a query's, whose query it was."""

    output: NDArray[Any]
    instance: str
    tenant: str | None = None


Outputs = Sequence[Made | None]
"""None is what is not here."""


@dataclass(slots=True)
class _Sample:
    """A unit of a stand-in that runs on, and what is there of its subjects, by id: predictions of a
    group that is over, or the prediction of a backup's query."""

    unit: int
    subjects: frozenset[int]
    over: dict[int, Outputs] = field(default_factory=dict)


class Comparison:
    """Compares predictions with what stand-ins say in their place, where both can be had.

    A backup's output is compared when the later of the two comes. When a group is over, each of its
    predictions that is here is reconstructed as if it were not, and the two are counted in
    `metrics`; this takes time that others wait for, so that only one is taken in so many groups
    that have a parity output, `one_in`; but all while their gate is closed, as it is to open again
    soon. The `gates` say whether two agree. `compared` is called with every instance that made one
    of the two, and whether they agreed.
    """

    def __init__(
        self,
        code: Code | None,
        gates: Gates,
        metrics: Metrics,
        compared: Callable[[str, bool], None],
        one_in: int,
    ) -> None:
        self._code = code
        self._gates = gates
        self._metrics = metrics
        self._tell = compared
        self._one_in = one_in
        self._with_parity = 0
        self._sample: _Sample | None = None

    def sample(
        self, unit: int, subjects: Sequence[int], predictions: Mapping[int, Made] | None = None
    ) -> None:
        """Nobody waits for this unit of a stand-in, which runs on to be compared.

        `subjects` are groups, or queries of a backup, whose `predictions` are given as far as they
        are here.
        """
        over = {query: (made,) for query, made in (predictions or {}).items()}
        self._sample = _Sample(unit, frozenset(subjects), dict(over))

    def group_over(self, group: int, predictions: Outputs, parities: Outputs) -> None:
        """No more queries of the group are waiting."""
        if any(parities):
            self._with_parity += 1
            is_due = self._with_parity % self._one_in == 0
            if is_due or self._gates.is_closed(Source.RECONSTRUCTION):
                self._compare(predictions, parities)
        elif self._sample is not None and group in self._sample.subjects:
            self._sample.over[group] = predictions

    def finished(self, row: int | None, run: Run, outputs: NDArray[Any]) -> None:
        """A unit of a stand-in has finished, with an output for each of its subjects: a parity unit
        of this `row` of the code, or, None, one of a backup."""
        sample = self._sample
        if sample is None or sample.unit != run.unit:
            return
        self._sample = None
        for subject, output in zip(run.subjects, outputs, strict=True):
            if subject not in sample.over:
                continue
            made, here = Made(output, run.instance), sample.over[subject]
            if row is not None:
                parities = range(0 if self._code is None else self._code.r)
                self._compare(here, [made if j == row else None for j in parities])
            elif here[0] is not None:
                self.backup(source_of(run.role), made, here[0])

    def backup(self, source: Source, backup: Made, prediction: Made) -> None:
        """The output of the backup with this source and the prediction for the same query are
        here."""
        makers = (backup.instance, prediction.instance)
        agreed = self._gates.compared(
            source, backup.output, prediction.output, makers, prediction.tenant
        )
        for maker in makers:
            self._tell(maker, agreed)

    def lost(self, unit: int) -> None:
        """This unit will not finish."""
        if self._sample is not None and self._sample.unit == unit:
            self._sample = None

    def _compare(self, predictions: Outputs, parities: Outputs) -> None:
        assert self._code is not None
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
                self._count(reconstruction, prediction.output)
                makers = [made.instance for made in (prediction, *parities) if made is not None]
                agreed = self._gates.compared(
                    Source.RECONSTRUCTION,
                    reconstruction,
                    prediction.output,
                    makers,
                    prediction.tenant,
                )
            self._metrics.disagreements.inc(not agreed)
            for maker in makers:
                self._tell(maker, agreed)

    def _count(self, reconstruction: NDArray[Any], prediction: NDArray[Any]) -> None:
        size = float(np.linalg.norm(prediction))
        error = float(np.linalg.norm(reconstruction - prediction)) / size if size > 0 else 0.0
        if isfinite(error):  # else the sum of errors would be lost for ever
            self._metrics.reconstruction_error.observe(error)
        self._metrics.compared.inc()

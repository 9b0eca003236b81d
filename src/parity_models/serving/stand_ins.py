"""What a server makes of its stand-ins' outputs: which may answer, and how often they are right."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.scheduling import BACKUPS, DEPLOYED, ForgetGroup, Run, Source
from parity_models.serving.comparison import Comparison
from parity_models.serving.gates import ChosenGate, Gates
from parity_models.serving.metrics import Metrics
from parity_models.serving.screen import Screen
from parity_models.serving.tensors import Tensors


@dataclass(frozen=True)
class StandInRules:
    """Which outputs of stand-ins may answer, and how many are compared with predictions.

    Those may not that the `screen` sorts out, that their gate among `gates` refuses, or that are
    for a query, by its id, that a fault plan `refuses` them. `compare_one_in` is as for Comparison.
    Where the deployed model has several outputs, stand-ins give the one that is `imitated`.
    """

    screen: Screen
    gates: Mapping[Source, ChosenGate]
    refuses: Callable[[int, Source], bool]
    compare_one_in: int
    imitated: str | None = None


class StandIns:
    """Judges outputs of stand-ins by `rules`, and has those that are among `tensors` compared.

    `compared` is told as by Comparison, `gate_turned` as by Gates.
    """

    def __init__(
        self,
        code: Code | None,
        tensors: Tensors,
        rules: StandInRules,
        metrics: Metrics,
        *,
        compared: Callable[[str, bool], None],
        gate_turned: Callable[[Source, bool], None],
    ) -> None:
        self._tensors = tensors
        self._rules = rules
        self._metrics = metrics
        self._gates = Gates(rules.gates, metrics, gate_turned)
        self._comparison = Comparison(code, self._gates, metrics, compared, rules.compare_one_in)

    def unusable(
        self, source: Source, queries: Sequence[int], outputs: NDArray[Any]
    ) -> Sequence[int]:
        """The rows of `outputs` (n, *output shape), one for each query, that may not answer."""
        impossible = self._rules.screen.impossible(outputs)
        if impossible:
            self._metrics.impossible.inc(len(impossible))
        tenants = [self._tensors.tenant(query) for query in queries]
        refused = self._gates.refused(source, outputs, tenants)
        refuses = self._rules.refuses
        planned = [row for row, query in enumerate(queries) if refuses(query, source)]
        return sorted({*impossible, *refused, *planned})

    def finished(self, run: Run, outputs: NDArray[Any]) -> None:
        """A unit has finished, and its outputs are kept."""
        row = self._tensors.parity_rows.get(run.role)
        if row is None:
            for source, backup, prediction in self._tensors.backed(run):
                self._comparison.backup(source, backup, prediction)
        if run.role != DEPLOYED:
            self._comparison.finished(row, run, outputs)

    def sample(self, run: Run) -> None:
        """Nobody waits for this unit, which runs on to be compared."""
        predictions = self._tensors.predictions(run) if run.role in BACKUPS else None
        self._comparison.sample(run.unit, run.subjects, predictions)

    def lost(self, unit: int) -> None:
        """This unit will not finish."""
        self._comparison.lost(unit)

    def forget_group(self, action: ForgetGroup) -> None:
        """No more queries of the group are waiting."""
        group = self._tensors.forget_group(action)
        predictions = [self._tensors.prediction(query) for query in group.members]
        self._comparison.group_over(action.group, predictions, group.outputs)

"""The outputs of a server's stand-ins: which may answer, with what doubt, and how many differ.

Outputs are compared with predictions if both are known. A disagreement may also be the error of an
instance that answers wrongly, which is not held against the stand-in.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.roles import Source, source_of
from parity_models.scheduling.actions import Run
from parity_models.serving.metrics import Metrics
from parity_models.simulation.emulation import FaultPlan
from parity_models.trust.evidence import EvidenceStore
from parity_models.trust.gates import OutputGate
from parity_models.trust.judge import StandInJudge, Turn


class Made(NamedTuple):
    """An output (*shape), the instance that made it, and the tenant of the query."""

    output: NDArray[Any]
    instance: str
    tenant: str | None = None


Outputs = Sequence[Made | None]
"""None for an output that is missing."""


def _number(query: int) -> int:
    """Return a query's number in a fault plan, which counts from 0; ids begin with 1."""
    return query - 1


class StandInOutputs:
    """Judges the outputs of stand-ins, and compares them with predictions.

    Args:
        code: Reconstructs, if the policy uses a code.
        gate: Decides which inputs are served exact, and which outputs may answer.
        metrics: Count refusals and comparisons.
        differ: The share of all answers that may differ; None if the policy has no such budget.
        faults: A fault plan, which may set doubts, and bar stand-ins from answering.
        one_in: One in this many outputs that happen to be known is compared: it takes time.
        store: Keeps what is learned.

    """

    def __init__(
        self,
        code: Code | None,
        gate: OutputGate,
        metrics: Metrics,
        *,
        differ: float | None,
        faults: FaultPlan,
        one_in: int,
        store: EvidenceStore | None = None,
    ) -> None:
        self._code = code
        self.gate = gate
        self.on_gate_turned: Callable[[Source, bool], None] = lambda *_: None
        """Called when a gate has opened (True) or closed."""
        self._store = store
        self._metrics = metrics
        self._faults = faults
        self.differ = differ
        """The share of all answers that may differ; None without a budget."""
        self.judges = {
            source: StandInJudge.of(source, each, differ, store, partial(self._turned, source))
            for source, each in gate.gates.items()
        }
        """The judge of each stand-in's outputs."""
        self.answers = 0
        """All answers since the budget last changed, the model's among them."""
        self._planned = 0.0
        self._one_in, self._random = one_in, Random(0)
        for source, judge in self.judges.items():
            self._export(source, judge)

    def _export(self, source: Source, judge: StandInJudge) -> None:
        metrics = self._metrics
        metrics.audit_factor.labels(source).set_function(lambda: judge.factor)
        for counted in (metrics.audited_answers, metrics.audited_differed):
            counted.labels(source)
        if judge.gate.level is not None:
            metrics.gate_open.labels(source).set_function(lambda: judge.is_open)
            metrics.gate_agreement.labels(source).set(judge.gate.level)
            metrics.gate_coverage.labels(source).set_function(lambda: judge.coverage)
            for reason in ("gate", "closed"):
                metrics.refused_answers.labels(source, reason)

    def judge(
        self, source: Source, queries: Sequence[int], outputs: NDArray[Any]
    ) -> tuple[Sequence[int], dict[int, float]]:
        """Return the queries that their `outputs` (n, *output shape) may not answer, and the
        probability, by query, that each differs from the model's prediction."""
        impossible = self.gate.impossible(outputs)
        if impossible:
            self._metrics.impossible.inc(len(impossible))
        rows, judge, faults = {*impossible}, self.judges.get(source), self._faults
        doubts = [1.0] * len(queries)
        if judge is not None:
            verdict = judge.judge(outputs)
            doubts = verdict.doubts.tolist()
            unsure = np.flatnonzero(verdict.refused).tolist()
            if judge.gate.level is not None or not faults.has_doubts:
                rows.update(unsure)
            if judge.gate.level is not None:
                reason = "gate" if judge.is_open else "closed"
                self._metrics.refused_answers.labels(source, reason).inc(len(unsure))
        rows.update(at for at, each in enumerate(queries) if faults.refuses(_number(each), source))
        if faults.has_doubts:
            doubts = [faults.doubt(_number(each), source) for each in queries]
        return [queries[row] for row in sorted(rows)], dict(zip(queries, doubts, strict=True))

    # The budget

    def answered(self, source: Source, doubt: float) -> None:
        """Count an answer of a stand-in, which differs with the probability `doubt`."""
        self.answers += 1
        if source in self.judges and not self._faults.has_doubts:
            self.judges[source].answered(doubt)
        else:
            self._planned += doubt

    def change_budget(self, differ: float) -> None:
        """Audit another share of answers that may differ, and count answers anew."""
        self.differ, self.answers, self._planned = differ, 0, 0.0
        for judge in self.judges.values():
            judge.change(differ)

    def differing(self) -> tuple[float, float]:
        """Return the share of all answers that differ, estimated, and its upper bound (95 %): since
        the start, or the last change of the budget."""
        if not self.answers:
            return 0.0, 1.0
        parts = [judge.differing for judge in self.judges.values()] + [(self._planned,) * 2]
        estimate, most = (sum(each) / self.answers for each in zip(*parts, strict=True))
        return min(1.0, estimate), min(1.0, most)

    # Comparisons

    def compare(
        self,
        source: Source,
        stand_in: Made,
        prediction: Made,
        *parities: Made,
        late: bool = True,
        answered: bool = False,
    ) -> None:
        """Compare a stand-in's output with the model's prediction for the same query.

        `parities` are the outputs that a reconstruction was made from. See `StandInJudge.compare`.
        """
        judge = self.judges.get(source)
        if judge is None:
            return
        found = judge.compare(
            np.asarray(stand_in.output),
            prediction.output,
            {made.instance for made in (*(parities or (stand_in,)), prediction)},
            prediction.tenant,
            late=late,
            answered=answered,
        )
        if found is None:
            return
        given = "late" if late else "in time"
        self._metrics.compared_answers.labels(source, given).inc()
        if not found:
            self._metrics.disagreed_answers.labels(source, given).inc()
        if answered:
            self._metrics.audited_answers.labels(source).inc()
            self._metrics.audited_differed.labels(source).inc(not found)
        if self._store is not None:
            self._store.save(now=False)

    def group_over(self, predictions: Outputs, parities: Outputs) -> None:
        """Compare a group that no query waits for any more, now and then."""
        if any(parities) and self._random.random() * self._one_in < 1:
            self._compare_group(predictions, parities, late=True)

    def compare_unit(
        self,
        row: int | None,
        run: Run,
        outputs: NDArray[Any],
        predictions: Mapping[int, Outputs],
        *,
        late: bool,
    ) -> None:
        """Compare a unit that was kept running only for this: a backup's or, with a `row` of the
        code, a parity model's. `predictions` are by subject: a query, or a group."""
        for subject, output in zip(run.subjects, outputs, strict=True):
            made, known = Made(output, run.instance), predictions[subject]
            if row is not None:
                parities = range(0 if self._code is None else self._code.r)
                group = [made if j == row else None for j in parities]
                self._compare_group(known, group, late=late)
            elif known[0] is not None:
                self.compare(source_of(run.role), made, known[0], late=late)

    def _compare_group(self, predictions: Outputs, parities: Outputs, *, late: bool) -> None:
        """Reconstruct one prediction, drawn at random, from the other outputs, and compare the two.

        Reconstructions from the same parity outputs are not independent of each other.
        """
        assert self._code is not None
        if not predictions:  # the group is over
            return
        parity_outputs = [made.output if made else None for made in parities]
        have = tuple(made is not None for made in parities)
        slot = self._random.randrange(len(predictions))
        prediction = predictions[slot]
        others = [made.output if made else None for made in predictions]
        others[slot] = None
        available = tuple(other is not None for other in others)
        if prediction is None or not self._code.decodable(available, have)[slot]:
            return
        with np.errstate(all="ignore"):
            reconstruction = Made(self._code.decode(others, parity_outputs)[slot], "")
            makers = filter(None, parities)
            self.compare(Source.RECONSTRUCTION, reconstruction, prediction, *makers, late=late)

    def _turned(self, source: Source, turn: Turn) -> None:
        judge = self.judges[source]
        self.on_gate_turned(source, judge.asks)
        self._metrics.gate_turns.labels(source, "open" if turn.opened else "back").inc()

    def close(self) -> None:
        """Write what is learned, and close its files."""
        if self._store is not None:
            self._store.close()

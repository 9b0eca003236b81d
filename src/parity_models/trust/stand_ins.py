"""The outputs of stand-ins in service: which may answer, with what doubt, and how many differ.

Outputs are compared with predictions if both are known. A gate closes if they agree too seldom. A
disagreement may also be the error of an instance that answers wrongly, which is not held against
the stand-in.

A random sample of the stand-ins' answers is audited: the model runs on, and its prediction is
compared. The audit corrects the doubts of later outputs (trust/doubt.py).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge

from parity_models.codes import Code
from parity_models.roles import Source, source_of
from parity_models.scheduling.actions import Run
from parity_models.simulation.emulation import FaultPlan
from parity_models.trust.agreement import AgreementWatch
from parity_models.trust.doubt import Audit
from parity_models.trust.gate import served
from parity_models.trust.gates import OutputGate


class Made(NamedTuple):
    """An output (*shape), the instance that made it, and the tenant of the query."""

    output: NDArray[Any]
    instance: str
    tenant: str | None = None


CLOSED_GATES = "closed-gates.json"

Outputs = Sequence[Made | None]
"""None for an output that is missing."""

_log = logging.getLogger(__name__)


def _number(query: int) -> int:
    """Return a query's number in a fault plan, which counts from 0; ids begin with 1."""
    return query - 1


class ClosedGates:
    """The `sources` whose gates are closed, kept in the `folder` of a bundle for the next server.

    Those kept for another `digest` of the bundle, as before a new calibration, are ignored.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self._path, self._bundle = folder / CLOSED_GATES, digest
        self.sources: set[Source] = set()
        with suppress(OSError, ValueError):
            found = msgspec.json.decode(self._path.read_bytes(), type=_Closed)
            self.sources = set(found.sources) if found.bundle == self._bundle else set()

    def turned(self, source: Source, is_open: bool) -> None:
        """Record that a gate has opened or closed; warn if that cannot be written."""
        (self.sources.discard if is_open else self.sources.add)(source)
        content = msgspec.json.encode(_Closed(self._bundle, sorted(self.sources)))
        unfinished = self._path.with_suffix(".part")
        try:
            unfinished.write_bytes(content)
            unfinished.replace(self._path)
        except OSError as error:
            _log.warning("closed gates cannot be stored: %s: %s", self._path, error.strerror)


class _Closed(msgspec.Struct):
    bundle: str
    sources: list[Source]


class Metrics(Protocol):
    """The server's metrics that count refusals and comparisons."""

    audit_factor: Gauge
    audited_answers: Counter
    audited_differed: Counter
    compared_answers: Counter
    disagreed_answers: Counter
    gate_agreement: Gauge
    gate_open: Gauge
    impossible: Counter
    refused_answers: Counter


class StandIns:
    """Judges the outputs of stand-ins, and compares them with predictions.

    Args:
        code: Reconstructs, if the policy uses a code.
        gate: Decides which outputs may answer, and knows their doubts.
        metrics: Count refusals and comparisons.
        differ: The share of all answers that may differ; None if the policy has no such budget.
        faults: A fault plan, which may set doubts, and bar stand-ins from answering.
        gate_turned: Called when a gate has opened (True) or closed.
        one_in: One in this many groups is compared (it takes time); all, while the gate is closed.
        closed: The closed gates, which are kept up to date.

    """

    def __init__(
        self,
        code: Code | None,
        gate: OutputGate,
        metrics: Metrics,
        *,
        differ: float | None,
        faults: FaultPlan,
        gate_turned: Callable[[Source, bool], None],
        one_in: int,
        closed: ClosedGates | None = None,
    ) -> None:
        self._code = code
        self._gate = gate
        self._closed = closed
        shut = () if closed is None else closed.sources
        self._watch = AgreementWatch(gate.chosen, shut, gate.calibrations)
        self._metrics = metrics
        self._faults = faults
        self.differ = differ
        """The share of all answers that may differ; None without a budget."""
        curves = {} if faults.has_doubts else gate.curves
        self.audits = {
            source: Audit(curve, 1.0 if differ is None else differ)
            for source, curve in curves.items()
        }
        """The audit of each calibrated stand-in, unless the fault plan sets doubts."""
        self._answers = 0
        self._spent = dict.fromkeys(Source, 0.0)
        """The sum of the doubts of each stand-in's answers, without the audit's factor."""
        self._gate_turned = gate_turned
        self._one_in = one_in
        self._with_parity = 0
        for source, audit in self.audits.items():
            metrics.audit_factor.labels(source).set(audit.factor)
            for counted in (metrics.audited_answers, metrics.audited_differed):
                counted.labels(source)
        for source, each in gate.chosen.items():
            metrics.gate_open.labels(source).set(self._watch.is_open(source))
            metrics.gate_agreement.labels(source).set(each.level.level)
            for reason in ("gate", "closed"):
                metrics.refused_answers.labels(source, reason)

    def refused(
        self, source: Source, queries: Sequence[int], outputs: NDArray[Any]
    ) -> Sequence[int]:
        """Return the queries that their `outputs` (n, *output shape) may not answer."""
        impossible, unsure = self._gate.refused(source, outputs)
        if impossible:
            self._metrics.impossible.inc(len(impossible))
        rows = {*impossible, *unsure}
        if source in self._gate.chosen:
            self._metrics.refused_answers.labels(source, "gate").inc(len(unsure))
            if not self._watch.is_open(source):
                shut = len(outputs) - len(unsure)
                self._metrics.refused_answers.labels(source, "closed").inc(shut)
                rows.update(range(len(outputs)))
        bars = self._faults.refuses
        rows.update(row for row, query in enumerate(queries) if bars(_number(query), source))
        return [queries[row] for row in sorted(rows)]

    def doubts(
        self, source: Source, queries: Sequence[int], outputs: NDArray[Any]
    ) -> dict[int, float]:
        """Return the probability that each of the `outputs` (n, *output shape) differs from the
        model's prediction, by query."""
        if self._faults.has_doubts:
            return {each: self._faults.doubt(_number(each), source) for each in queries}
        audit = self.audits.get(source)
        factor = 1.0 if audit is None else audit.factor
        found = self._gate.doubts(source, outputs).tolist()
        return {
            query: min(1.0, factor * doubt) for query, doubt in zip(queries, found, strict=True)
        }

    # The budget

    def answered(self, source: Source, doubt: float) -> None:
        """Count an answer, to a query that differs with the probability `doubt`."""
        self._answers += 1
        if doubt:
            audit = self.audits.get(source)
            self._spent[source] += doubt if audit is None else doubt / audit.factor

    def audit(self, source: Source, stand_in: Made, prediction: Made) -> None:
        """Compare a stand-in's answer, drawn at random, with the model's prediction."""
        audit = self.audits.get(source)
        differs = not self._watch.agree(source, served(stand_in.output), prediction.output)
        self._metrics.audited_answers.labels(source).inc()
        if differs:
            self._metrics.audited_differed.labels(source).inc()
        if audit is None:
            return
        output = np.asarray(stand_in.output)[np.newaxis]
        audit.saw(float(self._gate.doubts(source, output)[0]), differs)
        self._metrics.audit_factor.labels(source).set(audit.factor)

    def change_budget(self, differ: float) -> None:
        """Audit another share of answers that may differ, and count answers anew."""
        self.differ = differ
        self._answers = 0
        self._spent = dict.fromkeys(Source, 0.0)
        for source, audit in self.audits.items():
            audit.change(differ)
            self._metrics.audit_factor.labels(source).set(audit.factor)

    def differing(self) -> tuple[float, float]:
        """Return the share of all answers that differ, estimated, and its upper bound (95 %): since
        the start, or the last change of the budget."""
        estimate = most = 0.0
        for source, spent in self._spent.items():
            if not spent:
                continue
            share = bound = spent / self._answers
            if source in self.audits:
                share, bound = self.audits[source].share(spent, self._answers)
            estimate, most = estimate + share, most + bound
        return min(1.0, estimate), min(1.0, most)

    # Comparisons

    def watches(self, source: Source) -> bool:
        """Return whether all outputs of a stand-in that has a prediction are compared with it. With
        a budget and without a gate, the audit is enough."""
        return self.differ is None or source in self._gate.chosen

    def group_over(self, predictions: Outputs, parities: Outputs) -> None:
        """Compare a group that no query waits for any more, if it is one of `one_in`."""
        if any(parities) and self.watches(Source.RECONSTRUCTION):
            self._with_parity += 1
            is_due = self._with_parity % self._one_in == 0
            if is_due or not self._watch.is_open(Source.RECONSTRUCTION):
                self._compare_group(predictions, parities)

    def compare_unit(
        self,
        row: int | None,
        run: Run,
        outputs: NDArray[Any],
        predictions: Mapping[int, Outputs],
    ) -> None:
        """Compare a unit that was kept running only for this: a backup's or, with a `row` of the
        code, a parity model's. `predictions` are by subject: a query, or a group."""
        for subject, output in zip(run.subjects, outputs, strict=True):
            made, known = Made(output, run.instance), predictions[subject]
            if row is not None:
                parities = range(0 if self._code is None else self._code.r)
                self._compare_group(known, [made if j == row else None for j in parities])
            elif known[0] is not None:
                self.compare(source_of(run.role), made, known[0])

    def _compare_group(self, predictions: Outputs, parities: Outputs) -> None:
        """Reconstruct each prediction from the other outputs, and compare the two."""
        assert self._code is not None
        parity_outputs = [made.output if made else None for made in parities]
        have = tuple(made is not None for made in parities)
        for slot, prediction in enumerate(predictions):
            if prediction is None:
                continue
            others = [made.output if made else None for made in predictions]
            others[slot] = None
            available = tuple(other is not None for other in others)
            if not self._code.decodable(available, have)[slot]:
                continue
            with np.errstate(all="ignore"):
                reconstruction = Made(self._code.decode(others, parity_outputs)[slot], "")
                self.compare(
                    Source.RECONSTRUCTION, reconstruction, prediction, *filter(None, parities)
                )

    def compare(self, source: Source, stand_in: Made, prediction: Made, *parities: Made) -> None:
        """Compare a stand-in's output, if it is sure enough to answer, with the model's prediction
        for the same query. `parities` are the outputs that a reconstruction was made from."""
        if self._gate.refused(source, np.asarray(stand_in.output)[np.newaxis]).unsure:
            return
        makers = {made.instance for made in (*(parities or (stand_in,)), prediction)}
        agreed = self._watch.agree(source, served(stand_in.output), prediction.output)
        self._metrics.compared_answers.labels(source).inc()
        if not agreed:
            self._metrics.disagreed_answers.labels(source).inc()
        if self._watch.saw(source, agreed, makers, prediction.tenant):
            self._turned(source, is_open=self._watch.is_open(source))

    def _turned(self, source: Source, *, is_open: bool) -> None:
        self._metrics.gate_open.labels(source).set(is_open)
        self._gate_turned(source, is_open)
        if self._closed is not None:
            self._closed.turned(source, is_open)
        level = self._gate.chosen[source].level.level
        if is_open:
            _log.warning("the %s agrees in %g of cases again, and answers again", source, level)
        else:
            _log.warning(
                "the %s agrees in less than %g of cases, and does not answer until it recovers; "
                "have the queries changed since it was trained and calibrated?",
                source,
                level,
            )

"""The outputs of a server's stand-ins: which may answer, and how often they agree with the model.

Outputs are compared with predictions if both are known. A disagreement may also be the error of an
instance that answers wrongly, which is not held against the stand-in.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.models.bundle import Bundle
from parity_models.models.gate import served
from parity_models.roles import Source, source_of
from parity_models.scheduling.actions import Run
from parity_models.serving.metrics import Metrics
from parity_models.trust.agreement import AgreementWatch
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


class ClosedGates:
    """The `sources` whose gates are closed, kept in the bundle's folder for the next server.

    Those kept for an earlier content of the bundle, as before a new calibration, are ignored.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._path, self._bundle = bundle.path / CLOSED_GATES, bundle.digest
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


class StandIns:
    """Judges the outputs of stand-ins, and compares them with predictions.

    Args:
        code: Reconstructs, if the policy uses a code.
        gate: Decides which outputs may answer.
        metrics: Count refusals and comparisons.
        refuses: Returns whether a fault plan bars a source from answering a query, by id.
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
        refuses: Callable[[int, Source], bool],
        gate_turned: Callable[[Source, bool], None],
        one_in: int,
        closed: ClosedGates | None = None,
    ) -> None:
        self._code = code
        self._gate = gate
        self._closed = closed
        self._watch = AgreementWatch(gate.chosen, () if closed is None else closed.sources)
        self.bounds = {source: each.level.level for source, each in gate.chosen.items()}
        """The agreement that answers report, of each gated stand-in."""
        self._metrics = metrics
        self._refuses = refuses
        self._gate_turned = gate_turned
        self._one_in = one_in
        self._with_parity = 0
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
        rows.update(row for row, query in enumerate(queries) if self._refuses(query, source))
        return [queries[row] for row in sorted(rows)]

    # Comparisons

    def group_over(self, predictions: Outputs, parities: Outputs) -> None:
        """Compare a group that no query waits for any more, if it is one of `one_in`."""
        if any(parities):
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
        if (bound := self._watch.bound(source)) is not None:
            self.bounds[source] = bound

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

"""A bundle's backup in this process, with its gate and the doubts of its outputs."""

import logging
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from parity_models.bundle.bundle import Bundle
from parity_models.bundle.onnx_model import why_it_fails
from parity_models.errors import UserError
from parity_models.roles import BACKUP, Source
from parity_models.tensors.queries import as_batch
from parity_models.tensors.signature import Batch, padded
from parity_models.trust.evidence import EvidenceStore
from parity_models.trust.gate import DEFAULT, RequestedLevel, served
from parity_models.trust.gates import OutputGate, choose_gates, closed, doubtful
from parity_models.trust.judge import StandInJudge

Array = NDArray[Any]

_log = logging.getLogger(__name__)


class Refusal(StrEnum):
    """The reason why the backup may not answer."""

    UNLIKE = "unlike"
    """The inputs are unlike those that the backup learned from."""
    UNSURE = "unsure"
    """Confidence is below the gate's threshold."""
    CLOSED = "closed"
    """The gate is closed, as the backup no longer agrees with the model."""
    FAILED = "failed"
    """The backup could not run."""


class Judged(NamedTuple):
    """An answer, and the probability that the deployed model's differs from it."""

    made: Array
    """The backup's outputs (n, *output shape), with its head's if it has one."""
    doubts: NDArray[np.float64]
    """(n,): the doubt of each output."""
    doubt: float
    """The probability that any output differs."""
    refusal: Refusal | None = None
    """The reason why the outputs may not answer, only be compared; None if they may."""

    @property
    def outputs(self) -> Array:
        """(n, *output shape)."""
        return served(self.made)


class GatedBackup:
    """The backup of `bundle`, with its gate and its doubts, which learn from comparisons.

    Args:
        bundle: Has a backup.
        agreement: The level of its gate; see `choose_gates`.
        budgeted: Answers have a budget of differences.
        evidence: Where what it learns is kept; None: nowhere.

    Raises:
        UserError: The bundle has no backup.

    """

    def __init__(
        self,
        bundle: Bundle,
        agreement: RequestedLevel = DEFAULT,
        *,
        budgeted: bool = False,
        evidence: EvidenceStore | None = None,
    ) -> None:
        manifest = bundle.manifest
        if manifest.backup is None:
            raise UserError(
                f"{bundle.path} has no backup; make one with `parm backup --model {bundle.path} "
                "--out BUNDLE`, or a bundle with one with `parm protect`"
            )
        output = manifest.imitated_output
        assert output is not None, "a bundle with a backup imitates an output of fixed shape"
        self.output = output
        """The output of the deployed model that the backup imitates."""
        self.signature = manifest.deployed.signature
        """The deployed model's."""
        self.other_outputs = {each.name for each in self.signature.outputs} - {output.name}
        """The names of the deployed model's other outputs."""
        self.labels: Sequence[str] = manifest.labels
        """The labels of the classes, if the bundle has them."""
        self._bundle, self._store = bundle, evidence
        self._gates = choose_gates(bundle.gates, [BACKUP], agreement, budgeted=budgeted)
        self.gate = self._gates[Source.BACKUP]
        """Its gate."""
        self._screen = OutputGate(envelope=bundle.envelope())
        self._differ: float | None = None
        self._new_judge()
        self._model = bundle.pinned(manifest.backup).load()
        zeros = self.signature.smallest.input.zeros(1)
        # The first run is slower than later ones.
        self._model(self._model.signature.smallest.input.split(zeros))

    def _new_judge(self) -> None:
        self._judge = StandInJudge.of(Source.BACKUP, self.gate, self._differ, self._store)

    @property
    def notes(self) -> list[str]:
        """Surprises for a user: a closed gate, or too little evidence for the budget."""
        notes = [*closed(self._gates)]
        if self._differ is not None and self.gate.level is None:
            notes += doubtful(self._gates, self._bundle.path, self._differ)
        return notes

    def change(self, differ: float) -> None:
        """Set the budget, a share of all answers, for which doubts are audited."""
        self._differ = differ
        self._judge.change(differ)

    def refresh(self) -> None:
        """Read again what others have learned."""
        if self._store is not None:
            self._store.read()
            self._new_judge()

    def after_fork(self) -> None:
        """Keep what a forked process learns apart from what its parent learns."""
        if self._store is not None:
            self._store = self._store.reopened()
            self._new_judge()

    def close(self) -> None:
        """Keep what it has learned."""
        if self._store is not None:
            self._store.close()

    def read(self, inputs: ArrayLike | Batch) -> Array:
        """Return queries as rows in memory (see Layout). Raises DataError if they do not fit."""
        batch = as_batch(inputs, self.signature)
        sizes = {
            axis: batch[tensor.name].shape[at + 1]
            for tensor in self.signature.inputs
            for axis, at in tensor.axes.items()
        }
        return padded(batch, self.signature, [sizes[axis] for axis in self.signature.axes])

    def answer(self, rows: Array, run: onnxruntime.RunOptions) -> Judged | Refusal:
        """Return the outputs for all queries of `rows` (see `read`), or the reason why there are
        none.

        Another thread may end it by setting `run.terminate`.
        """
        if not self._judge.asks:
            return Refusal.CLOSED
        outputs = self.run(rows, run)
        if isinstance(outputs, Refusal):
            return outputs
        verdict = self._judge.judge(outputs)
        doubt = float(1 - np.prod(1 - verdict.doubts))
        refusal = None if self._judge.is_open else Refusal.CLOSED
        if refusal is None and (len(self._screen.impossible(outputs)) or verdict.refused.any()):
            refusal = Refusal.UNSURE
        return Judged(outputs, verdict.doubts, doubt, refusal)

    def run(self, rows: Array, run: onnxruntime.RunOptions) -> Array | Refusal:
        """Return the backup's outputs for `rows`, or the reason why there are none."""
        if len(self._screen.unlike(rows)):
            return Refusal.UNLIKE
        kind = self._model.signature.kind(self.signature.kind_of(rows[0, ...]).sizes)
        try:
            named = self._model(kind.input.split(rows), run)
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            if not run.terminate:
                _log.warning("the backup failed: %s", why_it_fails(error))
            return Refusal.FAILED
        return kind.output.join(named)

    def compare(
        self, made: Array, predictions: Array, *, late: bool, answered: bool = False
    ) -> bool | None:
        """Compare its outputs with the model's predictions for the same queries.

        `late` outputs are for queries that were late; others are for queries in time, drawn at
        random. Return whether all agree; None if none could be compared.
        """
        found = [
            self._judge.compare(output, prediction, late=late, answered=answered)
            for output, prediction in zip(made, predictions, strict=True)
        ]
        if self._store is not None:
            self._store.save(now=False)
        compared = [each for each in found if each is not None]
        return all(compared) if compared else None

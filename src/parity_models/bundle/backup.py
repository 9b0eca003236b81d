"""A bundle's backup in this process, with its gate and the doubts of its outputs."""

import logging
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from parity_models.bundle.bundle import Bundle
from parity_models.bundle.onnx_model import why_it_fails
from parity_models.errors import UserError
from parity_models.roles import BACKUP, Source
from parity_models.tasks.metrics import Agreement
from parity_models.tensors.queries import as_batch
from parity_models.tensors.signature import Batch, padded
from parity_models.trust.agreement import AgreementWatch
from parity_models.trust.doubt import Audit
from parity_models.trust.gate import served
from parity_models.trust.gates import OutputGate, calibrations_of, choose_gates, ungated

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

    outputs: Array
    """(n, *output shape)."""
    doubts: NDArray[np.float64]
    """(n,): the doubt of each output as calibrated, so that `compare` measures it."""
    doubt: float
    """The probability that any output differs, as far as comparisons have shown."""


class GatedBackup:
    """The backup of `bundle`, with its gate and its doubts.

    Args:
        bundle: Has a backup.
        agreement: The level of its gate; 0 for none. None for the highest calibrated level up to
            99 %.
        budgeted: Answers have a budget of differences. Then None is for no gate, except for a
            backup that may answer some classes only.

    Raises:
        UserError: The bundle has no backup, or one that is not calibrated for the agreement.

    """

    def __init__(
        self, bundle: Bundle, agreement: float | None = None, *, budgeted: bool = False
    ) -> None:
        manifest = bundle.manifest
        if manifest.backup is None:
            raise UserError(
                f"{bundle.path} has no backup; make one with `parm backup --model {bundle.path} "
                "--out BUNDLE`, or a bundle with one with `parm protect`"
            )
        calibration = manifest.calibration.get(Source.BACKUP.value)
        for note in () if budgeted else ungated(bundle, [BACKUP], agreement):
            raise UserError(f"{note}; agreement=0 asks for no gate")
        output = manifest.imitated_output
        assert output is not None, "a bundle with a backup imitates an output of fixed shape"
        self.output = output
        """The output of the deployed model that the backup imitates."""
        self.signature = manifest.deployed.signature
        """The deployed model's."""
        self.other_outputs = {each.name for each in self.signature.outputs} - {output.name}
        """The names of the deployed model's other outputs."""
        gates = choose_gates(bundle, [BACKUP], agreement, budgeted=budgeted)
        self.gate = gates.get(Source.BACKUP)
        """The gate, if it has one."""
        self._gate = OutputGate(gates, bundle.envelope(), calibrations_of(bundle, [BACKUP]))
        self._watch = AgreementWatch(gates)
        self._agrees = Agreement(
            calibration.kind if calibration else "classes",
            calibration.tolerance if calibration else 0.0,
        )
        curve = self._gate.curves.get(Source.BACKUP)
        self._audit = None if curve is None else Audit(curve, 0.0)
        """None without a calibration: then every doubt is 1."""
        self._path = bundle.path
        self._model = bundle.pinned(manifest.backup).load()
        zeros = self.signature.smallest.input.zeros(1)
        # The first run is slower than later ones.
        self._model(self._model.signature.smallest.input.split(zeros))

    def change(self, differ: float) -> None:
        """Set the budget, a share of all answers, for which doubts are audited.

        Raises UserError if the backup is not calibrated, and could answer some queries only.
        """
        if self._audit is not None:
            self._audit.change(differ)
        elif 0 < differ < 1:
            raise UserError(
                f"the backup of {self._path} is not calibrated, so each of its outputs may differ, "
                "and it may answer only with differ=1; calibrate it with held-out queries: "
                f"parm calibrate {self._path} --inputs FILE"
            )

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
        """Return the outputs for all queries of `rows` (see `read`), or the reason why they may not
        answer.

        Another thread may end it by setting `run.terminate`.
        """
        if len(self._gate.unlike(rows)):
            return Refusal.UNLIKE
        if not self._watch.is_open(Source.BACKUP):
            return Refusal.CLOSED
        kind = self._model.signature.kind(self.signature.kind_of(rows[0, ...]).sizes)
        try:
            named = self._model(kind.input.split(rows.view(kind.input.dtype)), run)
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            if not run.terminate:
                _log.warning("the backup failed: %s", why_it_fails(error))
            return Refusal.FAILED
        outputs = kind.output.join(named)
        if any(self._gate.refused(Source.BACKUP, outputs)):
            return Refusal.UNSURE
        doubts = self._gate.doubts(Source.BACKUP, outputs)
        factor = 1.0 if self._audit is None else self._audit.factor
        doubt = min(1.0, factor * float(1 - np.prod(1 - doubts)))
        return Judged(served(outputs), doubts, doubt)

    def compare(self, answer: Judged, predictions: Array) -> bool:
        """Compare an answer with the model's predictions. Return whether all rows agree."""
        agreed = self._agrees(answer.outputs, predictions).tolist()
        for doubt, each in zip(answer.doubts.tolist(), agreed, strict=True):
            self._watch.saw(Source.BACKUP, each, ("model",), None)
            if self._audit is not None:
                self._audit.saw(doubt, differed=not each)
        return all(agreed)

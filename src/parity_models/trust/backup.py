"""A bundle's backup in this process, which answers as far as its gate allows."""

import logging
from enum import StrEnum
from typing import Any

import onnxruntime
from numpy.typing import ArrayLike, NDArray

from parity_models.errors import UserError
from parity_models.models.bundle import Bundle
from parity_models.models.gate import served
from parity_models.models.onnx_model import why_it_fails
from parity_models.models.queries import as_batch
from parity_models.models.signature import Batch, padded
from parity_models.roles import BACKUP, Source
from parity_models.trust.agreement import AgreementWatch
from parity_models.trust.gates import OutputGate, choose_gates, ungated

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


class GatedBackup:
    """The backup of `bundle`, with its gate.

    Args:
        bundle: Has a backup.
        agreement: The level of its gate; 0 for none. None for the highest calibrated level up to
            99 %.

    Raises:
        UserError: The bundle has no backup, or one that is not calibrated for the agreement.

    """

    def __init__(self, bundle: Bundle, agreement: float | None = None) -> None:
        manifest = bundle.manifest
        if manifest.backup is None:
            raise UserError(
                f"{bundle.path} has no backup; make one with `parm backup --model {bundle.path} "
                "--out BUNDLE`, or a bundle with one with `parm protect`"
            )
        for note in ungated(bundle, [BACKUP], agreement):
            raise UserError(f"{note}; agreement=0 asks for no gate")
        output = manifest.imitated_output
        assert output is not None, "a bundle with a backup imitates an output of fixed shape"
        self.output = output
        """The output of the deployed model that the backup imitates."""
        self.signature = manifest.deployed.signature
        """The deployed model's."""
        self.other_outputs = {each.name for each in self.signature.outputs} - {output.name}
        """The names of the deployed model's other outputs."""
        gates = choose_gates(bundle, [BACKUP], agreement)
        self.gate = gates.get(Source.BACKUP)
        """The gate, if it has one."""
        self._gate = OutputGate(gates, bundle.envelope())
        self._watch = AgreementWatch(gates)
        self._model = bundle.pinned(manifest.backup).load()
        zeros = self.signature.smallest.input.zeros(1)
        # The first run is slower than later ones.
        self._model(self._model.signature.smallest.input.split(zeros))

    @property
    def agreement(self) -> float:
        """The agreement to state in its answers (see AgreementTest); 0 without a gate."""
        return self._watch.bound(Source.BACKUP) or 0.0

    def read(self, inputs: ArrayLike | Batch) -> Array:
        """Return queries as rows in memory (see Layout). Raises DataError if they do not fit."""
        batch = as_batch(inputs, self.signature)
        sizes = {
            axis: batch[tensor.name].shape[at + 1]
            for tensor in self.signature.inputs
            for axis, at in tensor.axes.items()
        }
        return padded(batch, self.signature, [sizes[axis] for axis in self.signature.axes])

    def answer(self, rows: Array, run: onnxruntime.RunOptions) -> Array | Refusal:
        """Return the outputs (n, *output shape) for all queries of `rows` (see `read`), or the
        reason why they may not answer.

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
        refused = any(self._gate.refused(Source.BACKUP, outputs))
        return Refusal.UNSURE if refused else served(outputs)

    def compare(self, outputs: Array, predictions: Array) -> bool:
        """Compare an answer with the model's predictions. Return whether all rows agree."""
        agreed = [
            self._watch.agree(Source.BACKUP, output, prediction)
            for output, prediction in zip(outputs, predictions, strict=True)
        ]
        for each in agreed:
            self._watch.saw(Source.BACKUP, each, ("model",), None)
        return all(agreed)

"""A bundle's backups in this process: they answer where their gates let them."""

import logging
from enum import StrEnum
from typing import Any, NamedTuple

import onnxruntime
from numpy.typing import ArrayLike, NDArray

from parity_models.errors import UserError
from parity_models.models.bundle import Bundle
from parity_models.models.gate import served
from parity_models.models.onnx_model import why_it_fails
from parity_models.models.queries import as_batch
from parity_models.models.signature import Batch, padded
from parity_models.roles import BACKUPS, Source
from parity_models.trust.agreement import AgreementWatch
from parity_models.trust.gates import OutputGate, choose_gates, ungated

Array = NDArray[Any]

_log = logging.getLogger(__name__)


class Refusal(StrEnum):
    """The reason why no backup may answer."""

    UNLIKE = "unlike"
    """The inputs are unlike those that the backups learned from."""
    UNSURE = "unsure"
    """Confidence is below the gate's threshold."""
    CLOSED = "closed"
    """The gate is closed, as the backup no longer agrees with the model."""
    FAILED = "failed"
    """The backup could not run."""


class BackupAnswer(NamedTuple):
    """`outputs` (n, *output shape) of the backup `source`."""

    outputs: Array
    source: Source


class GatedBackups:
    """The backups of `bundle`, of which the fastest whose gate lets it answers.

    Args:
        bundle: Has at least one backup.
        agreement: The level of its gates; 0 for none. None for the highest calibrated level up to
            99 %.

    Raises:
        UserError: It has no backup, or one that is not calibrated for the agreement.

    """

    def __init__(self, bundle: Bundle, agreement: float | None = None) -> None:
        manifest = bundle.manifest
        if not manifest.backups:
            raise UserError(
                f"{bundle.path} has no backup; make one with `parm backup --from {bundle.path} "
                "--out BUNDLE`, or a bundle with one with `parm protect`"
            )
        roles = BACKUPS[: len(manifest.backups)]
        for note in ungated(bundle, roles, agreement):
            raise UserError(f"{note}; agreement=0 asks for no gate")
        output = manifest.imitated_output
        assert output is not None, "a bundle with a backup imitates an output of fixed shape"
        self.output = output
        """The output of the deployed model that they give."""
        self.signature = manifest.deployed.signature
        """The deployed model's."""
        self.other_outputs = {each.name for each in self.signature.outputs} - {output.name}
        """The names of its outputs that they do not give."""
        self.gates = choose_gates(bundle, roles, agreement)
        """The gates of those that have one, by the source of their answers."""
        self._gate = OutputGate(self.gates, bundle.envelope())
        self.watch = AgreementWatch(self.gates)
        """Closes the gate of a backup that no longer agrees with the model."""
        self._models = {
            Source(role): bundle.pinned(file).load()
            for role, file in zip(roles, manifest.backups, strict=True)
        }
        smallest = self.signature.smallest.input
        for model in self._models.values():  # the first run is slower than later ones
            model(model.signature.smallest.input.split(smallest.zeros(1)))

    def read(self, inputs: ArrayLike | Batch) -> Array:
        """Return queries as rows in memory (see Layout). Raises DataError for wrong ones."""
        batch = as_batch(inputs, self.signature)
        sizes = {
            axis: batch[tensor.name].shape[at + 1]
            for tensor in self.signature.inputs
            for axis, at in tensor.axes.items()
        }
        return padded(batch, self.signature, [sizes[axis] for axis in self.signature.axes])

    def answer(self, rows: Array, run: onnxruntime.RunOptions) -> BackupAnswer | Refusal:
        """Return the answer to all queries of `rows` (see `read`), or why there is none.

        Another thread may end it by setting `run.terminate`.
        """
        if len(self._gate.unlike(rows)):
            return Refusal.UNLIKE
        sizes = self.signature.kind_of(rows[0, ...]).sizes
        why = Refusal.CLOSED
        for source, model in self._models.items():
            if not self.watch.is_open(source):
                continue
            kind = model.signature.kind(sizes)
            try:
                named = model(kind.input.split(rows.view(kind.input.dtype)), run)
            except Exception as error:  # ONNX Runtime's errors share no base class but this
                if not run.terminate:
                    _log.warning("the %s failed: %s", source, why_it_fails(error))
                return Refusal.FAILED
            outputs = kind.output.join(named)
            if not any(self._gate.refused(source, outputs)):
                return BackupAnswer(served(outputs), source)
            why = Refusal.UNSURE
        return why

    def compare(self, answer: BackupAnswer, predictions: Array) -> bool:
        """Compare an answer with the model's predictions. Return whether all rows agree."""
        agreed = [
            self.watch.agree(answer.source, output, prediction)
            for output, prediction in zip(answer.outputs, predictions, strict=True)
        ]
        for each in agreed:
            self.watch.saw(answer.source, each, ("model",), None)
        return all(agreed)

"""What is put into a bundle that is to be written: its files, each described for the manifest."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from parity_models.errors import BundleError, ModelError
from parity_models.models.bundle_files import MANIFEST, read_file
from parity_models.models.bundle_fit import check_batches
from parity_models.models.envelope import ENVELOPE
from parity_models.models.manifest import (
    BackupFile,
    EnvelopeFile,
    ModelFile,
    ParityFile,
    StoredFile,
)
from parity_models.models.named_envelope import AnyEnvelope, encode_any
from parity_models.models.onnx_model import MAX_MODEL_BYTES, OnnxModel
from parity_models.models.signature import Signature


@dataclass(frozen=True)
class NewModel:
    """A model to be put into a bundle: its ONNX file or the file's content, and its network.

    `slotwise` is said of parity models that run on each slot by itself, `slot` of a backup that is
    such a slot. Where the file does not say all of the model's `signature`, it is given.
    """

    onnx: Path | bytes
    network: str
    slotwise: bool = False
    slot: bool = False
    signature: Signature | None = None


class Contents:
    """The `files` of a bundle that is to be written, by name, each once.

    What cannot be put into a bundle is a BundleError.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def add(self, file: str, content: bytes | Path) -> StoredFile:
        if file in self.files or file == MANIFEST:
            raise BundleError(f"a bundle cannot hold two files called {file}")
        content = content if isinstance(content, bytes) else read_file(content, MAX_MODEL_BYTES)
        self.files[file] = content
        return StoredFile(file, hashlib.sha256(content).hexdigest(), len(content))

    def add_model(self, file: str, model: NewModel) -> ModelFile:
        stored = self.add(file, model.onnx)
        try:
            runnable = OnnxModel(self.files[file], signature=model.signature)
            check_batches(runnable)
        except ModelError as error:
            raise BundleError(f"the model for {file} cannot be used: {error}") from error
        return ModelFile(stored.file, stored.sha256, stored.size, runnable.signature, model.network)

    def add_parity(self, file: str, model: NewModel) -> ParityFile:
        fields = msgspec.structs.asdict(self.add_model(file, model))
        return ParityFile(**fields, slotwise=model.slotwise)

    def add_backup(self, file: str, model: NewModel) -> BackupFile:
        """A backup, checked and described."""
        fields = msgspec.structs.asdict(self.add_model(file, model))
        return BackupFile(**fields, slot=model.slot)

    def add_envelope(self, envelope: AnyEnvelope) -> EnvelopeFile:
        stored = self.add(ENVELOPE, encode_any(envelope))
        return EnvelopeFile(
            stored.file, stored.sha256, stored.size, envelope.false_alarms, envelope.held_out
        )

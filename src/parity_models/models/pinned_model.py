"""A model file of known content: its path and the hash that the content must have."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from parity_models.errors import ModelError
from parity_models.models.onnx_model import OnnxModel, read_model
from parity_models.models.signature import Signature

CHUNK = 2**20
"""Bytes that are copied at a time."""


@dataclass(frozen=True)
class PinnedModel:
    """An ONNX file that is only used while its content has this `sha256` (hexadecimal).

    `signature` is the model's; None: as the file says itself.
    """

    path: Path
    sha256: str
    signature: Signature | None = None

    @classmethod
    def of(cls, path: Path) -> Self:
        """The file as it is now. Raises ModelError if it cannot be read."""
        return cls(path, hashlib.sha256(read_model(path)).hexdigest())

    def read(self) -> bytes:
        """The content. Raises ModelError if it cannot be read or is another by now."""
        content = read_model(self.path)
        check_sha256(self.path, self.sha256, hashlib.sha256(content).hexdigest())
        return content

    def load(self) -> OnnxModel:
        """The model. Raises ModelError if it cannot be read or is another by now."""
        return OnnxModel(self.read(), signature=self.signature)

    def copy_to(self, file: IO[bytes]) -> None:
        """Write the content, piece by piece, into an open file. Raises ModelError as `read` does,
        and OSError where `file` cannot be written."""
        digest = hashlib.sha256()
        try:
            source = self.path.open("rb")
        except OSError as error:
            raise ModelError(f"cannot read {self.path}: {error.strerror}") from error
        with source:
            while piece := source.read(CHUNK):
                digest.update(piece)
                file.write(piece)
        file.flush()
        check_sha256(self.path, self.sha256, digest.hexdigest())


def check_sha256(name: object, expected: str, found: str) -> None:
    """Raises ModelError, which calls the content `name`, if two hashes differ."""
    if found != expected:
        raise ModelError(
            f"{name} was changed since it was checked: its sha256 is {found}, not {expected}; "
            "start the server anew to serve what is there now"
        )

"""Private copies of models, which workers inherit.

A copy is a file without a name: whatever becomes of the bundle's folder, or of the folder of
temporary files, workers that are started later load what was checked at the start.
"""

import asyncio
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

from parity_models.errors import ParityModelsError, ServingError
from parity_models.models.pinned_model import PinnedModel
from parity_models.serving.worker.wire import AssignedModel


class ModelCopies:
    """Copies of `models`, by role, among the temporary files, until `close`.

    Raises ModelError for a model that is not what it was when it was checked, and ServingError if
    it cannot be copied.
    """

    def __init__(self, models: Mapping[str, PinnedModel]) -> None:
        self._files: list[IO[bytes]] = []
        self.assigned: dict[str, AssignedModel] = {}
        """What a worker needs to load each of them, by role."""
        copied: dict[str, int] = {}
        try:
            for role, model in models.items():
                if model.sha256 not in copied:
                    copied[model.sha256] = self._copy(model)
                name = f"{role} ({model.path})"
                self.assigned[role] = AssignedModel(
                    copied[model.sha256], model.sha256, name, model.signature
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _copy(self, model: PinnedModel) -> int:
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
            self._files.append(file)
            model.copy_to(file)
        except OSError as error:
            raise ServingError(
                f"cannot keep a copy of {model.path} among temporary files: "
                f"{error.strerror}; set TMPDIR to a folder with room for it"
            ) from error
        return file.fileno()


async def copied(models: Mapping[str, PinnedModel]) -> ModelCopies:
    """The models' copies, made aside of the event loop."""
    copying = asyncio.ensure_future(asyncio.to_thread(ModelCopies, models))
    try:
        return await asyncio.shield(copying)
    except asyncio.CancelledError:
        with suppress(ParityModelsError):
            (await copying).close()
        raise

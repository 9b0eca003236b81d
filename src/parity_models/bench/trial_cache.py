"""Results of trials on disk, by content: what has been run is not run again."""

from pathlib import Path

import msgspec

from parity_models.bench.trial import Trial, TrialResult
from parity_models.errors import UserError


class TrialCache:
    """A folder of results, one small JSON file a trial. A damaged one counts as missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error

    def get(self, trial: Trial) -> TrialResult | None:
        try:
            return msgspec.json.decode(self._file(trial).read_bytes(), type=TrialResult)
        except (OSError, ValueError):
            return None

    def __getitem__(self, trial: Trial) -> TrialResult:
        """What has been run; KeyError if it has not."""
        result = self.get(trial)
        if result is None:
            raise KeyError(trial.key)
        return result

    def put(self, trial: Trial, result: TrialResult) -> None:
        file = self._file(trial)
        unfinished = file.with_suffix(".part")
        unfinished.write_bytes(msgspec.json.encode(result))
        unfinished.replace(file)

    def _file(self, trial: Trial) -> Path:
        return self._folder / f"{trial.key}.json"

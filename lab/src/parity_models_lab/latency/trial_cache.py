"""Results of trials on disk, by content: what has been run is not run again."""

from pathlib import Path

from parity_models.simulation.trial import Trial, TrialResult
from parity_models_lab.result_cache import ResultCache


class TrialCache:
    """A folder of results, one small JSON file a trial."""

    def __init__(self, folder: Path) -> None:
        self._results = ResultCache(folder)

    def get(self, trial: Trial) -> TrialResult | None:
        return self._results.get(trial.key, TrialResult)

    def __getitem__(self, trial: Trial) -> TrialResult:
        """What has been run; KeyError if it has not."""
        result = self.get(trial)
        if result is None:
            raise KeyError(trial.key)
        return result

    def put(self, trial: Trial, result: TrialResult) -> None:
        self._results.put(trial.key, result)

"""Running a matrix: trainings and measurements in turn, and none that has been run before."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from parity_models_lab.accuracy.approaches import Approach
from parity_models_lab.accuracy.matrix import BackupCell, Budget, FreeCell, Matrix
from parity_models_lab.accuracy.measured_model import MeasuredModel
from parity_models_lab.accuracy.results import CodeResult, DeployedResult, ModelResults
from parity_models_lab.results import ResultCache

Result = TypeVar("Result")


class MatrixRun:
    """Runs the cells of a matrix; the folder `work` keeps results, bundles and made data.

    `seed` fixes weights, the order of data and groups. `tell` is told what is begun.
    """

    def __init__(self, matrix: Matrix, work: Path, seed: int, tell: Callable[[str], None]) -> None:
        self._matrix = matrix
        self._cache = ResultCache(work / "results")
        self._work = work
        self._seed = seed
        self._tell = tell
        self._cells = sum(
            1 + len(cell.codes) + len(cell.backups) + len(cell.free) for cell in matrix.deployed
        )
        self._done = 0

    def results(self) -> Iterator[ModelResults]:
        """After every measurement, all that there is of its deployed model: the last one has all.

        Raises, before anything is trained, DataError if data are missing or cannot be made and
        CodeError for a code that cannot be for them; and KeyboardInterrupt when a training is
        interrupted: what is done stays on disk, and the next run goes on from there.
        """
        for cell in self._matrix.deployed:
            model = MeasuredModel(cell, self._work, self._seed)
            model.prepare()
            model.check()
        for cell in self._matrix.deployed:
            model = MeasuredModel(cell, self._work, self._seed)
            deployed = self._measure(DeployedResult, cell, model.key, model.deploy, model.holds)
            default = self._cache.get(model.key_of("default"), Approach) or model.default()
            self._cache.put(model.key_of("default"), default)
            so_far = ModelResults(cell, deployed, (), (default,))
            yield so_far
            for code in cell.codes:
                result = self._measure_of(model, CodeResult, code, partial(model.code, code))
                so_far = msgspec.structs.replace(so_far, codes=(*so_far.codes, result))
                yield so_far
            baselines: list[tuple[BackupCell | FreeCell, Callable[[], Approach]]] = [
                *((backup, partial(model.backup, backup)) for backup in cell.backups),
                *((free, partial(model.free, free)) for free in cell.free),
            ]
            for baseline, measure in baselines:
                approach = self._measure_of(model, Approach, baseline, measure)
                approaches = (*so_far.approaches, approach)
                so_far = msgspec.structs.replace(so_far, approaches=approaches)
                yield so_far

    def _measure_of(
        self,
        model: MeasuredModel,
        kind: type[Result],
        cell: Budget | FreeCell,
        measure: Callable[[], Result],
    ) -> Result:
        return self._measure(kind, f"{model}: {cell}", model.key_of(cell), measure)

    def _measure(
        self,
        kind: type[Result],
        what: object,
        key: str,
        measure: Callable[[], Result],
        holds: Callable[[Result], bool] = lambda _: True,
    ) -> Result:
        """The result that was kept, if it still `holds`, or else what `measure` gives."""
        result = self._cache.get(key, kind)
        self._done += 1
        if result is not None and holds(result):
            return result
        self._tell(f"[{self._done}/{self._cells}] {what}")
        result = measure()
        self._cache.put(key, result)
        return result

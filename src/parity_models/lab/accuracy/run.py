"""Running a matrix: trainings and measurements in turn, and none that has been run before."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from time import monotonic
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from parity_models.codes import Code
from parity_models.errors import BundleError, TrainingError
from parity_models.evaluation import evaluate
from parity_models.evaluation.approaches import (
    Approach,
    evaluate_default,
    evaluate_training_free,
    fit_nested_regression,
    plain_approach,
)
from parity_models.evaluation.coding_times import coding_times
from parity_models.evaluation.compare import relative_time
from parity_models.evaluation.predictor import predictor
from parity_models.lab.accuracy.matrix import (
    BackupCell,
    Budget,
    CodeCell,
    DeployedCell,
    FreeCell,
    Matrix,
)
from parity_models.lab.accuracy.results import (
    CodeResult,
    DeployedResult,
    ModelResults,
    digest,
    key_of,
)
from parity_models.lab.accuracy.time_left import TimeLeft
from parity_models.lab.result_cache import ResultCache
from parity_models.models.bundle import Bundle, open_bundle, with_accuracy
from parity_models.tasks import Dataset, choose_task
from parity_models.tasks.metrics import score
from parity_models.tasks.synthetic import make_boxes, make_speech
from parity_models.training import (
    Outcome,
    Report,
    Settings,
    progress_bar,
    train_backup,
    train_deployed,
    train_parity,
)

Result = TypeVar("Result")
Array = NDArray[np.float32]

MAKERS: dict[str, Callable[..., int]] = {"boxes": make_boxes, "speech": make_speech}


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
        self._left = TimeLeft(matrix.deployed)

    def results(self) -> Iterator[ModelResults]:
        """After every measurement, all that there is of its deployed model: the last one has all.

        Raises, before anything is trained, DataError if data are missing or cannot be made and
        CodeError for a code that cannot be for them; and KeyboardInterrupt when a training is
        interrupted: what is done stays on disk, and the next run goes on from there.
        """
        for cell in self._matrix.deployed:
            model = _Model(cell, self._work, self._seed)
            model.prepare()
            model.check()
        for cell in self._matrix.deployed:
            model = _Model(cell, self._work, self._seed)
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
        model: "_Model",
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
        if result is not None and holds(result):
            self._left.done()
            return result
        minutes = self._left.seconds() / 60
        self._tell(f"[{self._left.place}, about {minutes:.0f} min left] {what}")
        began = monotonic()
        result = measure()
        self._cache.put(key, result)
        self._left.done(monotonic() - began)
        return result


class _Model:
    """A deployed model and its data, with what can be measured for it."""

    def __init__(self, cell: DeployedCell, work: Path, seed: int) -> None:
        self._cell = cell
        self._work = work
        self._seed = seed
        self._task = choose_task(cell.task)

    def __str__(self) -> str:
        return str(self._cell)

    @cached_property
    def key(self) -> str:
        """Names the deployed model by its data and how it is trained."""
        cell = self._cell
        own = (cell.task, cell.network, cell.recipe, cell.seconds, cell.epochs)
        return key_of(own, self._seed, digest(self._data))

    def key_of(self, what: object) -> str:
        """Names a result for this model, as it came out of its training, of a cell or by a word."""
        return key_of(self.key, self._bundle.manifest.deployed.sha256, type(what).__name__, what)

    def holds(self, deployed: DeployedResult) -> bool:
        """Is the model that was measured still here?"""
        try:
            found = open_bundle(self._folder(self.key))
        except BundleError:
            return False
        return found.manifest.deployed.sha256 == deployed.sha256

    def _folder(self, key: str) -> Path:
        return self._work / "bundles" / key

    def prepare(self) -> None:
        """Make the data, if they are to be made and are not there."""
        folder = self._made
        if folder is not None and not folder.exists():
            with tqdm(desc=f"making {folder.name}", unit="") as bar:

                def progress(made: int, total: int) -> None:
                    bar.total = total
                    bar.update(made - bar.n)

                MAKERS[folder.name](folder, progress=progress)

    def check(self) -> None:
        """Raise DataError for data that are not there, CodeError for a code they cannot have."""
        shapes = self._data.input_shape, self._data.output_shape
        for cell in self._cell.codes:
            Code(cell.spec, *shapes)

    @property
    def _made(self) -> Path | None:
        """The folder of data that are made on this machine."""
        return None if self._cell.made is None else self._work / "data" / self._cell.made

    @cached_property
    def _data(self) -> Dataset:
        return self._task.load(self._made)

    @cached_property
    def _bundle(self) -> Bundle:
        """That of the deployed model, once it is there."""
        return open_bundle(self._folder(self.key))

    @cached_property
    def _run(self) -> Callable[[Array], Array]:
        return predictor(self._bundle.deployed_path)

    @cached_property
    def _predictions(self) -> Array:
        """Those for the test set."""
        return self._run(self._data.test.inputs)

    @property
    def _available(self) -> float:
        return score(self._task.metric, self._predictions, self._data.test.labels)

    def deploy(self) -> DeployedResult:
        """Train the deployed model and measure it."""
        outcome = self._train(
            self.key,
            self._cell,
            "deployed model",
            lambda out, settings: train_deployed(
                self._task,
                self._data,
                self._cell.network,
                out,
                settings,
                recipe=self._cell.recipe,
            ),
        )
        return DeployedResult(
            outcome.bundle.manifest.deployed.sha256,
            self._task.metric,
            self._available,
            len(self._data.test),
            outcome.fitted.epochs,
            outcome.fitted.seconds,
            date.today().isoformat(),
        )

    def code(self, cell: CodeCell) -> CodeResult:
        """Train a code's parity models and measure them."""
        outcome = self._train(
            self.key_of(cell),
            cell,
            str(cell),
            lambda out, settings: train_parity(
                self._bundle,
                cell.spec,
                self._data.train.inputs,
                out,
                settings,
                network=cell.network,
                validation=self._data.validation,
                metric=self._task.metric,
                mirrored=self._task.flips,
                recipe=cell.recipe,
            ),
        )
        test = self._data.test
        accuracy = evaluate(
            outcome.bundle, test.inputs, test.labels, metric=self._task.metric, seed=self._seed
        )
        bundle = with_accuracy(outcome.bundle, accuracy)
        code = bundle.code()
        assert code is not None
        return CodeResult(
            cell,
            accuracy,
            relative_time(bundle, "parity"),
            *coding_times(code, test.inputs),
            outcome.fitted.epochs,
            outcome.fitted.seconds,
            date.today().isoformat(),
        )

    def backup(self, cell: BackupCell) -> Approach:
        """Train an approximate backup and measure it."""
        outcome = self._train(
            self.key_of(cell),
            cell,
            str(cell),
            lambda out, settings: train_backup(
                self._bundle,
                cell.network,
                self._data.train.inputs,
                out,
                settings,
                validation=self._data.validation,
                metric=self._task.metric,
                mirrored=self._task.flips,
            ),
        )
        path = outcome.bundle.backup_path
        assert path is not None
        predictions = predictor(path)(self._data.test.inputs)
        return plain_approach(
            str(cell),
            relative_time(outcome.bundle, "backup"),
            self._available,
            score(self._task.metric, predictions, self._data.test.labels),
        )

    def free(self, cell: FreeCell) -> Approach:
        """Measure a code that needs no training."""
        metric, validation, test = self._task.metric, self._data.validation, self._data.test
        code = cell.build()
        if cell.code == "nested-regression":
            code = fit_nested_regression(
                self._run, cell.k, cell.r, validation.inputs, validation.labels, metric=metric
            )
        approach = evaluate_training_free(
            self._run, code, test.inputs, test.labels, metric=metric, seed=self._seed
        )
        return replace(approach, name=str(cell))

    def default(self) -> Approach:
        """Clipper's default prediction: the mean of those for the validation set."""
        return evaluate_default(
            self._predictions,
            self._data.test.labels,
            self._run(self._data.validation.inputs),
            self._task.metric,
        )

    def _train(
        self,
        key: str,
        budget: Budget,
        what: str,
        train: Callable[[Path, Settings], Outcome],
    ) -> Outcome:
        """Train into the bundle of this key, going on from where a run was cut off."""
        out = self._folder(key)
        shutil.rmtree(out, ignore_errors=True)  # a bundle without its result, perhaps damaged
        out.parent.mkdir(parents=True, exist_ok=True)

        def settings(report: Report, *, resume: bool) -> Settings:
            return Settings(budget.epochs, budget.seconds, self._seed, resume=resume, report=report)

        cut_off = out.with_name(f"{out.name}.checkpoint").exists()
        with progress_bar(what, self._task.metric) as bar:
            try:
                outcome = train(out, settings(bar, resume=cut_off))
            except TrainingError:
                if not cut_off:
                    raise
                # The checkpoint is of another version's training.
                outcome = train(out, settings(bar, resume=False))
        if outcome.fitted.interrupted:
            raise KeyboardInterrupt
        return outcome

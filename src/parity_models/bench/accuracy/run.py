"""Running a matrix: trainings and measurements in turn, and none that has been run before."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from parity_models.bench.accuracy.matrix import (
    BackupCell,
    Budget,
    CodeCell,
    DeployedCell,
    FreeCell,
    Matrix,
)
from parity_models.bench.accuracy.results import (
    CodeResult,
    DeployedResult,
    ModelResults,
    key_of,
)
from parity_models.bench.result_cache import ResultCache
from parity_models.errors import TrainingError
from parity_models.evaluation import evaluate
from parity_models.evaluation.approaches import (
    Approach,
    evaluate_default,
    evaluate_training_free,
    fit_nested_regression,
    plain_approach,
)
from parity_models.models.bundle import Bundle, open_bundle, with_accuracy
from parity_models.models.onnx_model import OnnxModel
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

VERSION = 1
"""Part of every key: raised when what a cell measures changes."""

USUAL, BESIDES = 90.0, 10.0
"""Seconds that a training lasts, roughly, if its cell does not say, and that measuring takes."""

TIMED = 200
"""Groups that are encoded and decoded one by one for the cost of it."""

BATCH = 256


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
        cells: list[Budget | FreeCell] = []
        for model in matrix.deployed:
            cells += [model, *model.codes, *model.backups, *model.free]
        self._left = [_expected(cell) for cell in cells]
        self._cells = len(self._left)

    def results(self) -> Iterator[ModelResults]:
        """Those of one deployed model after the other.

        Raises KeyboardInterrupt when a training is interrupted: what is done stays on disk, and
        the next run goes on from there.
        """
        for cell in self._matrix.deployed:
            model = _Model(cell, self._work, self._seed)
            deployed = self._measure(DeployedResult, cell, model.key, model.deploy)
            codes = tuple(
                self._measure(
                    CodeResult, code, model.key_of(code), partial(model.code, code), str(cell)
                )
                for code in cell.codes
            )
            baselines: list[tuple[BackupCell | FreeCell, Callable[[], Approach]]] = [
                *((backup, partial(model.backup, backup)) for backup in cell.backups),
                *((free, partial(model.free, free)) for free in cell.free),
            ]
            approaches = tuple(
                self._measure(Approach, baseline, model.key_of(baseline), measure, str(cell))
                for baseline, measure in baselines
            )
            default = self._cache.get(model.key_of("default"), Approach) or model.default()
            self._cache.put(model.key_of("default"), default)
            yield ModelResults(cell, deployed, codes, (default, *approaches))

    def _measure(
        self,
        kind: type[Result],
        cell: Budget | FreeCell,
        key: str,
        measure: Callable[[], Result],
        of: str = "",
    ) -> Result:
        result = self._cache.get(key, kind)
        if result is None:
            minutes = sum(self._left) / 60
            place = f"{self._cells - len(self._left) + 1}/{self._cells}"
            self._tell(f"[{place}, about {minutes:.0f} min left] {of}{': ' if of else ''}{cell}")
            result = measure()
            self._cache.put(key, result)
        self._left.pop(0)
        return result


def _expected(cell: Budget | FreeCell) -> float:
    if isinstance(cell, FreeCell):
        return BESIDES
    return (cell.seconds or USUAL) + BESIDES


class _Model:
    """A deployed model and its data, with what can be measured for it."""

    def __init__(self, cell: DeployedCell, work: Path, seed: int) -> None:
        self._cell = cell
        self._work = work
        self._seed = seed
        self._task = choose_task(cell.task)
        own = (cell.task, cell.network, cell.made, cell.seconds, cell.epochs)
        self.key = key_of(VERSION, seed, own)

    def key_of(self, what: object) -> str:
        """Names a result for this model, of a cell or by a word."""
        return key_of(self.key, type(what).__name__, what)

    @cached_property
    def _data(self) -> Dataset:
        folder = None
        if self._cell.made is not None:
            folder = self._work / "data" / self._cell.made
            if not folder.exists():
                with tqdm(desc=f"making {self._cell.made}", unit="") as bar:

                    def progress(made: int, total: int) -> None:
                        bar.total = total
                        bar.update(made - bar.n)

                    make = make_boxes if self._cell.made == "boxes" else make_speech
                    make(folder, progress=progress)
        return self._task.load(folder)

    @cached_property
    def _bundle(self) -> Bundle:
        return open_bundle(self._work / "bundles" / self.key)

    @cached_property
    def _run(self) -> Callable[[Array], Array]:
        return _batched(self._bundle.deployed_path)

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
                self._task, self._data, self._cell.network, out, settings
            ),
        )
        return DeployedResult(
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
        encode_us, decode_us = self._coding_times(bundle)
        return CodeResult(
            cell,
            accuracy,
            _relative_time(bundle, "parity"),
            encode_us,
            decode_us,
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
        predictions = _batched(path)(self._data.test.inputs)
        return plain_approach(
            str(cell),
            _relative_time(outcome.bundle, "backup"),
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
        out = self._work / "bundles" / key
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

    def _coding_times(self, bundle: Bundle) -> tuple[float, float]:
        """Median microseconds to encode a group and to decode one unavailable prediction."""
        code = bundle.code()
        assert code is not None
        inputs = self._data.test.inputs
        rows = np.resize(np.arange(len(inputs)), (TIMED, code.k))
        output = np.ones(code.parity_output_shape, np.float32)[None]
        encode, decode = [], []
        for group in rows:
            queries = [inputs[row : row + 1] for row in group]
            here: list[Array | None] = [None, *(self._predictions[r : r + 1] for r in group[1:])]
            began = perf_counter()
            code.encode(queries)
            encoded = perf_counter()
            code.decode(here, [output] * code.r)
            decode.append(perf_counter() - encoded)
            encode.append(encoded - began)
        return 1e6 * median(encode), 1e6 * median(decode)


def _batched(path: Path) -> Callable[[Array], Array]:
    """The model at `path`, run over so many rows at a time as fit into the memory."""
    model = OnnxModel(path, threads=os.cpu_count() or 1)
    return lambda rows: np.concatenate(
        [model(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
    )


def _relative_time(bundle: Bundle, role: str) -> float:
    times = bundle.manifest.inference_times
    assert times is not None
    mine: float = getattr(times, role)
    return mine / times.deployed

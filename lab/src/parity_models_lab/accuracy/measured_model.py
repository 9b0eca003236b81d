"""A deployed model and its data: what can be trained and measured for it, one cell at a time."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import parity_models_lab.networks  # noqa: F401  # registers the lab's networks
from parity_models.codes import Code, CodeSpec
from parity_models.errors import BundleError, TrainingError
from parity_models.evaluation.accuracy import measure_accuracy
from parity_models.evaluation.outputs import Outputs, predictor
from parity_models.models.bundle import Bundle, open_bundle, with_accuracy
from parity_models.tasks import Dataset, choose_task
from parity_models.tasks.metrics import score
from parity_models.training import Callbacks, Trained, TrainingOptions, progress_bars, train
from parity_models_lab.accuracy.approaches import (
    Approach,
    coding_times,
    evaluate_default,
    evaluate_training_free,
    fit_nested_regression,
    plain_approach,
    relative_time,
)
from parity_models_lab.accuracy.matrix import BackupCell, Budget, CodeCell, DeployedCell, FreeCell
from parity_models_lab.accuracy.results import CodeResult, DeployedResult, digest, key_of
from parity_models_lab.deployed import queries_of, train_deployed
from parity_models_lab.tasks import make_boxes, make_speech

Floats = NDArray[np.float32]

MAKERS: dict[str, Callable[..., int]] = {"boxes": make_boxes, "speech": make_speech}


class MeasuredModel:
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
    def _run(self) -> Callable[[Floats], Floats]:
        return predictor(self._bundle.deployed_path)

    @cached_property
    def _predictions(self) -> Floats:
        """Those for the test set."""
        return self._run(self._data.test.inputs)

    @property
    def _available(self) -> float:
        return score(self._task.metric, self._predictions, self._data.test.labels)

    def deploy(self) -> DeployedResult:
        """Train the deployed model and measure it."""
        trained = self._train(
            self.key,
            self._cell,
            lambda out, options, bars: train_deployed(
                self._task,
                self._data,
                self._cell.network,
                out,
                options,
                recipe=self._cell.recipe,
                callbacks=bars,
            ),
        )
        return DeployedResult(
            trained.manifest.deployed.sha256,
            self._task.metric,
            self._available,
            len(self._data.test),
            trained.fitted.epochs,
            trained.fitted.seconds,
            date.today().isoformat(),
        )

    def code(self, cell: CodeCell) -> CodeResult:
        """Train a code's parity models and measure them."""
        bundle = self._train_stand_in(cell, cell.network, cell.spec, cell.recipe)
        test = self._data.test
        outputs = Outputs(bundle, test.inputs, seed=self._seed)
        accuracy = measure_accuracy(outputs, test.labels, metric=self._task.metric)
        fitted = bundle.fitted
        code = with_accuracy(bundle, accuracy).code()
        assert code is not None
        return CodeResult(
            cell,
            accuracy,
            relative_time(bundle, "parity"),
            *coding_times(code, test.inputs),
            fitted.epochs,
            fitted.seconds,
            date.today().isoformat(),
        )

    def backup(self, cell: BackupCell) -> Approach:
        """Train an approximate backup and measure it."""
        bundle = self._train_stand_in(cell, cell.network, None)
        (path,) = bundle.backup_paths
        predictions = predictor(path)(self._data.test.inputs)
        return plain_approach(
            str(cell),
            relative_time(bundle, "backup"),
            self._available,
            score(self._task.metric, predictions, self._data.test.labels),
        )

    def free(self, cell: FreeCell) -> Approach:
        """Measure a code that needs no training."""
        metric, validation, test = self._task.metric, self._data.validation, self._data.test
        code = cell.build()
        if cell.code == "nercc":
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

    def _train_stand_in(
        self,
        cell: CodeCell | BackupCell,
        network: str | None,
        code: CodeSpec | None,
        recipe: str = "distilled",
    ) -> Trained:
        """Train what the cell asks for, on the task's queries."""
        queries = queries_of(self._task, self._data)
        return self._train(
            self.key_of(cell),
            cell,
            lambda out, options, bars: train(
                self._bundle, queries, out, network, code, options, recipe, callbacks=bars
            ),
        )

    def _train(
        self,
        key: str,
        budget: Budget,
        train: Callable[[Path, TrainingOptions, Callbacks], Trained],
    ) -> Trained:
        """Train into the bundle of this key, going on from where a run was cut off."""
        out = self._folder(key)
        shutil.rmtree(out, ignore_errors=True)  # a bundle without its result, perhaps damaged
        out.parent.mkdir(parents=True, exist_ok=True)
        cut_off = out.with_name(f"{out.name}.checkpoint").exists()
        options = TrainingOptions(
            epochs=budget.epochs, seconds=budget.seconds, seed=self._seed, resume=cut_off
        )
        with progress_bars() as bars:
            try:
                trained = train(out, options, bars)
            except TrainingError:
                if not cut_off:
                    raise
                # The checkpoint is of another version's training.
                trained = train(out, replace(options, resume=False), bars)
        if trained.fitted.interrupted:
            raise KeyboardInterrupt
        return trained

"""Trains and measures the cells of an accuracy matrix; results and bundles are kept on disk."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import cached_property, partial
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code, CodeSpec
from parity_models.evaluation.accuracy import FRACTIONS, measure_accuracy
from parity_models.evaluation.outputs import Outputs, deployed_predictor, predictor
from parity_models.models.bundle import Bundle, open_bundle, with_measured
from parity_models.roles import Backup
from parity_models.tasks.metrics import score
from parity_models.training import Trained, TrainingOptions, progress_bars, train
from parity_models.training.networks import parity_network
from parity_models_lab.accuracy.matrix import (
    BackupCell,
    Budget,
    CodeCell,
    DeployedCell,
    FreeCell,
    Matrix,
)
from parity_models_lab.accuracy.training_free import BerrutCode
from parity_models_lab.deployed import queries_of, train_deployed
from parity_models_lab.published import published_network
from parity_models_lab.results import ResultCache, print_rows, write_result
from parity_models_lab.tasks import Dataset, find_task, load_dataset

Floats = NDArray[np.float32]
Measured = dict[str, Any]

TIMED = 200
"""Groups that are encoded and decoded; times are medians, in microseconds."""
VERSION = 5
"""Part of every key: raised when what a cell measures changes."""


def run_matrix(
    matrix: Matrix, out: Path, work: Path, seed: int, tell: Callable[[str], None]
) -> None:
    """Measure the cells of a matrix, print them, and write TASK-NETWORK.json for each model.

    There is a row for everything that could answer an unavailable prediction, the cheapest first.
    `overhead` is work beyond one run of the model for each query. A_a is the accuracy with all
    predictions available, A_d that of answers in place of unavailable ones, with every member of
    every group of the test set unavailable in turn, A_o that of all answers with a share of
    predictions unavailable. Encoding and decoding take µs for a group, training seconds.

    Args:
        matrix: The cells.
        out: The folder for results.
        work: The folder for measurements and bundles; a later run on the same data goes on there.
        seed: Fixes weights, the order of data, and groups.
        tell: Progress callback.

    Raises:
        DataError: Data are missing. Nothing has been trained then.
        CodeError: A code does not fit the data. Nothing has been trained then.
        KeyboardInterrupt: A training was interrupted. What was measured is written.

    """
    cache = ResultCache(work / "results")
    cells = sum(1 + len(one.codes) + len(one.backups) + len(one.free) for one in matrix.deployed)
    done = 0

    def measured(what: str, key: str, measure: Callable[[], Measured]) -> Measured:
        nonlocal done
        done += 1
        result = cache.get(key, dict)
        if result is None:
            tell(f"[{done}/{cells}] {what}")
            result = measure()
            cache.put(key, result)
        return result

    models = [_MeasuredModel(cell, work, seed) for cell in matrix.deployed]
    for model in models:
        model.prepare()
    for model in models:
        cell, name = model.cell, str(model.cell)
        deployed = measured(name, model.key, model.deploy)
        available = float(deployed["A_a"])
        rows = [plain_row("replication", 1.0, available, available), model.default()]
        further: list[tuple[CodeCell | BackupCell | FreeCell, Callable[[], Measured]]] = [
            *((code, partial(model.code, code)) for code in cell.codes),
            *((backup, partial(model.backup, backup)) for backup in cell.backups),
            *((free, partial(model.free, free)) for free in cell.free),
        ]
        try:
            for one, measure in further:
                rows.append(measured(f"{name}: {one}", model.key_of(one), measure))
        finally:
            rows.sort(key=itemgetter("overhead"))
            write_result(out / f"{cell.file}.json", name, rows, **deployed)
            print_rows(name, rows)


def plain_row(name: str, overhead: float, available: float, degraded: float) -> Measured:
    """Return the row of what answers each query apart, with accuracy `degraded`."""
    overall = {str(f): (1 - f) * available + f * degraded for f in FRACTIONS}
    return _row(name, overhead, (degraded,), overall, None, None)


def _row(
    name: str,
    overhead: float,
    degraded: Sequence[float],
    overall: Mapping[str, float],
    encode: float | None,
    decode: float | None,
) -> Measured:
    row: Measured = {"approach": name, "overhead": overhead}
    for unavailable, share in enumerate(degraded, 1):
        row["A_d" if unavailable == 1 else f"{unavailable} unavailable"] = share
    row |= {f"A_o {float(f):.0%}": share for f, share in overall.items()}
    return row | {"encode": encode, "decode": decode}


class _MeasuredModel:
    """A deployed model and its data, and the measurements that can be made of it."""

    def __init__(self, cell: DeployedCell, work: Path, seed: int) -> None:
        self.cell = cell
        self._work = work
        self._seed = seed
        self._task = find_task(cell.task)

    @cached_property
    def key(self) -> str:
        """A name for the deployed model, by its training."""
        cell = self.cell
        own = (cell.task, cell.network, cell.recipe, cell.seconds, cell.epochs)
        return _key_of(own, self._seed)

    def key_of(self, what: object) -> str:
        """Return a name for a result of this trained model, by its cell or a word."""
        return _key_of(self.key, type(what).__name__, what)

    def prepare(self) -> None:
        """Load the data. Raises DataError without them, CodeError for codes that do not fit."""
        shapes = self._data.input_shape, self._data.output_shape
        for cell in self.cell.codes:
            Code(cell.spec, *shapes)

    def deploy(self) -> Measured:
        """Train the deployed model and measure it."""
        cell = self.cell
        begin = partial(train_deployed, self._task, self._data, cell.network, recipe=cell.recipe)
        trained = self._train(self.key, cell, begin)
        return {
            "metric": self._task.metric,
            "queries": len(self._data.test),
            "A_a": self._available,
            "trained": {"epochs": trained.fitted.epochs, "seconds": trained.fitted.seconds},
            "measured": date.today().isoformat(),
        }

    def code(self, cell: CodeCell) -> Measured:
        """Train a code's parity models and measure them."""
        bundle = self._train_stand_in(cell, cell.network, cell.spec, cell.recipe)
        test = self._data.test
        outputs = Outputs(bundle, test.inputs, seed=self._seed)
        accuracy = measure_accuracy(outputs, test.labels, metric=self._task.metric)
        code = with_measured(bundle, accuracy=accuracy).code()
        assert code is not None
        time = relative_time(bundle, "parity")
        row = _row(
            str(cell),
            cell.r / cell.k * time,
            accuracy.degraded_by_unavailable,
            accuracy.overall,
            *coding_times(code, test.inputs),
        )
        further = {"agreement": accuracy.agreement, "time": time}
        return row | further | {"training s": bundle.fitted.seconds}

    def backup(self, cell: BackupCell) -> Measured:
        """Train an approximate backup and measure it."""
        bundle = self._train_stand_in(cell, cell.network, None)
        predictions = predictor(bundle.pinned(bundle.manifest.backups[0]))(self._data.test.inputs)
        degraded = score(self._task.metric, predictions, self._data.test.labels)
        time = relative_time(bundle, "backup")
        return plain_row(str(cell), time, self._available, degraded)

    def free(self, cell: FreeCell) -> Measured:
        """Measure a code that needs no training."""
        code, test = BerrutCode(cell.k, cell.r), self._data.test
        run = deployed_predictor(self._bundle)
        _, degraded, overall = code.accuracies(
            run, test.inputs, test.labels, self._task.metric, self._seed
        )
        rows = [test.inputs[row : row + 1] for row in range(code.coded)]
        decode = [partial(code.decode, [None, *map(run, rows[1:])])] * TIMED
        encode = [partial(code.encode, rows[: code.k])] * TIMED
        times = _median_us(encode), _median_us(decode)
        return _row(str(cell), cell.r / cell.k, degraded, overall, *times)

    def default(self) -> Measured:
        """Measure one answer for every unavailable prediction: the mean of the validation set's.

        (Crankshaw et al., Clipper, NSDI 2017.)
        """
        run, test = deployed_predictor(self._bundle), self._data.test
        mean = run(self._data.validation.inputs).mean(axis=0)
        answers = np.broadcast_to(mean, (len(test), *mean.shape))
        degraded = score(self._task.metric, answers, test.labels)
        return plain_row("default prediction", 0.0, self._available, degraded)

    @cached_property
    def _data(self) -> Dataset:
        return load_dataset(self._task)

    @cached_property
    def _bundle(self) -> Bundle:
        """The deployed model's, once it has been trained."""
        return open_bundle(self._folder(self.key))

    @cached_property
    def _available(self) -> float:
        predictions = deployed_predictor(self._bundle)(self._data.test.inputs)
        return score(self._task.metric, predictions, self._data.test.labels)

    def _folder(self, key: str) -> Path:
        return self._work / "bundles" / key

    def _train_stand_in(
        self,
        cell: CodeCell | BackupCell,
        network: str | None,
        code: CodeSpec | None,
        recipe: str = "distilled",
    ) -> Trained:
        queries = queries_of(self._task, self._data)
        plan = published_network if recipe == "published" else parity_network
        begin = partial(train, self._bundle, queries, network=network, code=code, plan=plan)
        return self._train(self.key_of(cell), cell, begin)

    def _train(self, key: str, budget: Budget, begin: Callable[..., Trained]) -> Trained:
        """Train into the bundle of this key, going on from where a run was cut off."""
        out = self._folder(key)
        shutil.rmtree(out, ignore_errors=True)  # a bundle without its result, perhaps damaged
        out.parent.mkdir(parents=True, exist_ok=True)
        cut_off = out.with_name(f"{out.name}.checkpoint").exists()
        options = TrainingOptions(
            epochs=budget.epochs, seconds=budget.seconds, seed=self._seed, resume=cut_off
        )
        with progress_bars() as bars:
            trained = begin(out=out, options=options, callbacks=bars)
        if trained.fitted.interrupted:
            raise KeyboardInterrupt
        return trained


def coding_times(code: Code, inputs: Floats) -> tuple[float, float]:
    """Return the µs to encode k queries of `inputs` (n, *query_shape), and to decode one
    unavailable prediction of a group."""
    predictions = [None, *[np.ones((1, *code.output_shape), np.float32)] * (code.k - 1)]
    outputs = [np.ones((1, *code.parity_output_shape), np.float32)] * code.r
    decode = [partial(code.decode, predictions, outputs)] * TIMED
    name = next(iter(code.query_shapes))
    groups = np.resize(np.arange(len(inputs)), (TIMED, code.k))
    encode = (
        partial(code.encode, [{name: inputs[row : row + 1]} for row in group]) for group in groups
    )
    return _median_us(encode), _median_us(decode)


def relative_time(bundle: Bundle, role: Literal["parity", Backup]) -> float:
    """Return the inference time of the bundle's parity models or of a backup over the deployed
    model's; 1 where it was not measured."""
    times = bundle.manifest.inference_times
    if times is None:
        return 1.0
    taken = times.parity if role == "parity" else times.of_backups.get(role)
    return 1.0 if taken is None else taken / times.deployed


def _median_us(calls: Iterable[Callable[[], object]]) -> float:
    took = []
    for call in calls:
        began = perf_counter()
        call()
        took.append(perf_counter() - began)
    return 1e6 * median(took)


def _key_of(*what: object) -> str:
    """Return a name for a result by all that determines it, this package's version included."""
    described = msgspec.json.encode((VERSION, version("parity-models"), what), order="sorted")
    return hashlib.sha256(described).hexdigest()[:24]

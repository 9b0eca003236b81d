"""The command `accuracy`: train and measure the cells of a matrix, kept on disk.

A matrix says what is trained and compared; people can edit its file.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import cached_property, partial
from importlib import resources
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from rich.console import Console

from parity_models.codes import Code, CodeSpec
from parity_models.codes.code import check_spec
from parity_models.evaluation.accuracy import FRACTIONS, measure_accuracy, some_sets
from parity_models.evaluation.outputs import (
    BATCH,
    Outputs,
    deployed_predictor,
    draw_groups,
    predictor,
)
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.options import Option
from parity_models.tasks.metrics import score
from parity_models.training import Trained, TrainingOptions, progress_bars, train
from parity_models.training.networks import find_network, parity_network
from parity_models_lab.deployed import queries_of, train_deployed
from parity_models_lab.documents import load_toml, names_in
from parity_models_lab.published import check_published, published_network
from parity_models_lab.results import ResultCache, check_out, report
from parity_models_lab.tasks import Dataset, find_task, load_dataset

FILES = resources.files("parity_models_lab.accuracy") / "matrices"
PRESETS = names_in(FILES)


class Cell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A training and its length; by default that of its network's recipe."""

    seconds: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    epochs: Annotated[int, Meta(ge=1, le=100_000)] | None = None


class CodeCell(Cell, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A code to train parity models for, how, and with which network (by default F's)."""

    encoder: str
    decoder: str
    k: int = 2
    r: int = 1
    recipe: Literal["distilled", "published"] = "distilled"
    network: str | None = None

    @property
    def spec(self) -> CodeSpec:
        return CodeSpec(self.encoder, self.decoder, self.k, self.r)

    def __str__(self) -> str:
        recipe = "" if self.recipe == "distilled" else f", {self.recipe} recipe"
        network = "" if self.network is None else f", {self.network}"
        parities = f", r={self.r}" if self.r > 1 else ""
        return f"{self.encoder} + {self.decoder}{recipe}{network}, k={self.k}{parities}"


class BackupCell(Cell, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An approximate backup to train: its network."""

    network: str

    def __str__(self) -> str:
        return f"approximate backup, {self.network}"


class FreeCell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A code that needs no training."""

    code: Literal["berrut"]
    k: Annotated[int, Meta(ge=2, le=64)] = 2
    r: Annotated[int, Meta(ge=1, le=3)] = 1

    def __str__(self) -> str:
        return f"{self.code}, k={self.k}, r={self.r}"


class DeployedCell(Cell, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task and a network, and all that is compared for them.

    With the `recipe` "published" the deployed model, too, is trained as in the paper.
    """

    task: str
    network: str
    recipe: Literal["usual", "published"] = "usual"
    codes: tuple[CodeCell, ...] = ()
    backups: tuple[BackupCell, ...] = ()
    free: tuple[FreeCell, ...] = ()

    @property
    def compared(self) -> tuple[CodeCell | BackupCell | FreeCell, ...]:
        return (*self.codes, *self.backups, *self.free)

    def __str__(self) -> str:
        """Return the name of the model and of its results' file."""
        recipe = "" if self.recipe == "usual" else f"-{self.recipe}"
        task = self.task.rpartition(":")[2]
        return f"{task}-{self.network}{recipe}".replace(":", "-").replace("@", "-")


class Matrix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The deployed models that are compared."""

    title: str
    deployed: Annotated[tuple[DeployedCell, ...], Meta(min_length=1)]

    def checked(self) -> "Matrix":
        """Return it. Raises UserError for what cannot be, before anything is trained."""
        for cell in self.deployed:
            find_task(cell.task)
            networks = [cell.network, *(backup.network for backup in cell.backups)]
            for code in cell.codes:
                check_spec(code.spec)
                if code.recipe == "published":
                    check_published(code.spec)
                networks += [] if code.network is None else [code.network]
            for network in networks:
                find_network(network)  # refuses names that there are not
        return self


def load_matrix(name: str) -> Matrix:
    """Read a matrix: one that comes with the package, by name, or any file.

    Raises UserError if there is none or it is not a matrix.
    """
    return load_toml(name, FILES, Matrix, Matrix.checked, "matrix", "lab/notes/accuracy.md")


Measured = dict[str, Any]
Array = NDArray[Any]
Weights = NDArray[np.float64]

VERSION = 6
"""Part of every key: raised when what a cell measures changes."""


def accuracy(
    preset: Annotated[
        str, Option(f"The matrix: {', '.join(PRESETS)}, or a file of yours.", metavar="MATRIX")
    ] = "quick",
    out: Annotated[Path, Option("The folder to write results to.", metavar="DIR")] = Path(
        "lab/results/accuracy"
    ),
    work: Annotated[
        Path, Option("The folder for what was run and trained, used again.", metavar="DIR")
    ] = Path("runs/accuracy"),
    seed: Annotated[int, Option("Fixes weights, data and groups.", at_least=0)] = 0,
) -> None:
    """Train and compare codes and baselines over tasks and networks.

    Writes TASK-NETWORK.json for each model. An interrupted run goes on where it stopped. There is a
    row for everything that could answer an unavailable prediction, the cheapest first. `overhead`
    is work beyond one run of the model for each query. A_a is the accuracy with all predictions
    available, A_d that of answers in place of unavailable ones, with every member of every group of
    the test set unavailable in turn, A_o that of all answers with a share of predictions
    unavailable.
    """
    console = Console(stderr=True, highlight=False)
    matrix = load_matrix(preset)
    check_out(out)
    models = [_MeasuredModel(cell, work, seed, console) for cell in matrix.deployed]
    for model in models:
        model.check()
    for model in models:
        deployed, rows = model.measured("", model.deploy), model.baselines()
        try:
            for cell in model.cell.compared:
                rows.append(model.measured(cell, partial(model.measure, cell)))
        finally:
            rows.sort(key=itemgetter("overhead"))
            report(str(model.cell), rows, out / f"{model.cell}.json", **deployed)


def _row(
    name: str, overhead: float, degraded: Sequence[float], overall: Mapping[str, float]
) -> Measured:
    row: Measured = {"approach": name, "overhead": overhead}
    for unavailable, share in enumerate(degraded, 1):
        row["A_d" if unavailable == 1 else f"{unavailable} unavailable"] = share
    return row | {f"A_o {float(f):.0%}": share for f, share in overall.items()}


class _MeasuredModel:
    """A deployed model and its data, and the measurements that can be made of it."""

    def __init__(self, cell: DeployedCell, work: Path, seed: int, console: Console) -> None:
        self.cell = cell
        self._cache = ResultCache(work / "results")
        self._bundles = work / "bundles"
        self._seed = seed
        self._console = console
        self._task = find_task(cell.task)

    def check(self) -> None:
        """Load the data. Raises DataError without them, CodeError for codes that do not fit."""
        shapes = self._data.input_shape, self._data.output_shape
        for cell in self.cell.codes:
            Code(cell.spec, *shapes)

    def measured(self, what: object, measure: Callable[[], Measured]) -> Measured:
        """Return the result for a cell of this model, or for itself, measured once."""
        key = self._key(what)
        result = self._cache.get(key, dict)
        if result is None:
            self._console.print(f"{self.cell}: {what}" if what else str(self.cell), markup=False)
            result = measure()
            self._cache.put(key, result)
        return result

    def deploy(self) -> Measured:
        """Train the deployed model and measure it."""
        cell = self.cell
        begin = partial(train_deployed, self._task, self._data, cell.network, recipe=cell.recipe)
        trained = self._train("", cell, begin)
        return {
            "metric": self._task.metric,
            "queries": len(self._data.test),
            "A_a": self._available,
            "trained": {"epochs": trained.fitted.epochs, "seconds": trained.fitted.seconds},
            "measured": date.today().isoformat(),
        }

    def baselines(self) -> list[Measured]:
        """Return the rows of a second model, and of one answer for every unavailable prediction:
        the mean of the validation set's (Crankshaw et al., Clipper, NSDI 2017)."""
        mean = deployed_predictor(self._bundle)(self._data.validation.inputs).mean(axis=0)
        test = self._data.test
        degraded = score(
            self._task.metric, np.broadcast_to(mean, (len(test), *mean.shape)), test.labels
        )
        return [
            self._plain_row("replication", 1.0, self._available),
            self._plain_row("default prediction", 0.0, degraded),
        ]

    def measure(self, cell: CodeCell | BackupCell | FreeCell) -> Measured:
        """Train the cell's parity models or backup, if it has any, and measure it."""
        test, metric = self._data.test, self._task.metric
        if isinstance(cell, FreeCell):
            available, *degraded = BerrutCode(cell.k, cell.r).accuracies(
                deployed_predictor(self._bundle), test.inputs, test.labels, metric, self._seed
            )
            # All of a group's answers suffer if any of its outputs is unavailable.
            suffer = {f: 1 - (1 - f) ** (cell.k + cell.r) for f in FRACTIONS}
            overall = {str(f): (1 - s) * available + s * degraded[0] for f, s in suffer.items()}
            return _row(str(cell), cell.r / cell.k, degraded, overall)
        if isinstance(cell, BackupCell):
            bundle = self._train_stand_in(cell)
            assert bundle.manifest.backup is not None
            predictions = predictor(bundle.pinned(bundle.manifest.backup))(test.inputs)
            degraded_to = score(metric, predictions, test.labels)
            return self._plain_row(str(cell), _time(bundle), degraded_to)
        bundle = self._train_stand_in(cell)
        outputs = Outputs(bundle, test.inputs, seed=self._seed)
        accuracy = measure_accuracy(outputs, test.labels, metric=metric)
        time, by_number = _time(bundle), accuracy.degraded_by_unavailable
        row = _row(str(cell), cell.r / cell.k * time, by_number, accuracy.overall)
        further = {"agreement": accuracy.agreement, "time": time}
        return row | further | {"training s": bundle.fitted.seconds}

    def _plain_row(self, name: str, overhead: float, degraded: float) -> Measured:
        """Return the row of what answers each query apart, with accuracy `degraded`."""
        overall = {str(f): (1 - f) * self._available + f * degraded for f in FRACTIONS}
        return _row(name, overhead, (degraded,), overall)

    @cached_property
    def _data(self) -> Dataset:
        return load_dataset(self._task)

    @cached_property
    def _bundle(self) -> Bundle:
        """The deployed model's, once it has been trained."""
        return open_bundle(self._bundles / self._key(""))

    @cached_property
    def _available(self) -> float:
        predictions = deployed_predictor(self._bundle)(self._data.test.inputs)
        return score(self._task.metric, predictions, self._data.test.labels)

    def _key(self, what: object) -> str:
        """Return a name for a result by all that determines it, the package's version included."""
        own = msgspec.structs.replace(self.cell, codes=(), backups=(), free=())
        determined = (VERSION, version("parity-models"), self._seed, own, str(what), what)
        described = msgspec.json.encode(determined, order="sorted")
        return hashlib.sha256(described).hexdigest()[:24]

    def _train_stand_in(self, cell: CodeCell | BackupCell) -> Trained:
        code, recipe = (cell.spec, cell.recipe) if isinstance(cell, CodeCell) else (None, "")
        plan = published_network if recipe == "published" else parity_network
        queries = queries_of(self._task, self._data)
        begin = partial(train, self._bundle, queries, network=cell.network, code=code, plan=plan)
        return self._train(cell, cell, begin)

    def _train(self, what: object, budget: Cell, begin: Callable[..., Trained]) -> Trained:
        """Train into the bundle of this cell, going on from where a run was cut off."""
        out = self._bundles / self._key(what)
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


def _time(bundle: Bundle) -> float:
    """Return the inference time of the bundle's one kind of stand-in over the deployed model's; 1
    where it was not measured."""
    times = bundle.manifest.inference_times
    taken = None if times is None else times.parity or times.backup
    return 1.0 if times is None or taken is None else taken / times.deployed


# Berrut coding, the baseline that needs no parity model: all coded queries run on F itself


class BerrutCode:
    """Berrut's rational interpolant in both directions, for any F.

    (ApproxIFER: Soleymani et al., AAAI 2022.) k queries, 2 or more, become `coded` = k + r, so that
    r outputs of F may be unavailable. Coded queries are the values, at k + r Chebyshev points of
    the second kind, of the interpolant through the queries at k points of the first. Signs
    alternate over the outputs that arrived, which keeps the decoding interpolant free of poles.
    Coded queries are not the queries of the group, so all answers are decoded, whether or not
    anything is unavailable.
    """

    def __init__(self, k: int, r: int) -> None:
        self.k = k
        self.r = r
        self.coded = k + r
        self._queries = np.cos((2 * np.arange(k) + 1) * np.pi / (2 * k))
        self._outputs = np.cos(np.arange(self.coded) * np.pi / (self.coded - 1))
        self._encoding = _interpolant(self._queries, self._outputs)

    def encode(self, queries: Sequence[Array]) -> list[Array]:
        """Turn k floating-point arrays (*batch, *query_shape) into k + r of the same shape."""
        return _combine(self._encoding, queries)

    def decode(self, outputs: Sequence[Array | None]) -> list[Array]:
        """Approximate F(X_1) .. F(X_k), from k + r arrays (*batch, *output_shape) or None."""
        arrived = [i for i, output in enumerate(outputs) if output is not None]
        decoding = _interpolant(self._outputs[arrived], self._queries)
        return _combine(decoding, [output for output in outputs if output is not None])

    def accuracies(
        self, run: Callable[[Array], Array], inputs: Array, labels: Array, metric: str, seed: int
    ) -> tuple[float, ...]:
        """Return the accuracy with 0, 1, .. r of a group's outputs unavailable.

        All sets of outputs are taken as unavailable in turn, or, where these are very many, some
        drawn by `seed`.

        Args:
            run: F, from (n, *query shape) to (n, *output shape).
            inputs: Queries (n, *query shape), drawn by `seed` into groups; only full ones count.
            labels: (n, ...).
            metric: The score of answers.
            seed: Fixes the groups.

        """
        groups = draw_groups(len(inputs), self.k, seed)[: len(inputs) // self.k]
        parts: list[list[Array]] = []
        for start in range(0, len(groups), BATCH):
            coded = self.encode([inputs[rows] for rows in groups[start : start + BATCH].T])
            parts.append([run(queries) for queries in coded])
        outputs = [np.concatenate(each) for each in zip(*parts, strict=True)]
        right = np.concatenate([labels[groups][:, slot] for slot in range(self.k)])

        def accuracy(sets: Sequence[Sequence[int]]) -> float:
            here = ([None if i in lost else o for i, o in enumerate(outputs)] for lost in sets)
            answers = [np.concatenate(self.decode(each)) for each in here]
            return score(metric, np.concatenate(answers), np.concatenate([right] * len(sets)))

        lost = (some_sets(self.coded, number, seed) for number in range(1, self.r + 1))
        return (accuracy([()]), *map(accuracy, lost))


def _interpolant(nodes: Weights, points: Weights) -> Weights:
    """Return the matrix (points, nodes) from values at the nodes to values at the points."""
    signs = np.where(np.arange(len(nodes)) % 2, -1.0, 1.0)
    distances = points[:, None] - nodes
    at_node = np.isclose(distances, 0, atol=1e-12)
    terms = signs / np.where(at_node, 1, distances)
    terms = np.where(at_node.any(axis=1, keepdims=True), at_node, terms)
    values: Weights = terms / terms.sum(axis=1, keepdims=True)
    return values


def _combine(weights: Weights, arrays: Sequence[Array]) -> list[Array]:
    """Return Σ weights_i arrays_i for each row of weights, in the arrays' precision."""
    stacked = np.stack(arrays)
    return list(np.tensordot(weights.astype(stacked.dtype), stacked, 1))

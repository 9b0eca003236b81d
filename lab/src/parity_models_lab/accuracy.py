"""The command `accuracy`: train and measure the cells of a matrix, kept on disk.

A matrix says what is trained and compared; people can edit its file.
"""

import hashlib
import shutil
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from importlib import resources
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from rich.console import Console
from scipy.interpolate import BarycentricInterpolator

from parity_models.bundle.bundle import Bundle, open_bundle
from parity_models.codes import Code, CodeSpec
from parity_models.evaluation.judging import FRACTIONS, measure_accuracy, some_sets
from parity_models.evaluation.outputs import Outputs, deployed_predictor, draw_groups
from parity_models.options import option
from parity_models.progress import progress_bars
from parity_models.tasks.metrics import score
from parity_models.training import Trained, TrainingOptions, train
from parity_models.training.device import computing
from parity_models.training.network_plans import find_network
from parity_models_lab.deployed import queries_of, train_deployed
from parity_models_lab.learned import JointTraining
from parity_models_lab.published import check_published, published_network
from parity_models_lab.results import (
    OutFolder,
    ResultCache,
    Seed,
    Work,
    check_out,
    load_toml,
    names_in,
    report,
)
from parity_models_lab.tasks import find_task

FILES = resources.files("parity_models_lab") / "matrices"
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


class DeployedCell(Cell, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task and a network, and all that is compared for them. With the `recipe` "published" the
    deployed model, too, is trained as in the paper."""

    task: str
    network: str
    recipe: Literal["usual", "published"] = "usual"
    codes: tuple[CodeCell, ...] = ()
    backups: tuple[BackupCell, ...] = ()

    def __str__(self) -> str:
        """Return the name of the model and of its results' file."""
        recipe = "" if self.recipe == "usual" else f"-{self.recipe}"
        return f"{self.task}-{self.network}{recipe}".replace(":", "-").replace("@", "-")


class Matrix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The deployed models that are compared."""

    deployed: Annotated[tuple[DeployedCell, ...], Meta(min_length=1)]


Row = dict[str, Any]
Array = NDArray[Any]

REPEATS = 1000
"""How often a group is encoded and decoded to measure the time."""

VERSION = 8
"""Part of every key: raised when what a cell measures changes."""


def accuracy(
    preset: str = option(
        "quick", f"The matrix: {', '.join(PRESETS)}, or a file of yours.", metavar="MATRIX"
    ),
    out: OutFolder = Path("lab/results/accuracy"),
    work: Work = Path("runs/accuracy"),
    seed: Seed = 0,
) -> None:
    """Train and compare codes and baselines over tasks and networks.

    Writes TASK-NETWORK.json for each model. An interrupted run goes on where it stopped. There is a
    row for everything that could answer an unavailable prediction, the cheapest first. `overhead`
    is work beyond one run of the model for each query. A_a is the accuracy with all predictions
    available, A_d that of answers in place of unavailable ones, with every member of every group of
    the test set unavailable in turn, A_o that of all answers with a share of predictions
    unavailable.
    """
    matrix = load_toml(preset, FILES, Matrix, "lab/notes/accuracy.md")
    check_out(out)
    for model in [_Model(cell, work, seed) for cell in matrix.deployed]:
        about = model.once("", model.deployed)
        rows = about.pop("baselines")
        try:
            rows.extend(model.compared(about["A_a"]))
        finally:
            rows.sort(key=itemgetter("overhead"))
            report(str(model.cell), rows, out / f"{model.cell}.json", **about)


class _Model:
    """A deployed model with its data, to be measured. Raises UserError, before anything is trained,
    for tasks, networks and codes that do not exist or fit, and where there are no data."""

    def __init__(self, cell: DeployedCell, work: Path, seed: int) -> None:
        self.cell = cell
        self._cache = ResultCache(work / "results")
        self._bundles = work / "bundles"
        self._seed = seed
        self._task = find_task(cell.task)
        cells: tuple[DeployedCell | BackupCell | CodeCell, ...] = (cell, *cell.backups, *cell.codes)
        for each in cells:
            find_network(each.network or cell.network)
        self._data = self._task.load()
        self._shapes = self._data.input_shape, self._data.output_shape
        for code in cell.codes:
            Code(code.spec, *self._shapes)
            if code.recipe == "published":
                check_published(code.spec)

    def compared(self, available: float) -> Iterator[Row]:
        """Yield the rows of codes, backups, and Berrut coding; `available` is A_a."""
        for code in self.cell.codes:
            yield self.once(code, partial(self._code, code))
        for backup in self.cell.backups:
            yield self.once(backup, partial(self._backup, backup, available))
        for k, r in sorted({(code.k, code.r) for code in self.cell.codes}):
            name = f"berrut, k={k}, r={r}"
            yield self.once(name, partial(self._berrut, name, BerrutCode(k, r)))

    def once(self, what: object, measure: Callable[[], Row]) -> Row:
        """Return the result for a cell of this model, measured once."""
        key = self._key(what)
        result = self._cache.get(key, dict)
        if result is None:
            shown = f"{self.cell}: {what}" if what else str(self.cell)
            Console(stderr=True, highlight=False).print(shown, markup=False)
            result = measure()
            self._cache.put(key, result)
        return result

    def deployed(self) -> Row:
        """Measure the model, and two `baselines`: a second model, and the mean prediction in place
        of every unavailable one (Crankshaw et al., Clipper, NSDI 2017)."""
        cell, test, metric = self.cell, self._data.test, self._task.metric
        begin = partial(train_deployed, self._task, self._data, cell.network)
        trained = self._train("", cell, partial(begin, as_in_paper=cell.recipe == "published"))
        run = deployed_predictor(trained)
        available = score(metric, run(test.inputs), test.labels)
        mean = run(self._data.validation.inputs).mean(axis=0)
        same = score(metric, np.broadcast_to(mean, (len(test), *mean.shape)), test.labels)
        return {
            "metric": metric,
            "queries": len(test),
            "A_a": available,
            "trained": {"epochs": trained.fitted.epochs, "seconds": trained.fitted.seconds},
            "measured": date.today().isoformat(),
            "baselines": [
                _row("replication", 1.0, [available], available),
                _row("default prediction", 0.0, [same], available),
            ],
        }

    def _code(self, cell: CodeCell) -> Row:
        joint = JointTraining(cell.spec, self._bundles / self._key(cell))
        plan = published_network if cell.recipe == "published" else joint
        bundle = self._stand_in(cell, network=cell.network, code=joint.spec, plan=plan)
        joint.save()
        outputs = Outputs(bundle, self._data.test.inputs, seed=self._seed)
        found = measure_accuracy(outputs, self._data.test.labels, metric=self._task.metric)
        time = _time(bundle)
        row = _row(str(cell), cell.r / cell.k * time, found.degraded_by_unavailable, found.overall)
        more = {"agreement": found.agreement, "time": time, "training s": bundle.fitted.seconds}
        return row | more | coding_times(Code(joint.spec, *self._shapes))

    def _backup(self, cell: BackupCell, available: float) -> Row:
        bundle = self._stand_in(cell, network=cell.network, code=None)
        (answers,) = Outputs(bundle, self._data.test.inputs).answers().values()
        degraded = score(self._task.metric, answers.outputs, self._data.test.labels)
        return _row(str(cell), _time(bundle), [degraded], available)

    def _berrut(self, name: str, code: "BerrutCode") -> Row:
        run, test = deployed_predictor(self._bundle), self._data.test
        available, *degraded = code.accuracies(
            run, test.inputs, test.labels, self._task.metric, self._seed
        )
        # All of a group's answers suffer if any of its outputs is unavailable.
        suffer = {f: 1 - (1 - f) ** (code.k + code.r) for f in FRACTIONS}
        overall = {str(f): (1 - s) * available + s * degraded[0] for f, s in suffer.items()}
        return _row(name, code.r / code.k, degraded, overall)

    @property
    def _bundle(self) -> Bundle:
        return open_bundle(self._bundles / self._key(""))

    def _stand_in(self, cell: CodeCell | BackupCell, **how: Any) -> Trained:
        queries = queries_of(self._task, self._data)
        return self._train(cell, cell, partial(train, self._bundle, queries, **how))

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

    def _key(self, what: object) -> str:
        """Return a name for a result by all that determines it, the package's version included."""
        own = msgspec.structs.replace(self.cell, codes=(), backups=())
        determined = (VERSION, version("parity-models"), self._seed, own, str(what), what)
        described = msgspec.json.encode(determined, order="sorted")
        return hashlib.sha256(described).hexdigest()[:24]


def _row(
    name: str, overhead: float, degraded: Sequence[float], overall: Mapping[str, float] | float
) -> Row:
    """Return a row; `overall` accuracies by share, or A_a where each query is answered apart."""
    if isinstance(overall, float):
        overall = {str(f): (1 - f) * overall + f * degraded[0] for f in FRACTIONS}
    row: Row = {"approach": name, "overhead": overhead}
    for unavailable, share in enumerate(degraded, 1):
        row["A_d" if unavailable == 1 else f"{unavailable} unavailable"] = share
    return row | {f"A_o {float(f):.0%}": share for f, share in overall.items()}


def coding_times(code: Code) -> Row:
    """Return the median times in us to encode one group, and to decode it with one unavailable
    prediction."""
    (name,), random = code.query_shapes, np.random.default_rng(0)
    arrays = random.normal(size=(code.k, *code.query_shape)).astype(np.float32)
    queries = [{name: each} for each in arrays]
    made = random.normal(size=(code.k, *code.output_shape)).astype(np.float32)
    parities = random.normal(size=(code.r, *code.parity_output_shape)).astype(np.float32)
    once: dict[str, Callable[[], object]] = {
        "encode, us": partial(code.encode, queries),
        "decode, us": partial(code.decode, [None, *made[1:]], [*parities]),
    }
    with computing(threaded=False):
        return {
            column: round(1e6 * median(timeit.repeat(do, number=1, repeat=REPEATS)), 1)
            for column, do in once.items()
        }


def _time(bundle: Bundle) -> float:
    """Return the inference time of the bundle's one kind of stand-in over the deployed model's."""
    times = bundle.manifest.inference_times
    assert times is not None
    return (times.parity or times.backup or times.deployed) / times.deployed


class BerrutCode:
    """Berrut's rational interpolant in both directions, for any F: no parity model is needed.

    (ApproxIFER: Soleymani et al., AAAI 2022.) k queries, 2 or more, become k + r, which all run on
    F, and r of the outputs may be unavailable. Coded queries are the values, at k + r Chebyshev
    points of the second kind, of the interpolant through the queries at k points of the first. As
    they are not the queries, all answers are decoded, whether or not anything is unavailable.
    """

    def __init__(self, k: int, r: int) -> None:
        self.k = k
        self.r = r
        self._queries = np.cos((2 * np.arange(k) + 1) * np.pi / (2 * k))
        self._outputs = np.cos(np.arange(k + r) * np.pi / (k + r - 1))

    def encode(self, queries: Array) -> Array:
        """Return (k + r, ...) coded queries of (k, ...)."""
        return _interpolate(self._queries, queries, self._outputs)

    def decode(self, outputs: Array, lost: Sequence[int]) -> Array:
        """Approximate F of the queries, (k, ...), from outputs (k + r, ...) without the lost."""
        nodes, values = (np.delete(each, lost, axis=0) for each in (self._outputs, outputs))
        return _interpolate(nodes, values, self._queries)

    def accuracies(
        self, run: Callable[[Array], Array], inputs: Array, labels: Array, metric: str, seed: int
    ) -> tuple[float, ...]:
        """Return the accuracy of F, `run`, with 0, 1, .. r of a group's outputs unavailable.

        All sets of outputs are taken as unavailable in turn, or, where these are very many, some
        drawn by `seed`. It fixes the groups, too; only full ones count.
        """
        groups = draw_groups(len(inputs), self.k, seed)[: len(inputs) // self.k].T
        outputs = np.stack([run(coded) for coded in self.encode(inputs[groups])])
        right = np.concatenate(labels[groups])

        def accuracy(sets: Sequence[Sequence[int]]) -> float:
            answers = [np.concatenate(self.decode(outputs, lost)) for lost in sets]
            return score(metric, np.concatenate(answers), np.concatenate([right] * len(sets)))

        lost = (some_sets(self.k + self.r, number, seed) for number in range(1, self.r + 1))
        return (accuracy([()]), *map(accuracy, lost))


def _interpolate(nodes: Array, values: Array, points: Array) -> Array:
    """Return the interpolant through `values` (nodes, ...) at `points`, (points, ...). Signs
    alternate over the nodes, which keeps it free of poles."""
    signs = (-1.0) ** np.arange(len(nodes))
    found = BarycentricInterpolator(nodes, values, wi=signs)(points)
    return np.asarray(found, values.dtype)

"""Judging a bundle: A_a, A_d and A_o, its accuracy when predictions are unavailable, and the gates
of stand-ins.

(Kosaian et al., SOSP 2019, section 4, defines the three.)
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb, sqrt
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import RenderableType
from rich.table import Table

from parity_models.bundle.bundle import Accuracy, Bundle, open_bundle, with_measured
from parity_models.bundle.onnx_model import class_names
from parity_models.errors import DataError, UserError, spell
from parity_models.evaluation.outputs import Outputs
from parity_models.printed import Printed
from parity_models.progress import OnProgress
from parity_models.tasks.metrics import (
    METRICS,
    Agreement,
    Labels,
    agreement,
    agreement_for,
    choose_metric,
    labels_from,
    load_labels,
    score,
)
from parity_models.tensors.pairs import READERS, read_pairs
from parity_models.tensors.queries import as_batch, check_queries, read_batch, rows_in
from parity_models.tensors.signature import Array, Batch
from parity_models.trust.calibration import RISK, check_levels, reached_by_class, reached_levels
from parity_models.trust.doubt import fit_doubt
from parity_models.trust.gate import (
    AnsweredClass,
    Calibration,
    StandIn,
    classes_of,
    confidences,
    read_classes,
    refused,
    suited,
)

GivenInputs = Path | str | ArrayLike | Mapping[str, ArrayLike]
"""Queries: a file, an array (n, ...), or an array for each input by name."""

FRACTIONS = (0.01, 0.05, 0.1, 0.2)
"""Shares of predictions unavailable for which A_o is given."""

MOST_SETS = 128
"""Maximum number of sets of one size that are tried."""


class GateResult(msgspec.Struct, frozen=True):
    """A stand-in with the gate of a level, or without one, if the level is None.

    `coverage` is the share of queries that it answers; `agreement` is the share of those answers
    that agree with F, `accuracy` their score by the metric, and `deployed_accuracy` F's score on
    the same queries; they are None for too few answers. With a `class_name`, only answers of this
    class of a one-sided gate count.
    """

    stand_in: StandIn
    level: float | None
    coverage: float
    agreement: float | None
    accuracy: float | None
    deployed_accuracy: float | None
    class_name: str | None = None


@dataclass(frozen=True)
class Evaluation(Printed):
    """The accuracy of a bundle's answers.

    `gates` has the results of each calibrated stand-in, by level.
    """

    bundle: Bundle
    accuracy: Accuracy
    gates: tuple[GateResult, ...]

    @property
    def parts(self) -> Sequence[RenderableType]:
        """Tables of accuracy, gates and times."""
        advice = replacement(self.accuracy)
        parts: list[RenderableType] = [] if advice is None else [advice]
        parts.append(accuracy_table(self.bundle, self.accuracy))
        if self.gates:
            parts.append(gate_table(self.gates, self.accuracy.metric))
        parts += self.bundle.gates.learned()
        if self.bundle.manifest.inference_times is not None:
            parts.append(inference_table(self.bundle))
        return parts


def evaluate(
    bundle: Bundle | Path | str,
    inputs: GivenInputs,
    labels: Path | str | ArrayLike | None = None,
    /,
    *,
    metric: str | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Evaluation:
    """Measure accuracy, with each query in turn as the unavailable one of its coding group.

    Args:
        bundle: The bundle, or its folder.
        inputs: Queries: a file, an array (n, *query_shape), or an array for each input by name.
        labels: The right answers: a file or an array (n, ...). Without them accuracy is agreement
            with the deployed model.
        metric: The measure of accuracy; by default the one that stand-ins were trained for.
        seed: Draws the coding groups.
        progress: Called as models run.

    Returns:
        Accuracies A_a, A_d and A_o, and the results of gates. Accuracies go into the bundle's
        manifest, too.

    Raises:
        DataError: For files and arrays that do not fit the bundle.
        UserError: For a metric that cannot judge the predictions.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    manifest, right = opened.manifest, None
    metric = metric_for(opened, metric)
    queries, answers = load_known(inputs, opened, manifest.code.k if manifest.code else 1)
    if labels is not None:
        right = load_labels(labels, metric, rows_in(queries), judged_shape(opened))
    outputs = Outputs(opened, queries, seed=seed, predictions=answers, progress=progress)
    found = judge(outputs, right, metric, manifest.calibration)
    return replace(found, bundle=with_measured(opened, accuracy=found.accuracy))


def judge(
    outputs: Outputs, labels: Labels | None, metric: str, calibration: Mapping[StandIn, Calibration]
) -> Evaluation:
    """Evaluate a bundle by the outputs of its models, with these gates.

    Without labels accuracy is agreement with the deployed model.
    """
    right = labels_from(outputs.predictions, metric) if labels is None else labels
    accuracy = measure_accuracy(outputs, right, metric=metric)
    if labels is None:
        accuracy = msgspec.structs.replace(accuracy, metric=f"{metric} agreement")
    gates = measure_gates(outputs, calibration, right, metric=metric)
    return Evaluation(outputs.bundle, accuracy, gates)


def calibrate(
    bundle: Bundle | Path | str,
    inputs: GivenInputs,
    /,
    *,
    metric: str | None = None,
    agreement: Collection[float] = (),
    answer_only: str | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Bundle:
    """Calibrate the gates of a bundle's stand-ins, and write them into it.

    A gate lets a stand-in answer if it is confident enough: at least the level's share of such
    answers agrees with the deployed model. `parity`, `backup` and `protect` calibrate as well.

    Args:
        bundle: The bundle, or its folder.
        inputs: Held-out queries like those that will be served, without labels: a file or arrays. A
            thousand or more are needed for a level of 0.99.
        metric: The measure by which outputs agree; by default the one that stand-ins were trained
            for.
        agreement: Levels in addition to the usual ones.
        answer_only: The classes that stand-ins may answer, as CLASS or CLASS=LEVEL, separated by
            commas. Each is calibrated by itself. By default the classes of the bundle's gates;
            "all" lifts this limit.
        seed: Draws the coding groups.
        progress: Called as models run.

    Returns:
        The bundle with its gates.

    Raises:
        DataError: For queries that do not fit the bundle.
        UserError: For a bundle without stand-ins, for classes that the model does not have, or if a
            stand-in would lose its gate. The bundle is not changed.
        BundleError: If the bundle was replaced meanwhile or cannot be written.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    manifest = opened.manifest
    if manifest.code is None and manifest.backup is None:
        raise UserError(
            f"{opened.path} has no stand-in to calibrate; make one with: parm parity --model "
            f"{opened.path} --out BUNDLE"
        )
    queries, answers = load_known(inputs, opened)
    outputs = Outputs(opened, queries, seed=seed, predictions=answers, progress=progress)
    only = answered_classes(opened, answer_only)
    metric = metric_for(opened, metric)
    found = calibrate_gates(outputs, metric=metric, named=agreement, allowed=only)
    return with_measured(opened, calibration=found)


def calibrate_gates(
    outputs: Outputs,
    *,
    metric: str = "top-1",
    named: Iterable[float] = (),
    allowed: Sequence[AnsweredClass] = (),
    risk: float = RISK,
) -> dict[StandIn, Calibration]:
    """Return the gate of every stand-in of a bundle, by n held-out queries.

    The queries must be like those that will be served, and neither model nor stand-in may have been
    fitted to them; labels are not needed. Agreement follows from `metric`. Levels are the usual
    ones and any that the user `named`, if these queries can show them. With `allowed` classes,
    gates are one-sided. Raises UserError for levels out of range, and for classes if `metric` does
    not judge classes. Each gate also gets a curve of doubt.
    """
    wanted = check_levels(named)
    agreement = agreement_for(metric, outputs.predictions)
    if allowed and agreement.kind != "classes":
        raise UserError(f"{metric} does not judge classes; leave {spell('answer_only')} out")
    gates: dict[StandIn, Calibration] = {}
    for stand_in, found in outputs.answers(independent=True).items():
        confidence = suited(agreement.kind, found.gave)
        sure = confidences(confidence, found.gave)
        agreed = agreement(found.outputs, outputs.predictions[found.rows])
        if allowed:
            said = classes_of(found.outputs)
            reached = reached_by_class(
                sure, agreed, said, allowed, named=wanted, seed=outputs.seed, risk=risk
            )
            may = np.isin(said, [each.number for each in allowed])
            curve = fit_doubt(np.where(may, sure, np.nan), agreed, outputs.seed)
        else:
            reached = reached_levels(sure, agreed, named=wanted, seed=outputs.seed, risk=risk)
            curve = fit_doubt(sure, agreed, outputs.seed)
        gates[stand_in] = Calibration(
            agreement.kind,
            agreement.tolerance,
            confidence,
            len(sure),
            risk,
            tuple(reached),
            tuple(allowed),
            curve,
        )
    return gates


def answered_classes(bundle: Bundle, answer_only: str | None) -> tuple[AnsweredClass, ...]:
    """Return the classes that the user names, see `read_classes`; by default those of the bundle's
    gates.

    Raises UserError for classes that the model does not have.
    """
    if answer_only is not None:
        shape = judged_shape(bundle)
        if len(shape) != 1:
            raise UserError(f"predictions of shape {list(shape)} are not scores of classes")
        return read_classes(answer_only, _names_of_classes(bundle), shape[0])
    known = (each.answer_only for each in bundle.manifest.calibration.values() if each.answer_only)
    return next(known, ())


# Accuracies and gates, measured


def measure_accuracy(outputs: Outputs, labels: Array, *, metric: str = "top-1") -> Accuracy:
    """Measure the accuracies of a bundle on n queries and labels (n, ...).

    The queries are drawn into groups of k; the last group is filled up with queries of the first,
    which are not counted twice. Each member of a group is unavailable in turn, with all other
    predictions and r parity outputs at hand; for r > 1 also sets of 2 to r members, at most
    MOST_SETS each. The backup is judged on every query. Raises DataError for unfit labels.
    """
    code, rows = outputs.code, outputs.rows
    least = 1 if code is None else code.k
    if len(labels) != rows:
        raise DataError(f"there are {rows} inputs but {len(labels)} labels")
    if rows < least:
        raise DataError(f"there are {rows} inputs; this needs at least {least}")
    available = score(metric, outputs.predictions, labels)
    backup = None if outputs.backup is None else score(metric, outputs.backup, labels)
    if code is None:
        return Accuracy(metric, available, None, {}, None, rows, backup_accuracy=backup)
    alone, *several = [
        outputs.reconstructed(some_sets(code.k, number, outputs.seed))
        for number in range(1, code.r + 1)
    ]
    degraded = [score(metric, each.outputs, labels[each.rows]) for each in (alone, *several)]
    return Accuracy(
        metric=metric,
        available_accuracy=available,
        degraded_accuracy=degraded[0],
        overall={str(f): (1 - f) * available + f * degraded[0] for f in FRACTIONS},
        agreement=agreement(metric, alone.outputs, outputs.predictions[alone.rows]),
        queries=rows,
        degraded_by_unavailable=tuple(degraded),
        backup_accuracy=backup,
    )


def some_sets(of: int, size: int, seed: int) -> list[tuple[int, ...]]:
    """Return all sets of `size` out of `of` outputs, or MOST_SETS of them, drawn by `seed`."""
    if comb(of, size) <= MOST_SETS:
        return list(combinations(range(of), size))
    random = np.random.default_rng(seed)
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < MOST_SETS:
        drawn.add(tuple(sorted(random.choice(of, size, replace=False).tolist())))
    return sorted(drawn)


def replacement(accuracy: Accuracy) -> str | None:
    """Return advice to replace the model if labels show the backup to be at least as accurate."""
    model, found = accuracy.available_accuracy, accuracy.backup_accuracy
    if found is None or found < model or model == 1:  # without labels, the model is always right
        return None
    said = (
        f"Replace your model: the backup has a {accuracy.metric} of {found:.4f} on "
        f"{accuracy.queries:,} labelled queries, and the model {model:.4f}."
    )
    if accuracy.metric.startswith("top-"):
        chance = NORMAL * sqrt(2 * model * (1 - model) / accuracy.queries)
        said += f" A difference of up to {chance:.4f} may be chance."
    return said


def measure_gates(
    outputs: Outputs,
    calibration: Mapping[StandIn, Calibration],
    labels: Array,
    *,
    metric: str = "top-1",
) -> tuple[GateResult, ...]:
    """Measure each calibrated stand-in without a gate and with the gate of each of its levels, on
    queries that were not used for calibration. Every query is reconstructed."""
    results: list[GateResult] = []
    answers = outputs.answers() if calibration else {}
    for stand_in, gates in calibration.items():
        if stand_in not in answers:
            continue
        found = answers[stand_in]
        predictions, right = outputs.predictions[found.rows], labels[found.rows]
        agreed = Agreement(gates.kind, gates.tolerance)(found.outputs, predictions)
        said, sure = classes_of(found.outputs), confidences(gates.confidence, found.gave)
        cases: list[tuple[float | None, NDArray[np.bool_], str | None]] = [
            (None, np.ones_like(agreed), None)
        ]
        for level in gates.levels:
            given = ~refused(sure, found.gave, level.thresholds)
            cases.append((level.level, given, None))
            cases += [
                (each.level, given & (said == each.number), gates.allowed[each.number])
                for each in level.classes
                if each.number is not None
            ]
        results += [
            GateResult(
                stand_in,
                promised,
                float(given.mean()),
                float(agreed[given].mean()) if given.any() else None,
                _score(metric, found.outputs[given], right[given]),
                _score(metric, predictions[given], right[given]),
                name,
            )
            for promised, given, name in cases
        ]
    return tuple(results)


def _score(metric: str, outputs: Array, labels: Array) -> float | None:
    try:
        return score(metric, outputs, labels) if len(labels) else None
    except DataError:  # too few for the metric to have a meaning
        return None


# Confidence intervals, which hold the true value in 95 of 100 cases

Interval = tuple[float, float]

FEWEST = 30
"""Minimum number of queries for an interval."""

NORMAL = 1.96
"""95 of 100 normally distributed cases lie within this many deviations of the mean."""


def share_interval(share: float, rows: int) -> Interval | None:
    """Return the interval of a share of `rows` queries (Wilson, JASA 1927); None for too few."""
    if rows < FEWEST:
        return None
    square = NORMAL**2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    reach = NORMAL * sqrt(share * (1 - share) / rows + square / (4 * rows**2)) / (1 + square / rows)
    return max(0.0, middle - reach), min(1.0, middle + reach)


# Queries and metrics


def load_known(inputs: GivenInputs, bundle: Bundle, least: int = 1) -> tuple[Batch, Array | None]:
    """Return queries as `load_queries` does and, from a log of pairs, the model's outputs for them.

    Raises DataError for answers that are not outputs of the model.
    """
    if not (isinstance(inputs, str | Path) and Path(inputs).suffix in READERS):
        return load_queries(inputs, bundle, least), None
    pairs, shape = read_pairs(Path(inputs)), judged_shape(bundle)
    labels = _names_of_classes(bundle) if pairs.labels else ()
    answers = pairs.predictions(labels)
    if answers.shape[1:] != shape or answers.dtype.kind != "f":
        raise DataError(
            f"the answers in {inputs} are {'labels' if pairs.labels else 'numbers'}; the model of "
            f"{bundle.path} gives {list(shape)} numbers, "
            + ("without labels" if pairs.labels else "and each answer has as many")
        )
    return load_queries(pairs.inputs, bundle, least), answers


def load_queries(inputs: GivenInputs, bundle: Bundle, least: int = 1) -> Batch:
    """Return the queries in a file or in arrays: `least` or more, which differ.

    Raises DataError for queries that do not fit the deployed model.
    """
    signature = bundle.manifest.deployed.signature
    if isinstance(inputs, str | Path):
        return read_batch(Path(inputs), signature, least)
    queries = as_batch(inputs, signature)
    check_queries(queries, "inputs", least)
    return queries


def _names_of_classes(bundle: Bundle) -> tuple[str, ...]:
    """Return the names of the model's classes, if they have some."""
    deployed, shape = bundle.manifest.deployed, judged_shape(bundle)
    if deployed.elsewhere or len(shape) != 1:
        return bundle.manifest.labels
    return class_names(bundle.content(deployed), shape[0])


def metric_for(bundle: Bundle, metric: str | None) -> str:
    """Return the metric that the user named, else the one that a stand-in of `bundle` was trained
    for."""
    manifest = bundle.manifest
    for training in (manifest.parity_training, manifest.backup_training):
        trained_for = None if training is None else training.recipe.get("metric")
        if metric is None and isinstance(trained_for, str):
            metric = trained_for
    return choose_metric(metric, judged_shape(bundle))


def judged_shape(bundle: Bundle) -> tuple[int, ...]:
    """Return the shape of the output that is judged: the one that stand-ins imitate, or the only
    one.

    Raises UserError if that has no fixed shape.
    """
    output = bundle.manifest.imitated_output
    fixed = None if output is None else output.fixed
    if fixed is None:
        outputs = bundle.manifest.deployed.signature.outputs
        raise UserError(
            f"{bundle.path} has no output of fixed shape that can be judged: "
            f"{', '.join(map(str, outputs))}"
        )
    return fixed.shape


# Tables


def accuracy_table(bundle: Bundle, accuracy: Accuracy) -> Table:
    """Return A_a, A_d, A_o, agreement and the backup's accuracy in per cent, one row each.

    Shares of queries come with an interval that holds the true share in 95 of 100 cases.
    """
    code = bundle.manifest.code
    title = f"{bundle.path}" if code is None else f"{bundle.path}: {code}"
    table = Table(title=title, title_justify="left")
    table.add_column(f"{accuracy.metric}, {accuracy.queries:,} queries")
    table.add_column("%", justify="right")
    table.add_column("95 % sure", justify="right")
    measures_shares = METRICS[accuracy.metric.removesuffix(" agreement")].kind == "classes"

    def add(what: str, share: float, *, sure: bool = False) -> None:
        interval = share_interval(share, accuracy.queries) if sure and measures_shares else None
        ends = "" if interval is None else " to ".join(f"{100 * end:.1f}" for end in interval)
        table.add_row(what, f"{100 * share:.2f}", ends)

    if not bundle.manifest.deployed.elsewhere:  # a log's answers are right by definition
        add("A_a  available: the deployed model", accuracy.available_accuracy, sure=True)
    if accuracy.backup_accuracy is not None:
        add("     the approximate backup", accuracy.backup_accuracy, sure=True)
    if accuracy.degraded_accuracy is None or accuracy.agreement is None:
        return table
    add("A_d  unavailable: reconstructions", accuracy.degraded_accuracy, sure=True)
    for unavailable, share in enumerate(accuracy.degraded_by_unavailable[1:], start=2):
        add(f"     {unavailable} of a group unavailable", share)
    for fraction, share in accuracy.overall.items():
        add(f"A_o  overall, {float(fraction):.0%} unavailable", share)
    table.add_section()
    add("reconstructions that agree with F", accuracy.agreement, sure=True)
    return table


def gate_table(results: Sequence[GateResult], metric: str) -> Table:
    """Return the results in per cent, one row for each stand-in and level."""
    table = Table(title="gates, measured with these queries", title_justify="left")
    table.add_column("stand-in", min_width=14)
    for column in ("level", "answers", "agree\nwith F", metric, "F, the\nsame"):
        table.add_column(column, justify="right")
    before = None
    for each in results:
        shares = (each.coverage, each.agreement, each.accuracy, each.deployed_accuracy)
        name = "" if each.class_name is None else f"  {each.class_name}"
        table.add_row(
            name if each.stand_in == before else each.stand_in,
            "no gate" if each.level is None else f"{100 * each.level:g}",
            *("" if share is None else f"{100 * share:.2f}" for share in shares),
        )
        before = each.stand_in
    return table


def inference_table(bundle: Bundle) -> Table:
    """Return each model's network, milliseconds, and ratio to the deployed model's time."""
    manifest = bundle.manifest
    times = manifest.inference_times
    assert times is not None
    table = Table(title="inference, one query on one thread", title_justify="left")
    for column in ("model", "network"):
        table.add_column(column)
    for column in ("ms", "ratio"):
        table.add_column(column, justify="right")
    for model, network, taken in (
        ("deployed", manifest.deployed.network, times.deployed),
        ("parity", manifest.parity[0].network if manifest.parity else "", times.parity),
        ("backup", manifest.backup.network if manifest.backup else "", times.backup),
    ):
        if taken is not None:
            table.add_row(model, network, f"{taken:.3f}", f"{taken / times.deployed:.2f}")
    return table

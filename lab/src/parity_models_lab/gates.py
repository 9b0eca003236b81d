"""The commands `promises` and `drift`: are budgets kept, and when does the watch close gates?"""

from collections.abc import Iterator
from functools import partial
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.bundle.bundle import Bundle, open_bundle
from parity_models.cli.flags import argument
from parity_models.documents import read_json
from parity_models.errors import UserError
from parity_models.evaluation.judging import load_queries, metric_for
from parity_models.evaluation.outputs import Outputs
from parity_models.options import Option
from parity_models.scheduling.race import Purse
from parity_models.tasks.metrics import METRICS, Agreement, agreement_for
from parity_models.tensors.signature import Batch
from parity_models.trust.agreement import AgreementTest
from parity_models.trust.doubt import Audit, fit_doubt
from parity_models.trust.gate import Gate, classes_of, confidences, suited
from parity_models.trust.gates import choose_gates
from parity_models_lab.latency.reproduce_rivals import BUDGETS, PREDICTIONS
from parity_models_lab.results import Out, Row, report, simulated

RECORDED = resources.files("parity_models_lab") / "predictions"
"""Outputs of stand-ins for held-out queries of several tasks."""

SERVED = 20_000
"""Queries of a stream in which a budget is spent."""

DRIFT = 10.0
"""Outputs that differ so many times as often as their doubts say."""

COMPARED = 20
"""One in so many of a stand-in's answers is compared with the model's."""

STREAM = 100_000
"""Answers of a stand-in in all."""

WEIGHTS = (10.0, 30.0, 100.0)
"""Factors by which queries of the worst classes, one class in five, become more frequent."""

NOISE = (0.5, 1.0, 2.0)
"""The deviation of noise, as a share of that of the numbers it is added to."""
SEEDS = 20
"""The number of streams drawn for each drift."""

Mask = NDArray[np.bool_]


class Recorded(msgspec.Struct, frozen=True):
    """A stand-in's outputs for held-out queries: the confidence in each, and whether it agrees."""

    about: str
    confidence: tuple[float, ...]
    agrees: tuple[int, ...]


class Promise(NamedTuple):
    """A budget, spent on a task's stand-in."""

    task: str
    recorded: Recorded
    differ: float


def promises(
    bundles: Annotated[
        list[Path] | None,
        argument("Bundles with a stand-in, in place of the recorded ones.", "[BUNDLES]"),
    ] = None,
    inputs: Annotated[
        Path | None, Option("Queries that no stand-in was trained on.", metavar="FILE")
    ] = None,
    streams: Annotated[int, Option("Streams of 20,000 queries.", at_least=1)] = 200,
    out: Out = None,
) -> None:
    """Count how often no more answers differ from the model's than the budget allows.

    Half of a task's queries, drawn anew for each stream, calibrate a curve of doubt. The stream is
    drawn from the others. The audit compares one in 20 of the stand-in's answers. A promise is kept
    if the share of all answers that differ is within the budget, or the smallest one that the
    calibration can show ("shown"). "differ" and "95 of 100" are the mean share, and the 95 %
    quantile over streams, as shares of that; "spent" is the mean as a share of the budget itself.
    At the stream's end, outputs begin to differ ten times as often: "halved after" are the
    comparisons until doubts count twice.
    """
    if bundles and inputs is None:
        raise UserError("give queries for the bundles, too: --inputs FILE")
    if bundles and inputs:
        tasks = {path.name: _record(open_bundle(path), inputs) for path in bundles}
    else:
        tasks = {
            each.name.removesuffix(".json"): read_json(each.read_bytes(), Recorded)
            for each in (PREDICTIONS, *sorted(RECORDED.iterdir(), key=lambda each: each.name))
        }
    jobs = [Promise(*task, differ) for task, differ in product(tasks.items(), BUDGETS)]
    run = partial(keep, streams=streams)
    found = dict(simulated(run, dict(enumerate(jobs))))
    rows = [found[number] for number in range(len(jobs))]
    about = {name: each.about for name, each in tasks.items()}
    report(f"Budgets kept, {streams} streams", rows, out and out / "promises.json", about=about)


def _record(bundle: Bundle, inputs: Path) -> Recorded:
    """Return a stand-in's confidence in its answers to the inputs, and which agree."""
    outputs = Outputs(bundle, load_queries(inputs, bundle))
    agreement = agreement_for(metric_for(bundle, None), outputs.predictions)
    for answers in outputs.answers(independent=True).values():
        sure = confidences(suited(agreement.kind, answers.gave), answers.gave)
        agreed = agreement(answers.outputs, outputs.predictions[answers.rows])
        return Recorded(str(bundle.path), tuple(sure.tolist()), tuple(agreed.astype(int).tolist()))
    raise UserError(f"{bundle.path} has no stand-in whose answers could differ")


def keep(promise: Promise, streams: int) -> Row:
    """Return a row of the table: how a budget is kept and spent in some streams."""
    recorded, differ = promise.recorded, promise.differ
    sure, agreed = np.array(recorded.confidence), np.array(recorded.agrees) == 1
    shown, shares, answered, halved = np.empty((4, streams))
    for seed in range(streams):
        rng = np.random.default_rng(seed)
        calibrating, served = np.array_split(rng.permutation(len(sure)), 2)
        curve = fit_doubt(sure[calibrating], agreed[calibrating], seed)
        audit = Audit(curve, differ)
        shown[seed] = audit.smallest_shown
        rows = rng.choice(served, SERVED)
        doubts, differs = curve.of(sure[rows]), ~agreed[rows]
        given = _answered(audit, differ, doubts.tolist(), differs.tolist(), rng)
        shares[seed], answered[seed] = differs[given].sum() / SERVED, len(given) / SERVED
        compared = rng.choice(doubts[given] if given else doubts, SERVED)
        halved[seed] = _halved_after(audit, compared, rng)
    limits = np.maximum(shown, differ)
    return {
        "task": promise.task,
        "budget": differ,
        "shown": float(f"{np.median(shown):.2g}"),
        "differ": round(float((shares / limits).mean()), 2),
        "95 of 100": round(float(np.quantile(shares / limits, 0.95)), 2),
        "kept": f"{(shares <= limits).mean():.1%}",
        "answered": f"{answered.mean():.1%}",
        "spent": round(float(shares.mean() / differ), 2),
        "halved after": _spread(halved.tolist()),
    }


def _answered(
    audit: Audit,
    differ: float,
    doubts: list[float],
    differs: list[bool],
    rng: np.random.Generator,
) -> list[int]:
    """Return the queries of a stream that the stand-in answers, as it is worth its price."""
    purse, compared, given = Purse(differ), rng.random(SERVED) * COMPARED < 1, []
    for place, doubt in enumerate(doubts):
        purse.earn()
        paid = doubt * audit.factor
        if paid * purse.price <= 1 and purse.spend(paid):
            given.append(place)
            if compared[place]:
                audit.saw(doubt, differs[place])
    return given


def _halved_after(audit: Audit, doubts: NDArray[np.float64], rng: np.random.Generator) -> int:
    """Return the comparisons after which doubts count twice, if outputs differ DRIFT times as often
    as their doubts say."""
    before, differs = audit.factor, rng.random(len(doubts)) < DRIFT * doubts
    for number, (doubt, differed) in enumerate(zip(doubts.tolist(), differs.tolist(), strict=True)):
        if audit.factor >= 2 * before:
            return number
        audit.saw(doubt, differed)
    return len(doubts)


def drift(
    bundle: Annotated[Path, argument("A bundle with a calibrated backup.", "BUNDLE")],
    inputs: Annotated[
        Path, Option("Queries that neither trained nor calibrated it.", metavar="FILE")
    ],
    agreement: Annotated[float, Option("The level of the gate.", metavar="SHARE")] = 0.99,
    out: Out = None,
) -> None:
    """Count the wrong answers that a gate lets through before the watch closes it.

    Queries drift away from those of the calibration: classes that agree least come more often, or
    inputs become noisy. One stand-in answer in 20 is compared with the model's. `closed` counts the
    draws in which the gate closes; comparisons and wrong answers until then are medians, with
    intervals of 95 of 100 draws in brackets.
    """
    rows: list[Row] = []
    opened = open_bundle(bundle)
    for name, strength, agreed, weights in _drifts(opened, load_queries(inputs, opened), agreement):
        share = float(np.average(agreed, weights=weights))
        runs = [_run(agreed, weights, agreement, seed) for seed in range(SEEDS)]
        closed = [run for run in runs if run is not None]
        rows.append(
            {
                "drift": name,
                "strength": strength,
                "agreement": round(share, 4),
                "seeds": SEEDS,
                "closed": len(closed),
                "comparisons": _spread([each[0] for each in closed]),
                "wrong": _spread([each[1] for each in closed]),
                "wrong without a watch": round(STREAM * (1 - share)),
            }
        )
    report("Wrong answers before the gate closes, of 100,000", rows, out and out / "drift.json")


def _drifts(
    bundle: Bundle, queries: Batch, level: float
) -> Iterator[tuple[str, float, Mask, NDArray[np.float64]]]:
    """Yield name and strength of each drift, whether each answer that passes the gate agrees (n,),
    and how often each comes."""
    chosen = choose_gates(bundle, ["backup"], level)
    if not chosen:
        raise UserError(f"{bundle.path} has no backup whose gate could be watched")
    (gate,) = chosen.values()
    calibration = gate.calibration

    def answers(given: Batch) -> tuple[Mask, NDArray[np.int64]]:
        outputs = Outputs(bundle, given)
        found = outputs.answers()["backup"]
        passed = ~Gate(calibration.confidence, gate.level).refused(found.gave)
        agreement = Agreement(calibration.kind, calibration.tolerance)
        agreed = agreement(found.outputs, outputs.predictions)
        return agreed[passed], classes_of(found.gave[passed])

    agreed, said = answers(queries)
    yield "none", 0.0, agreed, np.ones(len(agreed))
    if METRICS[metric_for(bundle, None)].kind == "classes":
        shares = {each: agreed[said == each].mean() for each in np.unique(said).tolist()}
        worst = sorted(shares, key=shares.__getitem__)[: max(1, len(shares) // 5)]
        for factor in WEIGHTS:
            yield "classes", factor, agreed, np.where(np.isin(said, worst), factor, 1.0)
    for strength in NOISE:
        agreed, _ = answers(_noisy(queries, strength))
        if len(agreed):
            yield "noise", strength, agreed, np.ones(len(agreed))


def _noisy(queries: Batch, strength: float) -> Batch:
    """Add noise to numbers; ids and masks stay."""
    rng, found = np.random.default_rng(0), dict(queries)
    for name, each in queries.items():
        if each.dtype.kind == "f":
            noise = strength * each.std(axis=0) * rng.normal(size=each.shape)
            found[name] = (each + noise).astype(each.dtype)
    return found


def _run(
    agreed: Mask, weights: NDArray[np.float64], level: float, seed: int
) -> tuple[int, int] | None:
    """Return comparisons and wrong answers until the gate closes; None if it does not."""
    rng, test = np.random.default_rng(seed), AgreementTest(level)
    stream = rng.choice(agreed, STREAM, p=weights / weights.sum())
    for number in range(COMPARED - 1, STREAM, COMPARED):
        if test.saw(bool(stream[number]), ("backup", "model")):
            return (number + 1) // COMPARED, int((~stream[: number + 1]).sum())
    return None


def _spread(values: list[int]) -> str:
    if not values:
        return ""
    low, middle, high = np.quantile(values, (0.025, 0.5, 0.975))
    return f"{middle:,.0f} ({low:,.0f}-{high:,.0f})"

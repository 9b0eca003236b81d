"""The commands `promises` and `drift`: the promises of gates, and when the watch closes them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from parity_models.cli.flags import argument
from parity_models.errors import UserError
from parity_models.evaluation.calibration import RISK, reached_levels, surest_share
from parity_models.evaluation.judging import load_queries, metric_for
from parity_models.evaluation.outputs import Outputs
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.models.gate import Gate, classes_of, confidences, suited
from parity_models.models.signature import Batch
from parity_models.options import Option
from parity_models.protection.finalists import FIRST_CHOICE
from parity_models.tasks.metrics import METRICS, Agreement, agreement_for
from parity_models.trust.agreement import AgreementTest
from parity_models.trust.gates import choose_gates
from parity_models_lab.results import Out, Row, report

USUAL = 0.99
"""The level that ranks where the best one is taken."""

COMPARED = 20
"""One in so many of a stand-in's answers is compared with the model's."""

STREAM = 100_000
"""Answers of a stand-in in all."""

WEIGHTS = (10.0, 30.0, 100.0)
"""Factors by which queries of the worst classes, one class in five, become more frequent."""

NOISE = (0.5, 1.0, 2.0)
"""The deviation of noise, as a share of that of the numbers it is added to."""
SEEDS = 20
"""The number of draws: of a stream for each drift, or of the queries that rank and calibrate."""

Mask = NDArray[np.bool_]


def promises(
    bundles: Annotated[
        list[Path], argument("Bundles of one model with different stand-ins.", "BUNDLES")
    ],
    inputs: Annotated[Path, Option("Queries that no stand-in was trained on.", metavar="FILE")],
    agreement: Annotated[float, Option("The level that is named.", metavar="SHARE")] = 0.95,
    queries: Annotated[
        int, Option("Queries that rank, and again as many that calibrate.", at_least=100)
    ] = 1000,
    out: Out = None,
) -> None:
    """Calibrate on some queries, count how often others keep the promised agreement.

    Each seed draws queries that rank the stand-ins, and others that calibrate the best of them, as
    parm protect does; the rest are served. A promise is kept if at least the level agree with the
    model, of the served queries that pass the gate.
    """
    found = [each for path in bundles for each in _answers(open_bundle(path), inputs)]
    rows = len(found[0][0])
    if rows < 3 * queries:
        raise UserError(f"there are {rows:,} --inputs; {queries:,} --queries take 3 times as many")
    counts: list[Row] = []
    for named in (agreement, None):
        kept, coverages = 0, []
        levels = [] if named is None else [named]
        reach = partial(reached_levels, named=levels, risk=FIRST_CHOICE * RISK)
        for seed in range(SEEDS):
            order = np.random.default_rng(seed).permutation(rows)
            ranking, held_out, served = np.split(order, [queries, 2 * queries])
            shares = [surest_share(s[ranking], a[ranking], named or USUAL) for s, a in found]
            sure, agreed = found[int(np.argmax(shares))]
            gates = reach(sure[held_out], agreed[held_out], seed=seed)
            gates = [gate for gate in gates if named in (None, gate.level)]
            if gates:
                given = sure[served] >= gates[-1].threshold
                kept += bool(agreed[served][given].mean() >= gates[-1].level)
                coverages.append(float(given.mean()))
        counts.append(
            {
                "level": "the best of all" if named is None else f"{named:g}",
                "seeds": SEEDS,
                "shown": len(coverages),
                "kept": kept,
                "coverage": round(sum(coverages) / SEEDS, 3),
            }
        )
    title = f"Promises kept, {queries:,} queries to calibrate with"
    report(title, counts, out and out / "promises.json")


def _answers(bundle: Bundle, inputs: Path) -> Iterator[tuple[NDArray[np.float64], Mask]]:
    """Yield the confidence of each stand-in in its answers to the inputs, in their order, and which
    agree with the model."""
    outputs = Outputs(bundle, load_queries(inputs, bundle))
    agreement = agreement_for(metric_for(bundle, None), outputs.predictions)
    for answers in outputs.answers().values():
        given = answers.outputs[np.argsort(answers.rows)]
        sure = confidences(suited(agreement.kind, given), given)
        yield sure, agreement(given, outputs.predictions)


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

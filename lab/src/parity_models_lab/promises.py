"""The command `promises`: are budgets kept while doubts learn, and levels while gates do?"""

from functools import partial
from importlib import resources
from itertools import product

import numpy as np
from numpy.typing import NDArray

from parity_models.documents import read_json
from parity_models.options import option
from parity_models.scheduling.race import Purse
from parity_models.scheduling.work import COMPARE
from parity_models.trust.agreement import Comparison, LearningGate
from parity_models.trust.calibration import reached_levels, surest_share
from parity_models.trust.doubt import Doubts, fit_doubt
from parity_models.trust.gate import NOTHING
from parity_models_lab.latency.reproduce_rivals import BUDGETS, PREDICTIONS, Recorded
from parity_models_lab.results import Out, Row, report, simulated

RECORDED = resources.files("parity_models_lab") / "predictions"
"""Outputs of stand-ins for held-out queries of several tasks."""

SERVED = 20_000
"""Queries of a stream in which a budget is spent."""

DRIFT = 10.0
"""Outputs that differ so many times as often as their doubts say."""

COMPARED = 20
"""One in so many of a stand-in's answers is compared with the model's."""

LEVELS, CALIBRATING = (0.95, 0.98, 0.99, 0.995), 600
"""Levels of gates, and the queries that calibrate one."""

SEEN = (0, 1000, 5000, 10_000, 50_000, 70_000)
"""Comparisons after which coverage is taken; the model changes at the last but one."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def promises(streams: int = option(200, "Streams for each budget.", ge=1), out: Out = None) -> None:
    """Count how often budgets and levels are kept while doubts and gates learn.

    Half of a task's queries, drawn anew for each stream, calibrate a stand-in; the stream
    is drawn from the others. Of 20,000 queries, one in 20 of the stand-in's answers is compared,
    and 3 % of all queries. A promise is kept if the share of all answers that differ is within the
    budget, or the smallest one that the calibration can show ("shown"). "differ" and "95 of 100"
    are the mean share, and the 95 % quantile over streams, as shares of that; "spent" is the mean
    as a share of the budget itself. At the stream's end, outputs begin to differ ten times as
    often: "halved after" are the comparisons until doubts count twice.

    Gates: coverage is the median after so many comparisons. A gate keeps its promise if, at every
    moment, what may answer agrees at its level. After 50,000, the model changes its answer to a
    fifth of the half of the queries of which the stand-in is less sure: "wrong" are the differing
    answers among those compared until the gate steps back, and "then" is its coverage after 20,000
    more.
    """
    tasks = {
        each.name.removesuffix(".json"): read_json(each.read_bytes(), Recorded)
        for each in (PREDICTIONS, *sorted(RECORDED.iterdir(), key=lambda each: each.name))
    }
    about = {name: each.about for name, each in tasks.items()}
    jobs = {(name, differ): (tasks[name], differ) for name, differ in product(tasks, BUDGETS)}
    found = dict(simulated(partial(keep, streams=streams), jobs))
    rows: list[Row] = [
        {"task": name, "budget": differ, **found[name, differ]} for name, differ in jobs
    ]
    report(f"Budgets kept, {streams} streams", rows, out and out / "promises.json", about=about)
    jobs = {(name, level): (tasks[name], level) for name, level in product(tasks, LEVELS)}
    found = dict(simulated(partial(learn, streams=streams), jobs))
    rows = [{"task": name, "level": level, **found[name, level]} for name, level in jobs]
    report(f"Gates, {streams} streams", rows, out and out / "gates.json", about=about)


def keep(promise: tuple[Recorded, float], streams: int) -> Row:
    """Return how a budget, spent on a task's stand-in, is kept in some streams, by column."""
    recorded, differ = promise
    sure, agreed = np.array(recorded.confidence), np.array(recorded.agrees) == 1
    shown, shares, answered, halved = np.empty((4, streams))
    for seed in range(streams):
        rng = np.random.default_rng(seed)
        calibrating, served = np.array_split(rng.permutation(len(sure)), 2)
        curve = fit_doubt(sure[calibrating], agreed[calibrating], seed)
        known = Doubts(curve, differ)
        shown[seed] = known.smallest_shown
        rows = rng.choice(served, SERVED)
        confidence, differs = sure[rows], ~agreed[rows]
        given = _answered(known, differ, confidence, differs, rng)
        shares[seed], answered[seed] = differs[given].sum() / SERVED, len(given) / SERVED
        compared = rng.choice(confidence[given] if given else confidence, SERVED)
        halved[seed] = _halved_after(known, compared, rng)
    limits = np.maximum(shown, differ)
    low, middle, high = np.quantile(halved, (0.025, 0.5, 0.975))
    return {
        "shown": float(f"{np.median(shown):.2g}"),
        "differ": round(float((shares / limits).mean()), 2),
        "95 of 100": round(float(np.quantile(shares / limits, 0.95)), 2),
        "kept": f"{(shares <= limits).mean():.1%}",
        "answered": f"{answered.mean():.1%}",
        "spent": round(float(shares.mean() / differ), 2),
        "halved after": f"{middle:,.0f} ({low:,.0f}-{high:,.0f})",
    }


def _answered(
    doubts: Doubts, differ: float, confidence: Floats, differs: Mask, rng: np.random.Generator
) -> list[int]:
    """Return the queries of a stream that the stand-in answers, as it is worth its price."""
    purse, drawn, given = Purse(differ), rng.random((2, SERVED)), []
    audited, compared = drawn[0] * COMPARED < 1, drawn[1] < COMPARE
    for place, (sure, differed) in enumerate(zip(confidence, differs.tolist(), strict=True)):
        purse.earn()
        doubt = float(doubts.of(sure))
        if doubt * purse.price <= 1 and purse.spend(doubt):
            given.append(place)
            doubts.answered(doubt)
            if audited[place]:
                doubts.audited(sure, differed=differed)
        if compared[place]:
            doubts.compared(sure, differed=differed)
    return given


def _halved_after(doubts: Doubts, confidence: Floats, rng: np.random.Generator) -> int:
    """Return the comparisons after which doubts count twice, if outputs differ DRIFT times as often
    as their doubts say."""
    before, chances = doubts.of(confidence), DRIFT / doubts.factor * doubts.of(confidence)
    differs = (rng.random(len(confidence)) < chances).tolist()
    total = before.sum()
    for number, (sure, differed) in enumerate(zip(confidence.tolist(), differs, strict=True)):
        if (number % 10 == 0 or differed) and doubts.of(confidence).sum() >= 2 * total:
            return number
        doubts.audited(sure, differed=differed)
    return len(confidence)


def learn(promise: tuple[Recorded, float], streams: int) -> Row:
    """Return how a gate of a level opens in some streams, and how it steps back, by column."""
    recorded, level = promise
    sure, agreed = np.array(recorded.confidence), np.array(recorded.agrees) == 1
    changed = agreed & ((sure >= np.median(sure)) | (np.arange(len(sure)) % 5 > 0))
    coverage, kept, wrong = np.empty((len(SEEN), streams)), np.ones(streams), np.zeros(streams)
    for seed in range(streams):
        rng = np.random.default_rng(seed)
        rows = rng.integers(len(sure), size=CALIBRATING)
        shown = {each.level: each.threshold for each in reached_levels(sure[rows], agreed[rows])}
        comparisons = fit_doubt(sure[rows], agreed[rows], seed).comparisons
        gate = LearningGate(level, shown.get(level, NOTHING), comparisons)
        last = gate.state.changed
        for number, row in enumerate(rng.integers(len(sure), size=SEEN[-1] + 1).tolist()):
            if number in SEEN:
                coverage[SEEN.index(number), seed] = (sure >= gate.threshold).mean()
            before, confidence = number < SEEN[-2], recorded.confidence[row]
            agrees = bool((agreed if before else changed)[row])
            if before:
                last = gate.state.changed
            elif gate.state.changed == last:
                wrong[seed] += confidence >= gate.threshold and not agrees
            if (gate.saw(Comparison(confidence, agrees)) and before) or not number:
                answered = sure >= gate.threshold
                kept[seed] *= (answered & ~agreed).sum() <= (1 - level) * answered.sum()
    names = *(f"after {each:,}" for each in SEEN[:-1]), "then"
    medians = zip(names, np.median(coverage, axis=1), strict=True)
    return {
        **{name: f"{each:.1%}" for name, each in medians},
        "hindsight": f"{surest_share(sure, agreed, level):.1%}",
        "kept": f"{kept.mean():.1%}",
        "wrong": round(float(np.median(wrong)), 1),
    }

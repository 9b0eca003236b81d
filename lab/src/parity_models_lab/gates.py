"""The command `promises`: do budgets and gates keep what they promise while they learn?"""

import warnings
from collections.abc import Sequence
from functools import partial
from importlib import resources
from itertools import product
from pathlib import Path
from time import process_time
from typing import Final, NamedTuple

import matplotlib.pyplot as plt
import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.bundle.bundle import Bundle, open_bundle
from parity_models.cli.flags import argument
from parity_models.documents import read_json
from parity_models.errors import UserError
from parity_models.evaluation.judging import load_queries, metric_for
from parity_models.evaluation.outputs import Outputs
from parity_models.options import option
from parity_models.scheduling.race import Purse
from parity_models.scheduling.work import COMPARE
from parity_models.tasks.metrics import agreement_for
from parity_models.trust.agreement import Comparison, LearningGate
from parity_models.trust.calibration import reached_levels, surest_share
from parity_models.trust.doubt import Doubts, fit_doubt
from parity_models.trust.gate import NOTHING, confidences, suited
from parity_models_lab import plots
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

LEVELS: Final = (0.95, 0.98, 0.99, 0.995)
"""Levels of gates."""

CALIBRATING: Final = {"banking77": 600}
"""Queries that calibrate a gate, as many as training had; of other tasks half."""

MARKS: Final = (0, 1000, 5000, 10_000, 50_000)
"""Comparisons after which coverage is read."""

CLASSES: Final = {"banking77": 77, "fashion-mnist": 10}
"""Classes of a task. They are drawn at random, as the recordings have none."""

PARTED: Final = 0.1
"""The share of queries that count as a class where there are none."""

AFTER_DRIFT: Final = 20_000
"""Comparisons after a class has begun to differ."""

STEP: Final = 250
"""Comparisons between two points of a curve."""

Floats = NDArray[np.float64]
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
    bundles: list[Path] | None = argument(
        None, "Bundles with a stand-in, in place of the recorded ones."
    ),
    inputs: Path | None = option(None, "Queries that no stand-in was trained on.", metavar="FILE"),
    streams: int = option(200, "Streams for each budget and level.", ge=1),
    out: Out = None,
) -> None:
    """Count how often budgets and gates keep what they promise while they learn.

    Budgets: half of a task's queries, drawn anew for each stream, calibrate a stand-in; the stream
    is drawn from the others. Of 20,000 queries, one in 20 of the stand-in's answers is compared,
    and 3 % of all queries. A promise is kept if the share of all answers that differ is within the
    budget, or the smallest one that the calibration can show ("shown"). "differ" and "95 of 100"
    are the mean share, and the 95 % quantile over streams, as shares of that; "spent" is the mean
    as a share of the budget itself. At the stream's end, outputs begin to differ ten times as
    often: "halved after" are the comparisons until doubts count twice.

    Gates: the queries that calibrate, and those of the stream, are drawn from all of a task's.
    Coverage after so many comparisons (medians), and in hindsight. A promise is kept if, at no
    time, what may answer agrees less often than the level. After 50,000 comparisons, half of the
    queries of one class get another answer: "wrong before" are the stand-in's wrong answers among
    those compared before the gate steps back, "coverage after" the median 20,000 comparisons
    later. "us": processor time of a comparison.
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
    about = {name: each.about for name, each in tasks.items()}
    gates = {
        (name, level): (name, level, each) for (name, each), level in product(tasks.items(), LEVELS)
    }
    earned = dict(simulated(partial(earn, streams=streams), gates))
    rows = [earned[key][0] for key in gates]
    report(f"Gates, {streams} streams", rows, out and out / "gates.json", about=about)
    if out is not None:
        draw([earned[key][1] for key in gates], out / "gates.svg")
    jobs = [Promise(*task, differ) for task, differ in product(tasks.items(), BUDGETS)]
    found = dict(simulated(partial(keep, streams=streams), dict(enumerate(jobs))))
    rows = [found[number] for number in range(len(jobs))]
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
        known = Doubts(curve, differ)
        shown[seed] = known.smallest_shown
        rows = rng.choice(served, SERVED)
        confidence, differs = sure[rows], ~agreed[rows]
        given = _answered(known, differ, confidence, differs, rng)
        shares[seed], answered[seed] = differs[given].sum() / SERVED, len(given) / SERVED
        compared = rng.choice(confidence[given] if given else confidence, SERVED)
        halved[seed] = _halved_after(known, compared, rng)
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


class Curves(NamedTuple):
    """The coverage of a gate after every STEP comparisons, in each stream."""

    task: str
    level: float
    covered: NDArray[np.float64]
    """(streams, steps)."""
    agreed: NDArray[np.float64]
    """(streams, steps): the true agreement of what may answer; NaN if nothing may."""


class _Run(NamedTuple):
    covered: list[float]
    agreed: list[float]
    kept: bool
    wrong: int | None
    """Wrong answers until the gate stepped back; None if it did not."""
    hindsight: float
    micros: float
    """Processor time of a comparison."""


def earn(job: tuple[str, float, Recorded], streams: int) -> tuple[Row, Curves]:
    """Return a row of the table of gates, and its curves."""
    task, level, recorded = job
    sure, agreed = np.array(recorded.confidence), np.array(recorded.agrees) == 1
    runs = [_learn(task, level, sure, agreed, seed) for seed in range(streams)]
    covered = np.median([run.covered for run in runs], axis=0)
    wrong = [run.wrong for run in runs if run.wrong is not None]
    row: Row = {
        "task": task,
        "level": level,
        **{f"after {mark:,}": f"{covered[mark // STEP]:.1%}" for mark in MARKS},
        "hindsight": f"{np.median([run.hindsight for run in runs]):.1%}",
        "kept": f"{np.mean([run.kept for run in runs]):.1%}",
        "stepped back": f"{len(wrong)} of {streams}",
        "wrong before": _spread(wrong),
        "coverage after": f"{covered[-1]:.1%}",
        "us": round(float(np.median([run.micros for run in runs])), 1),
    }
    series = (np.array([getattr(run, name) for run in runs]) for name in ("covered", "agreed"))
    return row, Curves(task, level, *series)


def _learn(task: str, level: float, sure: Floats, agreed: Mask, seed: int) -> _Run:
    """Let a gate learn from a stream, at the end of which half of a class differs."""
    rng = np.random.default_rng(seed)
    served = np.arange(len(sure))
    known = rng.choice(served, CALIBRATING.get(task, len(sure) // 2))
    curve = fit_doubt(sure[known], agreed[known], seed)
    found = reached_levels(sure[known], agreed[known], named=[level], seed=seed)
    shown = next((each.threshold for each in found if each.level == level), NOTHING)
    gate = LearningGate(level, shown, curve.comparisons)
    said = rng.integers(0, CLASSES.get(task, 1), len(sure))
    parted = said == 0 if task in CLASSES else rng.random(len(sure)) < PARTED
    drifted = agreed & ~(parted & (rng.random(len(sure)) < 0.5))
    rows = rng.choice(served, MARKS[-1] + AFTER_DRIFT)
    stream = zip(sure[rows].tolist(), said[rows].tolist(), rows.tolist(), strict=True)
    covered, true = list[float](), list[float]()
    kept, wrong, until_back = True, 0, None
    now, micros = agreed, 0.0
    for number, (confidence, says, row) in enumerate(stream):
        if number == MARKS[-1]:
            now = drifted
        if number % STEP == 0:
            answered = (sure[served] >= gate.threshold) & ~np.isin(said[served], [*gate.barred])
            covered.append(float(answered.mean()))
            true.append(float(now[served][answered].mean()) if answered.any() else np.nan)
            kept &= now is drifted or not true[-1] < level
        right = bool(now[row])
        comparison = Comparison(confidence, right, ("a", "b"), None, says)
        answers = confidence >= gate.threshold and says not in gate.barred
        if now is drifted and until_back is None:
            wrong += answers and not right
        began = process_time()
        turned = gate.saw(comparison)
        micros += process_time() - began
        if turned and now is drifted and until_back is None and gate.state.changed:
            until_back = wrong
    total = 1e6 * micros / len(rows)
    best = surest_share(sure[served], agreed[served], level)
    return _Run(covered, true, kept, until_back, best, total)


def _spread(values: list[int]) -> str:
    if not values:
        return ""
    low, middle, high = np.quantile(values, (0.025, 0.5, 0.975))
    return f"{middle:,.0f} ({low:,.0f}-{high:,.0f})"


def draw(curves: Sequence[Curves], path: Path) -> None:
    """Draw how far each task's gates open, and what agrees, over the comparisons."""
    tasks = list(dict.fromkeys(each.task for each in curves))
    with plots.style():
        figure, rows = plt.subplots(
            2, len(tasks), figsize=(3 * len(tasks), 5), sharex=True, squeeze=False, layout="tight"
        )
        for each in curves:
            colour = plots.COLOURS[LEVELS.index(each.level)]
            upper, lower = rows[:, tasks.index(each.task)]
            at = STEP * np.arange(each.covered.shape[1]) / 1000
            with warnings.catch_warnings():  # nothing answers in any stream
                warnings.simplefilter("ignore", RuntimeWarning)
                for axes, values in ((upper, each.covered), (lower, each.agreed)):
                    low, middle, high = np.nanquantile(values, (0.05, 0.5, 0.95), axis=0)
                    axes.plot(at, middle, color=colour, lw=1.2, label=f"{each.level:g}")
                    axes.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
            lower.axhline(each.level, color=colour, lw=0.7, ls=":")
        for place, task in enumerate(tasks):
            upper, lower = rows[:, place]
            upper.set_title(task)
            upper.set_ylim(0, 1)
            lower.set_ylim(0.9, 1)
            lower.set_xlabel("comparisons, thousands")
            for axes in (upper, lower):
                axes.axvline(MARKS[-1] / 1000, color=plots.FAINT, lw=0.8, ls="--")
                axes.spines[["top", "right"]].set_visible(False)
        rows[0, 0].set_ylabel("coverage")
        rows[1, 0].set_ylabel("agreement of what may answer")
        rows[0, -1].legend(title="level", frameon=False, loc="lower center")
        note = (
            "Medians of all streams, and the range of 90 % of them. Dotted: the promise. From the "
            "dashed line on, half of the queries of one class (of boxes and embeddings, of a tenth "
            "of all queries) get another answer of the model."
        )
        plots.save(figure, path, note)
        plt.close(figure)

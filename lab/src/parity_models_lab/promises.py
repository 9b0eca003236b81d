"""Promises of gates, kept or broken: calibrated on some queries, and held to others.

Each seed draws queries that rank the stand-ins, queries that calibrate, and takes the rest as those
that are served. A promise is kept if, of the served queries that pass the gate, at least the level
agree with the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.evaluation.calibration import LEVELS, RISK, learn_threshold, reached_levels
from parity_models.evaluation.judging import GivenInputs, load_queries, metric_for
from parity_models.evaluation.outputs import Outputs
from parity_models.models.bundle import Bundle
from parity_models.models.gate import GateLevel, confidences, suited
from parity_models.protection.finalists import FIRST_CHOICE
from parity_models.tasks.metrics import agreement_for
from parity_models_lab.results import Row

Answers = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""For n queries the confidence of a stand-in, and whether it agrees with the model."""

SCHEMES = ("as if alone", "Bonferroni", "fresh split")
"""Each level and finalist at the whole risk, chosen by the queries that calibrate; the same at a
share of it; and as `protect` does: ranked by other queries, levels share the risk."""


def measure_promises(
    bundles: Sequence[Bundle], inputs: GivenInputs, level: float, queries: int, seeds: int
) -> list[Row]:
    """Return for each scheme, of a named level and of the best one, how many seeds kept it.

    Args:
        bundles: They have the same deployed model, and the stand-ins among which to choose.
        inputs: Queries that no stand-in was trained on.
        level: The level that is named.
        queries: Queries that rank, and again as many that calibrate.
        seeds: Draws of these.

    """
    found = {
        f"{place} {stand_in}": answers
        for place, bundle in enumerate(bundles)
        for stand_in, answers in stand_in_answers(bundle, inputs).items()
    }
    rows = len(next(iter(found.values()))[0])
    if rows < 3 * queries:
        raise UserError(f"there are {rows:,} --inputs; {queries:,} --queries take 3 times as many")
    report: list[Row] = []
    for scheme in SCHEMES:
        for named in (level, None):
            kept, shown, coverage = 0, 0, 0.0
            for seed in range(seeds):
                order = np.random.default_rng(seed).permutation(rows)
                ranking, calibrating, served = np.split(order, [queries, 2 * queries])
                gate, (sure, agreed) = _choose(found, scheme, named, ranking, calibrating, seed)
                if gate is None:
                    continue
                given = sure[served] >= gate.threshold
                kept += bool(agreed[served][given].mean() >= gate.level)
                shown, coverage = shown + 1, coverage + float(given.mean())
            report.append(
                {
                    "scheme": scheme,
                    "level": "the best of all" if named is None else f"{named:g}",
                    "seeds": seeds,
                    "shown": shown,
                    "kept": kept,
                    "coverage": round(coverage / seeds, 3),
                }
            )
    return report


def stand_in_answers(bundle: Bundle, inputs: GivenInputs) -> Mapping[str, Answers]:
    """Return the answers of each stand-in to the inputs, in their order."""
    outputs = Outputs(bundle, load_queries(inputs, bundle))
    agreement = agreement_for(metric_for(bundle, None), outputs.predictions)
    found: dict[str, Answers] = {}
    for stand_in, answers in outputs.answers().items():
        given = answers.outputs[np.argsort(answers.rows)]
        sure = confidences(suited(agreement.kind, given), given)
        found[stand_in] = sure, agreement(given, outputs.predictions)
    return found


def _choose(
    found: Mapping[str, Answers],
    scheme: str,
    named: float | None,
    ranking: NDArray[Any],
    calibrating: NDArray[Any],
    seed: int,
) -> tuple[GateLevel | None, Answers]:
    """Return the gate of the stand-in that is chosen, None if nothing is shown, and its answers."""
    usual = 0.99 if named is None else named
    if scheme == "fresh split":
        first = max(found.values(), key=lambda answers: _covered(answers, ranking, usual))
        sure, agreed = (each[calibrating] for each in first)
        levels = [] if named is None else [named]
        risk = FIRST_CHOICE * RISK
        gates = reached_levels(sure, agreed, named=levels, seed=seed, risk=risk)
        return _best(gates, named), first
    tests = len(found) * (len(LEVELS) if named is None else 1)
    risk = RISK / tests if scheme == "Bonferroni" else RISK
    best: tuple[GateLevel | None, Answers] = None, next(iter(found.values()))
    for answers in found.values():
        sure, agreed = (each[calibrating] for each in answers)
        tried = [
            learn_threshold(sure, agreed, each, seed, risk)
            for each in (LEVELS if named is None else (named,))
        ]
        gate = _best([each for each in tried if each is not None], named)
        if gate is not None and (
            best[0] is None or (gate.level, gate.coverage) > (best[0].level, best[0].coverage)
        ):
            best = gate, answers
    return best


def _best(gates: Sequence[GateLevel], named: float | None) -> GateLevel | None:
    fitting = [gate for gate in gates if named in (None, gate.level)]
    return fitting[-1] if fitting else None


def _covered(answers: Answers, rows: NDArray[Any], level: float) -> float:
    """Return the largest share of the surest answers that reaches the level, an estimate."""
    sure, agreed = (each[rows] for each in answers)
    right = np.cumsum(agreed[np.argsort(-sure, kind="stable")]) / np.arange(1, len(rows) + 1)
    enough = np.flatnonzero(right >= level)
    return float((enough[-1] + 1) / len(rows)) if len(enough) else 0.0

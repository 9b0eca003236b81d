"""The command `rivals`: the rule with a budget against cascades, slack rules, accuracy scaling.

Each simulated query draws a row of recorded predictions: the confidence of the stand-in there, and
whether it agrees with the model. So the share of answers that differ from the model's is counted,
and not computed from the gate.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from itertools import product
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from parity_models.documents import read_json
from parity_models.load.spec import read_trace
from parity_models.options import option
from parity_models.roles import SOURCES, Source
from parity_models.scheduling.actions import Audit as Audited
from parity_models.scheduling.choice import PolicyChoice
from parity_models.simulation.emulation import LogNormal
from parity_models.simulation.simulation import FAILED
from parity_models.trust.doubt import Doubts, fit_doubt
from parity_models_lab.latency.link import DriverOnLinks
from parity_models_lab.latency.trial import Setting, Trial, simulation_of
from parity_models_lab.results import OutFolder, check_out, load_toml, report, simulated

FOLDER = resources.files("parity_models_lab.latency")
PREDICTIONS = FOLDER / "banking77.json"
"""Banking77's test queries: MiniLM-L3 with a classifier, and the stand-in `parm protect` found."""

LOADS = (0.5, 0.9)
"""Of what all instances carry."""

COVERAGES = (0.8, 0.78, 0.65, 0.45, 0.39, 0.35, 0.25)
"""The shares of queries that rivals' gates let pass; another gate lets all pass."""

BUDGETS = (0.01, 0.001, 0.0001)
"""Shares of all answers that may differ from the model's."""

WARM_UP = 500


class Rivals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Kinds of slowness, and policies with options of which each has the best at each point, in
    hindsight. Arrivals are Poisson but where a scene names a trace."""

    scenes: dict[str, Setting]
    policies: dict[str, tuple[str, ...]]


RIVALS = load_toml("rivals", FOLDER, Rivals, "lab/notes/latency.md")
SCENES, POLICIES = RIVALS.scenes, RIVALS.policies

EXACT = ("no redundancy", "hedging")
"""Policies without a stand-in."""

Evidence = Literal["hindsight", "split", "learned"]
"""The evidence for doubts: all recorded predictions, which are served as well; or a half of them,
drawn by the seed, and audits in service, while the other half is served; or that half and LEARNED
comparisons in service before."""

LEARNED = 20_000
"""Comparisons with queries in time."""


class Recorded(msgspec.Struct, frozen=True):
    """Outputs of a stand-in for n held-out queries: their confidence, and whether F agrees."""

    about: str
    confidence: tuple[float, ...]
    agrees: tuple[int, ...]


class Predictions(Recorded, frozen=True):
    """Outputs of a stand-in that takes a `share` of the model's time; `threshold` is its gate's."""

    share: float
    threshold: float


PREDICTED = read_json(PREDICTIONS.read_bytes(), Predictions)


class Draws(NamedTuple):
    """A stand-in's outputs for n queries: whether its gate refuses them, whether they differ in
    truth, and how doubtful they are; if it `learns`, it judges them by their confidence."""

    refused: NDArray[np.bool_]
    differs: NDArray[np.bool_]
    doubts: NDArray[np.float64]
    confidence: NDArray[np.float64]
    learns: Doubts | None


class Drawn(DriverOnLinks):
    """A driver whose stand-in has these outputs."""

    def __init__(self, draws: Draws, *others: Any) -> None:
        self._draws = draws
        super().__init__(*others)
        self._do[Audited] = self._audited

    def _refuses(self, query: int, source: Source) -> bool:
        return bool(self._draws.refused[query])

    def _doubt(self, query: int, source: Source) -> float:
        draws = self._draws
        if draws.learns is None:
            return float(draws.doubts[query])
        return float(draws.learns.of(draws.confidence[query]))

    def _audited(self, action: Audited) -> None:
        _, differs, _, confidence, learns = self._draws
        if learns is None:
            return
        sure, differed = confidence[action.query], bool(differs[action.query])
        if not action.late:
            learns.compared(sure, differed=differed)
        if action.answered:
            learns.audited(sure, differed=differed)


class Candidate(NamedTuple):
    """A policy with its options, a scene, a load, the gate's threshold, and the evidence."""

    policy: str
    scene: str
    load: float
    threshold: float = -inf
    budget: float = 0.0
    evidence: Evidence = "hindsight"


Traces = Mapping[str, Sequence[float]]
"""Times of arrivals by scene."""

Outcome = dict[str, Any]
"""A row of results."""


class Found(NamedTuple):
    """The outcome of a run: latencies in seconds, infinite where a query failed."""

    latencies: NDArray[np.float64]
    busy: float
    stood_in: float
    differs: float
    expected: tuple[float, ...]
    """The share of all answers that the evidence expects to differ, cautiously, for each budget."""


def hindsight(confidence: NDArray[np.float64], differs: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the doubts (n,) that are right for these very outputs: the share that differs, among
    those of about the same confidence (isotonic regression)."""
    order = np.argsort(confidence, kind="stable")
    doubts = np.empty(len(order))
    doubts[order] = isotonic_regression(differs[order], increasing=False).x
    return np.minimum(1.0, doubts + 1e-5)


def simulate_run(run: Candidate, seed: int, queries: int, traces: Traces) -> Found:
    """Run one simulation; arrivals are Poisson where the scene has no trace."""
    recorded, setting = PREDICTED, SCENES[run.scene]
    service, burst = setting.mean_service, setting.burst
    rate = run.load * setting.all_instances / service
    if burst is not None:
        rate /= 1 + (burst.factor - 1) * burst.length / burst.every
    backup = LogNormal(recorded.share * service, 0.05)
    trial = Trial(
        mode="simulated",
        setting=replace(setting, rate=rate, stand_ins=("backup",), backup_service=backup),
        policy=PolicyChoice.parse(run.policy, None),
        queries=queries,
        warm_up=WARM_UP,
        seed=seed,
    )
    simulation, rng = simulation_of(trial), np.random.default_rng((seed, 3))
    count = len(simulation.arrivals)
    if run.scene in traces:
        gaps = np.diff(traces[run.scene])
        arrivals = np.resize(np.roll(gaps, -int(rng.integers(len(gaps)))), count).cumsum()
        simulation = dataclasses.replace(simulation, arrivals=arrivals / (rate * gaps.mean()))
    confidence, differs = np.array(recorded.confidence), np.array(recorded.agrees) == 0
    served, learns = np.arange(len(differs)), None
    cautions = [1.0] * len(BUDGETS)
    if run.evidence == "hindsight":
        doubts = hindsight(confidence, differs)
    else:
        known, served = np.array_split(np.random.default_rng((seed, 4)).permutation(served), 2)
        curve = fit_doubt(confidence[known], ~differs[known], seed)
        learns = Doubts(curve, run.budget)
        seen = LEARNED if run.evidence == "learned" else 0
        for row in served[rng.integers(len(served), size=seen)].tolist():
            learns.compared(confidence[row], differed=bool(differs[row]))
        doubts = learns.of(confidence) / learns.factor
        cautions = []
        for budget in BUDGETS:
            learns.change(budget)
            cautions.append(learns.factor)
        learns.change(run.budget)
    rows = served[rng.integers(len(served), size=count)]
    refused = confidence[rows] < run.threshold
    draws = Draws(refused, differs[rows], doubts[rows], confidence[rows], learns)
    driver = partial(Drawn, draws, setting.links(seed))
    result = simulation.run(*trial.policy.build(trial.stand_ins), driver=driver)
    sources = result.sources[WARM_UP:]
    stood_in = sources == SOURCES.index(Source.BACKUP)
    wrong = differs if run.evidence == "hindsight" else doubts
    expected = float((stood_in * wrong[rows[WARM_UP:]]).mean())
    return Found(
        np.where(sources == FAILED, inf, result.latencies[WARM_UP:]),
        sum(result.busy.values()) / queries,
        float(stood_in.mean()),
        float((stood_in & differs[rows[WARM_UP:]]).mean()),
        tuple(caution * expected for caution in cautions),
    )


def outcome(candidate: Candidate, traces: Traces, seeds: int, queries: int) -> Outcome:
    """Return the outcome of a candidate over all seeds. Times are in ms, infinite where so many
    queries failed; "of seeds": the least and the most."""
    results = [simulate_run(candidate, seed, queries, traces) for seed in range(seeds)]
    latencies = 1e3 * np.concatenate([each.latencies for each in results])
    p50, p99, p999 = np.quantile(latencies, (0.5, 0.99, 0.999), method="higher").round(2).tolist()
    tails = [float(1e3 * np.quantile(e.latencies, 0.999, method="higher")) for e in results]
    differ = [each.differs for each in results]
    return {
        "scene": candidate.scene,
        "load": candidate.load,
        "p50": p50,
        "p99": p99,
        "p99.9": p999,
        "p99.9 of seeds": [round(min(tails), 2), round(max(tails), 2)],
        "busy": round(1e3 * float(np.mean([each.busy for each in results])), 2),
        "not F's": round(float(np.mean([each.stood_in for each in results])), 4),
        "differ": round(float(np.mean(differ)), 6),
        "differ of seeds": [round(min(differ), 6), round(max(differ), 6)],
        "expected": np.mean([each.expected for each in results], axis=0).tolist(),
        "failed": round(float(np.isinf(latencies).mean()), 5),
        "options": candidate.policy.partition("@")[2],
    }


def candidates(scene: str, load: float, evidence: Evidence) -> dict[str, list[Candidate]]:
    """Return the candidates of each rival in a scene at a load."""
    confidence = PREDICTED.confidence
    gates = [-inf, *(float(np.quantile(confidence, 1 - share)) for share in COVERAGES)]
    return {
        name: [
            Candidate(policy, scene, load, gate, evidence=evidence)
            for policy, gate in product(policies, gates[:1] if name in EXACT else gates)
        ]
        for name, policies in POLICIES.items()
    }


def compare(traces: Traces, seeds: int, queries: int) -> list[Outcome]:
    """Simulate all cells: kinds of evidence, scenes, loads, and budgets.

    Return the rows of the table: for each cell the rule with the budget, and every rival with the
    options and the gate that have its shortest p99.9 within the budget, as the evidence shows.
    """
    scenes = [each for each in SCENES if ", " not in each or each in traces]
    cells = list(product(scenes, LOADS, get_args(Evidence)))
    rivals = {cell: candidates(*cell) for cell in cells}
    ours = {
        (cell, budget): Candidate(
            f"adaptive@differ={budget:g}", cell[0], cell[1], budget=budget, evidence=cell[2]
        )
        for cell, budget in product(cells, BUDGETS)
    }
    jobs = [
        *ours.values(),
        *(each for cell in cells for some in rivals[cell].values() for each in some),
    ]
    run = partial(outcome, traces=traces, seeds=seeds, queries=queries)
    found = dict(simulated(run, {each: each for each in jobs}))
    expected = {each: row.pop("expected") for each, row in found.items()}
    rows: list[Outcome] = []
    for cell, (place, budget) in product(cells, enumerate(BUDGETS)):
        about = {"budget": budget, "evidence": cell[2]}
        best = []
        for name, some in rivals[cell].items():
            within = [found[each] for each in some if expected[each][place] <= budget]
            best += [{"policy": name} | about | min(within, key=_tail)] if within else []
        row = {"policy": "adaptive"} | about | found[ours[cell, budget]]
        for column in ("p99", "p99.9"):
            least = min(each[column] for each in best)
            row[f"{column} / best rival's"] = _ratio(row[column], least)
        rows += [row, *sorted(best, key=_tail)]
    return rows


def _ratio(ours: float, best: float) -> float | None:
    """Return the ratio of two tails; None where queries failed in both."""
    return None if inf in (ours, best) and ours == best else round(ours / best, 3)


def _tail(row: Outcome) -> tuple[float, float]:
    return row["p99.9"], row["p99"]


def rivals(
    data_dir: Path | None = option(
        None,
        "The folder of conv-arrivals.txt and code-arrivals.txt, seconds from the first "
        "request, one a line (Azure LLM inference trace 2023). Without it, all is Poisson.",
        metavar="DIR",
    ),
    out: OutFolder = Path("lab/results"),
    queries: int = option(4000, "Queries of each run.", ge=1000),
    seeds: int = option(3, "Runs of each setting.", ge=1),
) -> None:
    """Compare the rule with a budget with cascades, slack rules and accuracy scaling.

    Simulated. Writes rivals.json: for each kind of slowness, load and budget, tails, busy time, and
    the share of all answers that differ from the model's, counted on recorded predictions.
    """
    check_out(out)
    traces = {}
    for scene in SCENES if data_dir else ():
        _, traced, name = scene.partition(", ")
        if traced:
            traces[scene] = read_trace(f"{data_dir}/{name}.txt").tolist()
    rows = compare(traces, seeds, queries)
    about = {"queries": queries, "seeds": seeds, "predictions": PREDICTED.about}
    means = {
        f"{column}, {evidence}": _mean([row for row in rows if row["evidence"] == evidence], column)
        for column, evidence in product(
            ("p99 / best rival's", "p99.9 / best rival's"), get_args(Evidence)
        )
    }
    report("Rivals", rows, out / "rivals.json", **about, means=means)


def _mean(rows: Sequence[Outcome], column: str) -> float | None:
    """Return the geometric mean of ratios, of the rows that have finite ones."""
    finite = [row[column] for row in rows if 0 < (row.get(column) or 0.0) < inf]
    return round(float(np.exp(np.log(finite).mean())), 3) if finite else None

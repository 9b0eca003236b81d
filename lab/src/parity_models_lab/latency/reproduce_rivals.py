"""The command `rivals`: late binding against cascades, slack rules, accuracy scaling.

Each simulated query draws a row of recorded predictions: the confidence of the stand-in there, and
whether it agrees with the model. So the share of answers that differ from the model's is counted,
and not computed from the gate.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib import resources
from itertools import product
from math import inf
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from parity_models.documents import read_json
from parity_models.emulation import LogNormal
from parity_models.load.spec import read_trace
from parity_models.options import Option
from parity_models.roles import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.simulation import FAILED, SOURCES, simulate
from parity_models_lab.documents import load_toml
from parity_models_lab.latency.link import DriverOnLinks
from parity_models_lab.latency.trial import Setting, Trial, simulation_of
from parity_models_lab.results import OutFolder, check_out, report, simulated

FOLDER = resources.files("parity_models_lab.latency")
PREDICTIONS = FOLDER / "banking77.json"
"""Banking77's test queries: MiniLM-L3 with a classifier, and the stand-in `parm protect` found."""

LOADS = (0.3, 0.5, 0.7, 0.9, 1.1)
"""Of what all instances carry."""

FRONTIER = (0.5, 0.9)
"""The loads at which gates are swept."""

COVERAGES = (0.8, 0.65, 0.45, 0.35, 0.25)
"""The shares of queries that swept gates let pass; another gate lets all pass."""

BOUNDS = (0.01, 0.001, 0.0001)
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


class Predictions(msgspec.Struct, frozen=True):
    """Predictions for n held-out queries: the stand-in's `confidence`, and whether it `agrees`. It
    takes a `share` of the model's time; `threshold` is its gate's, of the `level`."""

    about: str
    share: float
    level: float
    threshold: float
    confidence: tuple[float, ...]
    agrees: tuple[int, ...]


@cache
def predictions() -> Predictions:
    """Return the recorded predictions."""
    return read_json(PREDICTIONS.read_bytes(), Predictions)


class Drawn(DriverOnLinks):
    """A driver in which the stand-in may not answer the queries that are `refused` (n,)."""

    def __init__(self, refused: NDArray[np.bool_], *others: Any) -> None:
        self._refused = refused
        super().__init__(*others)

    def _refuses(self, query: int, source: Source) -> bool:
        return bool(self._refused[query])


class Candidate(NamedTuple):
    """A policy with its options, a scene, a load, and the gate's threshold."""

    policy: str
    scene: str
    load: float
    threshold: float


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


def simulate_run(run: Candidate, seed: int, queries: int, traces: Traces) -> Found:
    """Run one simulation; arrivals are Poisson where the scene has no trace."""
    recorded, setting = predictions(), SCENES[run.scene]
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
    rows = rng.integers(len(recorded.agrees), size=count)
    refused = np.array(recorded.confidence)[rows] < run.threshold
    driver: Callable[..., Drawn] = partial(Drawn, refused, setting.links(seed))
    result = simulate(simulation, *trial.policy.build(trial.stand_ins), driver=driver)
    sources = result.sources[WARM_UP:]
    stood_in = sources == SOURCES.index(Source.BACKUP)
    differs = stood_in & (np.array(recorded.agrees)[rows[WARM_UP:]] == 0)
    return Found(
        np.where(sources == FAILED, inf, result.latencies[WARM_UP:]),
        sum(result.busy.values()) / queries,
        float(stood_in.mean()),
        float(differs.mean()),
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
        "failed": round(float(np.isinf(latencies).mean()), 5),
        "options": candidate.policy.partition("@")[2],
    }


def cells(
    scenes: Sequence[str], loads: Sequence[float], thresholds: Sequence[float]
) -> Iterator[tuple[str, list[Candidate]]]:
    """Yield names of policies, each with its candidates in a scene at a load."""
    for scene, load, (name, policies) in product(scenes, loads, POLICIES.items()):
        tried = product(policies, [-inf] if name in EXACT else thresholds)
        yield name, [Candidate(policy, scene, load, threshold) for policy, threshold in tried]


def compare(traces: Traces, seeds: int, queries: int) -> tuple[list[Outcome], list[Outcome]]:
    """Simulate all cells.

    Return the rows of the table, each with the options of the shortest p99.9; and for each policy
    and bound on the answers that differ, its shortest p99.9 and least busy time within the bound.
    """
    scenes = [each for each in SCENES if ", " not in each or each in traces]
    confidence = predictions().confidence
    gates = [-inf, *(float(np.quantile(confidence, 1 - share)) for share in COVERAGES)]
    table = list(cells(scenes, LOADS, [predictions().threshold]))
    ungated = [some for name, some in cells(scenes, LOADS, [-inf]) if name == "slackfit"]
    table += [("slackfit, no gate", some) for some in ungated]  # its paper has no gate
    swept = list(cells(scenes, FRONTIER, gates))
    candidates = {each: each for _, some in (*table, *swept) for each in some}
    run = partial(outcome, traces=traces, seeds=seeds, queries=queries)
    found = dict(simulated(run, candidates))
    rows = [{"policy": name} | min((found[c] for c in some), key=_tail) for name, some in table]
    best: list[Outcome] = []
    for (name, some), bound in product(swept, BOUNDS):
        within = [found[each] for each in some if found[each]["differ"] <= bound]
        if within:
            least = min(each["busy"] for each in within)
            more = {"policy": name, "differ at most": bound, "least busy": least}
            best.append(min(within, key=_tail) | more)
    return rows, best


def _tail(row: Outcome) -> tuple[float, float]:
    return row["p99.9"], row["p99"]


def rivals(
    data_dir: Annotated[
        Path | None,
        Option(
            "The folder of conv-arrivals.txt and code-arrivals.txt, seconds from the first "
            "request, one a line (Azure LLM inference trace 2023). Without it, all is Poisson.",
            metavar="DIR",
        ),
    ] = None,
    out: OutFolder = Path("lab/results"),
    queries: Annotated[int, Option("Queries of each run.", at_least=1000)] = 4000,
    seeds: Annotated[int, Option("Runs of each setting.", at_least=1)] = 3,
) -> None:
    """Compare late binding with cascades, slack rules and accuracy scaling, by simulation.

    Writes rivals.json and rivals-frontier.json: tails and busy time, and the share of all answers
    that differ from the model's, counted on recorded predictions.
    """
    check_out(out)
    traces = {}
    for scene in SCENES if data_dir else ():
        _, traced, name = scene.partition(", ")
        if traced:
            traces[scene] = read_trace(f"{data_dir}/{name}.txt").tolist()
    rows, best = compare(traces, seeds, queries)
    about = {"queries": queries, "seeds": seeds, "predictions": predictions().about}
    report("Rivals", rows, out / "rivals.json", **about)
    report("Rivals, by answers that differ", best, out / "rivals-frontier.json", **about)

"""Where answers may be approximate: late binding against cascades, slack rules, accuracy scaling.

Each simulated query draws a row of recorded predictions: the confidence of the stand-in there, and
whether it agrees with the model. So the share of answers that differ from the model's is counted,
and not computed from the gate.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from itertools import chain, product
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray

from parity_models.arrivals import poisson_arrivals
from parity_models.documents import read_json
from parity_models.emulation import Constant, Degradation, FaultPlan, LogNormal, Pauses
from parity_models.load.spec import read_trace
from parity_models.protection.scene import DISPATCH
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import StandIns
from parity_models.simulation import FAILED, SOURCES, Simulation, simulate
from parity_models_lab.latency.link import DriverOnLinks
from parity_models_lab.latency.setting import Bursts, Setting
from parity_models_lab.plots import FAINT, PALETTE, save, style
from parity_models_lab.results import Row, simulated

PREDICTIONS = resources.files("parity_models_lab.latency") / "banking77.json"
"""Banking77's test queries: MiniLM-L3 with a classifier, and the stand-in `parm protect` found."""

LOADS = (0.3, 0.5, 0.7, 0.9, 1.1)
"""Of what all instances carry."""

FRONTIER = (0.5, 0.9)
"""The loads at which gates are swept."""

COVERAGES = (1.0, 0.8, 0.65, 0.45, 0.35, 0.25)
"""The shares of queries that swept gates let pass."""

BOUNDS = (0.01, 0.001, 0.0001)
"""Shares of all answers that may differ from the model's."""

QUANTILES = (0.5, 0.99, 0.999)
WARM_UP = 500

SCENES = {
    "transfers": Setting(),
    "degraded instances": Setting(
        shuffles=0,
        faults=FaultPlan(
            degradation=Degradation(5, 4.0),
            pauses=Pauses(mean_between=90.0, length=Constant(0.5)),
        ),
    ),
    "load in bursts": Setting(shuffles=0, burst=Bursts(3.0, 4.0, 0.6)),
    "transfers, conv-arrivals": Setting(),
    "transfers, code-arrivals": Setting(),
}
"""Kinds of slowness. Arrivals are Poisson but where a scene names a trace."""

RIVALS = "parity_models_lab.latency.rivals"
POLICIES = {
    "no redundancy": ["equal-resources"],
    "hedging": ["hedging", "hedging@hedge-quantile=0.8,hedge-budget=0.3"],
    "adaptive": ["adaptive"],
    "cascade": ["cascade@hedge-quantile=0.8,hedge-budget=0.3"],
    "slackfit": [f"{RIVALS}:SlackFit@objective=50ms"],
    "proteus-like": [f"{RIVALS}:ProteusLike"],
}
"""Policies, with options of which each has the best at each point, in hindsight."""

EXACT = ("no redundancy", "hedging")
"""Policies without a stand-in."""


class Predictions(msgspec.Struct, frozen=True):
    """Predictions for n held-out queries: the stand-in's `confidence`, and whether it `agrees`.

    It takes a `share` of the model's time; `threshold` is its gate's, of the `level`.
    """

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


class Run(msgspec.Struct, frozen=True):
    """A simulation: a policy with its options, a scene, a load, and the gate's threshold."""

    policy: str
    scene: str
    load: float
    threshold: float
    seed: int
    queries: int


Traces = Mapping[str, Sequence[float]]
"""Times of arrivals by scene."""


class Found(msgspec.Struct, frozen=True):
    """What a run found: latencies in seconds, infinite where a query failed."""

    latencies: NDArray[np.float64]
    busy: float
    stood_in: float
    differs: float


def simulate_run(run: Run, traces: Traces) -> Found:
    """Run one simulation; arrivals are Poisson where the scene has no trace."""
    recorded, setting = predictions(), SCENES[run.scene]
    service = setting.mean_service
    count, rng = WARM_UP + run.queries, np.random.default_rng((run.seed, 3))
    rate = run.load * setting.all_instances / service
    if run.scene in traces:
        gaps = np.diff(traces[run.scene])
        arrivals = np.resize(np.roll(gaps, -int(rng.integers(len(gaps)))), count).cumsum()
        arrivals /= rate * gaps.mean()
    elif (burst := setting.burst) is not None:
        rate /= 1 + (burst.factor - 1) * burst.length / burst.every
        arrivals = burst.compress(poisson_arrivals(rate, count, run.seed))
    else:
        arrivals = poisson_arrivals(rate, count, run.seed)
    rows = rng.integers(len(recorded.agrees), size=count)
    simulation = Simulation(
        arrivals,
        setting.instances,
        setting.extra_instances,
        {DEPLOYED: Constant(0.0)},
        faults=msgspec.structs.replace(
            setting.plan(run.seed, 0, setting.all_instances),
            service_times={BACKUP: LogNormal(recorded.share * service, 0.05)},
        ),
        overhead=DISPATCH,
        seed=run.seed,
        warm_up=WARM_UP,
    )
    refused = np.array(recorded.confidence)[rows] < run.threshold
    driver: Callable[..., Drawn] = partial(Drawn, refused, setting.links(run.seed))
    policy = PolicyChoice.parse(run.policy, None).build(StandIns(backup=True))
    result = simulate(simulation, *policy, driver=driver)
    sources = result.sources[WARM_UP:]
    stood_in = sources == SOURCES.index(Source.BACKUP)
    differs = stood_in & (np.array(recorded.agrees)[rows[WARM_UP:]] == 0)
    return Found(
        np.where(sources == FAILED, inf, result.latencies[WARM_UP:]),
        sum(result.busy.values()) / run.queries,
        float(stood_in.mean()),
        float(differs.mean()),
    )


def read_traces(folder: Path) -> dict[str, tuple[float, ...]]:
    """Read the traces of arrivals in a folder, by scene. Raises LoadError where they are not."""
    return {
        scene: tuple(read_trace(str(folder / f"{scene.partition(', ')[2]}.txt")).tolist())
        for scene in SCENES
        if ", " in scene
    }


@dataclass(frozen=True)
class Rivals:
    """All runs of the figure: `seeds` of each, of so many `queries`; traces by scene."""

    seeds: int
    queries: int
    traces: Traces

    def table(self) -> Iterator[tuple[str, list[list[Run]]]]:
        """Yield for each row of the table its policy's name, and runs of each of its candidates."""
        gate = predictions().threshold
        for scene, load, name in product(self._scenes(), LOADS, POLICIES):
            threshold = -inf if name in EXACT else gate
            yield name, [self._runs(each, scene, load, threshold) for each in POLICIES[name]]
            if name == "slackfit":  # its paper has no gate
                ungated = [self._runs(each, scene, load, -inf) for each in POLICIES[name]]
                yield f"{name}, no gate", ungated

    def swept(self) -> Iterator[tuple[str, list[list[Run]]]]:
        """Yield for each point of the frontier and policy its name, and runs of each candidate."""
        gates = [-inf if share == 1 else self._letting_pass(share) for share in COVERAGES]
        for scene, load, name in product(self._scenes(), FRONTIER, POLICIES):
            thresholds = gates[:1] if name in EXACT else gates
            yield (
                name,
                [
                    self._runs(each, scene, load, gate)
                    for each, gate in product(POLICIES[name], thresholds)
                ],
            )

    def all_runs(self) -> list[Run]:
        """Return every run once."""
        every = (
            run
            for _, candidates in chain(self.table(), self.swept())
            for runs in candidates
            for run in runs
        )
        return list(dict.fromkeys(every))

    def _scenes(self) -> list[str]:
        return [each for each in SCENES if ", " not in each or each in self.traces]

    def _letting_pass(self, share: float) -> float:
        return float(np.quantile(predictions().confidence, 1 - share))

    def _runs(self, policy: str, scene: str, load: float, threshold: float) -> list[Run]:
        return [
            Run(policy, scene, load, threshold, seed, self.queries) for seed in range(self.seeds)
        ]

    def run_all(self) -> dict[Run, Found]:
        """Simulate every run."""
        return dict(simulated(partial(simulate_run, traces=self.traces), self.all_runs()))


Outcome = dict[str, Any]
"""A row of results whose times may be infinite."""


def outcome(name: str, runs: Sequence[Run], found: Mapping[Run, Found]) -> Outcome:
    """Return the outcome of a policy's runs that differ in their seed alone.

    Times are in ms, infinite where so many queries failed; "of seeds": the least and the most.
    """
    results, first = [found[run] for run in runs], runs[0]
    latencies = 1e3 * np.concatenate([each.latencies for each in results])
    p50, p99, p999 = np.quantile(latencies, QUANTILES, method="higher").round(2).tolist()
    tails = [float(1e3 * np.quantile(e.latencies, 0.999, method="higher")) for e in results]
    differ = [each.differs for each in results]
    return {
        "scene": first.scene,
        "load": first.load,
        "policy": name,
        "p50": p50,
        "p99": p99,
        "p99.9": p999,
        "p99.9 of seeds": [round(min(tails), 2), round(max(tails), 2)],
        "busy": round(1e3 * float(np.mean([each.busy for each in results])), 2),
        "not F's": round(float(np.mean([each.stood_in for each in results])), 4),
        "differ": round(float(np.mean(differ)), 6),
        "differ of seeds": [round(min(differ), 6), round(max(differ), 6)],
        "failed": round(float(np.isinf(latencies).mean()), 5),
        "options": first.policy.partition("@")[2],
    }


def table_rows(plan: Rivals, found: Mapping[Run, Found]) -> Iterator[Row]:
    """Yield the rows of the table, each with the options of the shortest p99.9."""
    for name, candidates in plan.table():
        yield _known(min((outcome(name, runs, found) for runs in candidates), key=_tail))


def frontier_rows(plan: Rivals, found: Mapping[Run, Found]) -> Iterator[Row]:
    """Yield, for each policy and bound on the answers that differ, its shortest p99.9 and its least
    busy time within the bound."""
    for name, candidates in plan.swept():
        ran = [outcome(name, runs, found) for runs in candidates]
        for bound in BOUNDS:
            within = [each for each in ran if each["differ"] <= bound]
            if within:
                cheap = min(within, key=lambda each: each["busy"])
                more = {"differ at most": bound, "least busy": cheap["busy"]}
                yield _known(min(within, key=_tail) | more)


def _tail(row: Outcome) -> tuple[float, float]:
    return row["p99.9"], row["p99"]


def _known(row: Outcome) -> Row:
    """Return the row with None in place of infinite times."""
    return {
        name: [None if each == inf else each for each in value]
        if isinstance(value, list)
        else (None if value == inf else value)
        for name, value in row.items()
    }


def plot(file: Path, plan: Rivals, rows: Sequence[Row]) -> None:
    """Draw p99.9 and busy time against the bound, a column for each scene and load."""
    points = list(dict.fromkeys((row["scene"], row["load"]) for row in rows))
    shown = [point for point in points if point[1] == FRONTIER[0]]
    with style():
        figure = Figure(figsize=(3.2 * len(shown) + 1.6, 6.4), dpi=120, layout="constrained")
        panels = figure.subplots(2, len(shown), squeeze=False, sharex=True)
        for column, point in enumerate(shown):
            for axes, value in zip(panels[:, column], ("p99.9", "least busy"), strict=True):
                for name, colour in zip(POLICIES, PALETTE, strict=False):
                    here = [
                        row
                        for row in rows
                        if (row["scene"], row["load"]) == point and row["policy"] == name
                    ]
                    xs, ys = ([row[each] for row in here] for each in ("differ at most", value))
                    axes.plot(xs, ys, "o-", color=colour, label=name)
                axes.set_xscale("log")
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(ScalarFormatter())
                axes.yaxis.set_minor_formatter(ScalarFormatter())
                axes.tick_params(axis="y", which="both", labelsize=8)
                axes.spines[["top", "right"]].set_visible(False)
                axes.grid(color=FAINT, alpha=0.2, linewidth=0.5)
            panels[0][column].set_title(f"{point[0]}, load {point[1]:.0%}", loc="left", fontsize=9)
            panels[1][column].set_xlabel("share of answers that may differ")
        panels[0][0].set_ylabel("shortest p99.9, ms")
        panels[1][0].set_ylabel("least busy time a query, ms")
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper")
        save(figure, file, f"Simulated, {plan.seeds} seeds of {plan.queries:,} queries each.")

"""The commands `latency`, which runs the paper's figures and ours, and `validation`, which says how
far simulated and real runs are apart."""

import asyncio
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import cycle, product
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import ScalarFormatter
from msgspec.structs import replace

from parity_models.options import option
from parity_models.progress import Progress, progress_bars
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources
from parity_models.simulation.emulation import Constant
from parity_models_lab.contention import ContentionError, check_privileges
from parity_models_lab.latency.figure import FIGURES, Figure, Series, load_figure
from parity_models_lab.latency.trial import (
    PERCENTILES,
    SHARES,
    Mode,
    Setting,
    Trial,
    TrialResult,
    run_real,
    simulate_trial,
)
from parity_models_lab.plots import FAINT, PALETTE, save, tail_axes
from parity_models_lab.results import (
    INVALID,
    OutFolder,
    ResultCache,
    Row,
    Seed,
    Work,
    check_out,
    code_digest,
    report,
    simulated,
)

TUNING = 50_000
"""Queries of a simulation by which options are chosen, at most."""

SEND_DELAY_MS = 1.0
"""Maximum p99 of how late a load generator sends."""

LAG = 0.1
"""Maximum mean time that reports wait for the server, as a share of the service time."""

NOTE = (
    "Lines are simulated, marks are real runs; p50 solid and round, p99.9 dashed and triangular. "
    "Distributions: real ones solid, simulated ones dashed."
)


def latency(
    figure: list[str] | None = option(
        None,
        f"One of {', '.join(FIGURES)}, or a figure's file of yours; may be given several "
        "times. By default all but those that take long.",
        metavar="FIGURE",
    ),
    out: OutFolder = Path("lab/results/latency"),
    work: Work = Path("runs/latency"),
    simulate: bool = option(
        False, "Only simulate. Real runs, through shaped links, take root and iproute2."
    ),
    seed: Seed = 0,
) -> None:
    """Run the latency figures, for real and simulated.

    Real runs have this machine's scale, simulated ones the paper's. Every policy of a point meets
    the same arrivals and the same contention. Writes FIGURE.json and FIGURE.png for each. An
    interrupted run goes on where it stopped.
    """
    loaded = {name: load_figure(name) for name in figure or FIGURES}
    figures = {name: each for name, each in loaded.items() if figure or not each.apart}
    if not simulate:
        try:
            check_privileges()
        except ContentionError:
            simulate = True
    check_out(out)
    trials = Trials(work)
    for name, each in figures.items():
        cells = run_figure(each, trials, seed, real=() if simulate else each.real)
        stem = f"{Path(name).stem}{f'-seed-{seed}' if seed else ''}"
        queries = {"real": each.real_queries, "simulated": each.simulated_queries}
        rows = list(rows_of(each, cells))
        report(each.title, rows, out / f"{stem}.json", figure=name, queries=queries)
        draw(each, cells, out / f"{stem}.png")


class Trials:
    """Runs trials; keeps the results of this code, and the bundles served, in a folder."""

    def __init__(self, work: Path) -> None:
        self._cache, self._bundles = ResultCache(work / "trials"), work / "bundles"

    def run(self, trials: Sequence[Trial]) -> list[TrialResult]:
        """Return the results, after running those without: the simulated on all cores, then the
        real in turn."""
        contents = [msgspec.json.encode(trial, order="sorted") for trial in trials]
        keys = [f"{sha256(each).hexdigest()[:24]}-{code_digest()}" for each in contents]
        found: dict[str, TrialResult] = {}
        to_run: dict[Mode, dict[str, Trial]] = {"simulated": {}, "real": {}}
        for key, trial in zip(keys, trials, strict=True):
            if (result := self._cache.get(key, TrialResult)) is None:
                to_run[trial.mode][key] = trial
            else:
                found[key] = result
        for key, result in simulated(simulate_trial, to_run["simulated"]):
            self._cache.put(key, result)
            found[key] = result
        real = to_run["real"]
        with progress_bars() as bars:
            for done, (key, trial) in enumerate(real.items()):
                bars.on_progress(Progress("real", done, len(real)))
                found[key] = asyncio.run(run_real(trial, self._bundles))
                self._cache.put(key, found[key])
        return [found[key] for key in keys]


@dataclass(frozen=True)
class Cell:
    """A run of a series at a point; `label` names the series, with its tuned options there."""

    series: Series
    label: str
    point: int
    trial: Trial
    result: TrialResult


def run_figure(figure: Figure, trials: Trials, seed: int, *, real: Collection[int]) -> list[Cell]:
    """Run a figure, simulated at all its points, and for real at those in `real`.

    A tuned series has the options with which simulations are best at a point; options with which
    queries fail are worse than all others.
    """
    points = range(len(figure.points))

    def trial(
        mode: Mode, series: Series, point: int, policy: PolicyChoice, most: int = sys.maxsize
    ) -> Trial:
        queries = figure.real_queries if mode == "real" else figure.simulated_queries
        return Trial(
            mode=mode,
            setting=figure.at(point, series),
            policy=policy,
            queries=min(queries, most),
            warm_up=figure.warm_up,
            seed=seed,
        )

    tuning = [
        (series, point, trial("simulated", series, point, policy, TUNING))
        for series, point in product(figure.series, points)
        for policy in (series.candidates if series.tuned else ())
    ]
    chosen: dict[tuple[str, int], tuple[tuple[float, float], PolicyChoice]] = {}
    tried_out = trials.run([one for *_, one in tuning])
    for (series, point, tried), result in zip(tuning, tried_out, strict=True):
        place, score = (series.label, point), (result["failed"], result[series.tuned_by])
        if place not in chosen or score < chosen[place][0]:
            chosen[place] = score, tried.policy
    planned = []
    for mode, point, series in product(get_args(Mode), points, figure.series):
        if mode == "simulated" or (point in real and series.real):
            _, policy = chosen.get((series.label, point)) or (0, series.candidates[0])
            options = policy.written_out()
            said = ", ".join(f"{name}={options[name]}" for name in series.tuned)
            label = f"{series.label} ({said})" if said else series.label
            planned.append((series, label, point, trial(mode, series, point, policy)))
    results = trials.run([one for *_, one in planned])
    return [Cell(*each, result) for each, result in zip(planned, results, strict=True)]


def rows_of(figure: Figure, cells: Sequence[Cell]) -> Iterator[Row]:
    """Yield a row for each run; times in ms. `shrinks` is the first series' gap divided by this
    one's."""
    first = {(c.point, c.trial.mode): c.result for c in cells if c.series is figure.series[0]}
    for cell in cells:
        result, baseline = cell.result, first.get((cell.point, cell.trial.mode))
        yield {
            figure.axis: figure.labels[cell.point],
            "policy": cell.label,
            "run": cell.trial.mode,
            **result.row,
            "shrinks": None if baseline is None else baseline["gap"] / result["gap"],
            INVALID: why_invalid(result, cell.trial.setting),
        }


def why_invalid(result: TrialResult, setting: Setting) -> str:
    """Return why a run says nothing of its policy, as generator or server was too late; empty if it
    is valid."""
    if result["send delay"] > SEND_DELAY_MS:
        return "the load generator was late"
    if result["lag"] > LAG * setting.mean_service * 1e3:
        return "the server was its own bottleneck"
    return ""


def draw(figure: Figure, cells: Sequence[Cell], path: Path) -> None:
    """Write a PNG: p50 (solid) and p99.9 (dashed) along the axis, and the distributions at the last
    point that was run for real. Lines are simulated, and dashes where points are words."""
    real = [cell.point for cell in cells if cell.trial.mode == "real"]
    shown = max(real, default=len(figure.points) - 1)
    looks = {"real": ("o", "^"), "simulated": ("_", "_") if figure.in_words else ("-", "--")}
    picture = Picture(figsize=(13.5, 4.8), dpi=140, layout="constrained")
    along, across = picture.subplots(1, 2, width_ratios=(1.35, 1))
    for series, colour in zip(figure.series, cycle(PALETTE), strict=False):
        for mode, marks in looks.items():
            here = [c for c in cells if c.series is series and c.trial.mode == mode]
            xs = [cell.point for cell in here]
            for look, of in zip(marks, ("p50", "p99.9"), strict=True):
                ys, size = [c.result[of] for c in here], 16 if look == "_" else None
                along.plot(xs, ys, look, color=colour, ms=size, mew=2)
            for cell in here:
                if cell.point == shown:
                    dashed = mode == "simulated" and bool(real)
                    quantiles, look = cell.result.quantiles_ms, "--" if dashed else "-"
                    across.plot(quantiles, 1 - np.asarray(SHARES), look, color=colour)
        along.plot([], [], "-", color=colour, label=series.label)
    along.set_yscale("log")
    along.yaxis.set_major_formatter(ScalarFormatter())
    along.yaxis.set_minor_formatter(ScalarFormatter())
    along.tick_params(axis="y", which="both", labelsize=8)
    along.set_xticks(range(len(figure.points)), figure.labels)
    along.set_xlabel(figure.axis)
    along.set_ylabel("latency in ms")
    along.set_title(figure.title, loc="left", fontweight="bold")
    tail_axes(across, 2e-4)
    across.set_xlim(left=0)
    across.set_xlabel(f"latency in ms, at {figure.axis} = {figure.labels[shown]}")
    across.set_title("share of queries that took longer", loc="left")
    for axes in (along, across):
        axes.grid(color=FAINT, alpha=0.2, linewidth=0.5)
    save(picture, path, NOTE)


# Validation


def validation(
    figure: str = option("validation", "The figure whose policies are run.", metavar="FIGURE"),
    queries: int = option(20_000, "Queries of each run.", ge=100),
    out: OutFolder = Path("lab/results"),
    work: Work = Path("runs/latency"),
    seed: Seed = 0,
) -> None:
    """Compare the simulator with real runs, policy by policy.

    Real shuffles go through shaped links, which need root and iproute2. The overheads of the real
    system are measured first. Writes FIGURE.json.
    """
    loaded = load_figure(figure)
    check_out(out)
    rows, overheads = compare(loaded, queries, Trials(work), seed)
    file = out / f"{Path(figure).stem}.json"
    report(loaded.title, rows, file, queries=queries, overheads=overheads)
    report("Overheads of serving, in ms", overheads, None)


def compare(figure: Figure, queries: int, trials: Trials, seed: int) -> tuple[list[Row], list[Row]]:
    """Run the policies of a figure at its points, for real and then simulated.

    Return a row for each point and policy, with latencies in ms and errors as shares of the real
    ones; and by point the overheads of serving that are not simulated, in ms: how much longer a
    unit holds its instance, and quantiles of the time of answers outside.
    """
    series = tuple(replace(each, real=True) for each in figure.series)
    figure = replace(figure, real_queries=queries, series=series)
    cells = run_figure(figure, trials, seed, real=range(len(figure.points)))
    rows: list[Row] = []
    overheads: list[Row] = []
    for point, label in enumerate(figure.labels):
        real = [cell for cell in cells if cell.point == point and cell.trial.mode == "real"]
        calm = calm_trial(real[0].trial)
        held, outside = overheads_between(*trials.run([calm, replace(calm, mode="simulated")]))
        more = {"mode": "simulated", "held_ms": held, "outside_ms": outside}
        simulated = trials.run([replace(cell.trial, **more) for cell in real])
        for cell, result in zip(real, simulated, strict=True):
            rows.append({"at": label, "policy": cell.series.label, **off(cell.result, result)})
        quantiles = np.interp(list(PERCENTILES.values()), SHARES, outside).tolist()
        outside_at = {f"outside {n}": q for n, q in zip(PERCENTILES, quantiles, strict=True)}
        rate = calm.setting.queries_per_second
        overheads.append({"at": label, "rate": rate, "held": held, **outside_at})
    return rows, overheads


def off(real: TrialResult, simulated: TrialResult) -> dict[str, float]:
    """Return the latencies of both, and the errors of the simulated ones."""
    row: dict[str, float] = {}
    for each in PERCENTILES:
        row[f"{each} real"], row[f"{each} simulated"] = real[each], simulated[each]
        row[f"{each} off"] = simulated[each] / real[each] - 1
    return row


def calm_trial(trial: Trial) -> Trial:
    """Return a trial at the rate of `trial`, over its links if it has any, without redundancy,
    disturbances, or chance in service."""
    calm = Setting(
        instances=trial.setting.instances,
        k=trial.setting.k,
        rate=trial.setting.queries_per_second,
        service=Constant(trial.setting.mean_service),
        shuffles=0,
        quiet_links=bool(trial.setting.shuffles),
    )
    return replace(trial, setting=calm, policy=PolicyChoice(EqualResources.name))


def overheads_between(real: TrialResult, simulated: TrialResult) -> tuple[float, tuple[float, ...]]:
    """Return by how much a calm trial's real result exceeds its simulation, in ms: the time that a
    unit holds its instance, and that answers spend outside of it, at SHARES."""
    held = max(0.0, real["busy"] - simulated["busy"])
    outside = np.maximum(0, np.array(real.quantiles_ms) - simulated["p50"] - held)
    return held, tuple(outside.tolist())

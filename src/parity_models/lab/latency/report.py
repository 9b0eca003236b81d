"""The report of the latency figures, as Markdown: what was run, the tables, the pictures."""

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from parity_models.lab.latency.figures import Line
from parity_models.lab.latency.reproduce_latency import FigureResult, Plan
from parity_models.lab.latency.targets import collapses, targets
from parity_models.lab.latency.trial import SHARES, Emulation, Mode, Trial, TrialResult
from parity_models.scheduling import Source

LIBRARIES = ("parity-models", "numpy", "onnxruntime", "pyzmq", "simpy")


def write_report(path: Path, results: Sequence[FigureResult], command: str) -> None:
    """Write the report; the pictures are in the folder beside it that has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_report(path, results, command)) + "\n")


CONTENTION = ("shuffles", "tenants", "hogs", "pause_every", "kill_every")
"""What a setting says of contention."""

CLOSE = 0.15
"""How far a simulated percentile may be from the real one."""


@dataclass(frozen=True)
class Compared:
    """A policy, run for real and simulated."""

    label: str
    real: TrialResult
    simulated: TrialResult


def write_validation(
    path: Path, trial: Trial, outside: Sequence[float], compared: Sequence[Compared], command: str
) -> None:
    """Write how far the simulator is from real runs like `trial`.

    `outside` is what an answer takes besides queue and instance, quantiles at SHARES in ms.
    """
    setting = trial.setting
    p50, p99, p999 = np.interp([0.5, 0.99, 0.999], SHARES, outside)
    contention = [
        f"{kind} {getattr(setting, kind):g}" for kind in CONTENTION if getattr(setting, kind)
    ]
    lines = [
        "# The simulator against real runs\n",
        *provenance(command),
        f"{setting.instances} + {setting.parity_instances} instances, "
        f"{setting.queries_per_second:.0f} queries per second, {trial.queries:,} queries a "
        f"run; {', '.join(contention) or 'no contention'}. Both have the same arrivals, and the "
        "same course of drawn disturbances in time; the real runs have processes, sockets, an "
        "HTTP server and a client besides. Latencies in ms.\n",
        "What the real system adds to queue and service time was measured beforehand, without "
        f"redundancy or disturbances: {p50:.1f} at the median, {p99:.1f} at "
        f"p99, {p999:.1f} at p99.9. Simulated answers take a time drawn from those "
        "longer.\n",
        f"| policy | p50 real | simulated | off | p99 real | simulated | off | p99.9 real "
        f"| simulated | off | all within {CLOSE:.0%} |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in compared:
        cells, close = [each.label], True
        for of in ("p50_ms", "p99_ms", "p999_ms"):
            real, simulated = getattr(each.real, of), getattr(each.simulated, of)
            off = simulated / real - 1
            close &= abs(off) <= CLOSE
            cells += [f"{real:.1f}", f"{simulated:.1f}", f"{off:+.0%}"]
        lines.append(f"| {' | '.join(cells)} | {'yes' if close else '**no**'} |")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def provenance(command: str) -> Iterator[str]:
    """What was run, when, and on what."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    yield f"`{command}`, {date.today().isoformat()}, on {os.cpu_count()} cores"
    yield f"({platform.machine()}, Python {platform.python_version()}, {versions}).\n"


def emulated(plan: Plan) -> str:
    """What is real in a figure's real trials and what is not, for people."""
    settings = [trial.setting for trial in plan.all_trials() if trial.mode is Mode.REAL]
    if plan.network is None or not settings:
        return "Everything here is simulated."
    said = ["Real runs have worker processes, ONNX Runtime, a server and an open-loop client."]
    if not all(setting.computing for setting in settings):
        said.append(
            "Emulated is the accelerator (each unit takes a drawn service time, holding no core)."
        )
    if any(setting.computing for setting in settings):
        said.append(
            "Where cores are busy, the model's computing is emulated (each unit computes for a "
            "drawn time)."
        )
    if any(setting.shuffles for setting in settings):
        said.append(_SHUFFLES[plan.network])
    said += [
        words
        for field, words in _CONTENTION.items()
        if any(getattr(setting, field) for setting in settings)
    ]
    return " ".join(said)


_SHUFFLES = {
    Emulation.NOTHING: "Background shuffles are real transfers between network namespaces, through "
    "the shaped links that queries take.",
    Emulation.SHUFFLES: "Background shuffles are drawn delays in the workers.",
}

_CONTENTION = {
    "tenants": "The other tenant is a real deployment with its own workers; accelerators it shares "
    "are locks.",
    "hogs": "Hogs are real processes on the cores that workers are pinned to.",
    "pause_every": "Pauses are SIGSTOP and SIGCONT to workers.",
    "kill_every": "Kills are kill -9 of workers.",
}


def _report(path: Path, results: Sequence[FigureResult], command: str) -> Iterator[str]:
    yield "# Tail latency\n"
    yield from provenance(command)
    yield "All policies of a point have the same number of instances, the same arrivals and the"
    yield "same disturbances, from the same seed. Latencies are in ms, from the scheduled send; the"
    yield "*gap* is p99.9 - p50, and *shrinks* is equal resources' gap divided by this one's."
    yield "*work* is how many units ran for each query, all models together; *send* is how late"
    yield "the load generator sent, at p99. In the pictures lines are simulated and marks are real;"
    yield "p50 solid and round, p99.9 dashed and triangular. In the distributions beside them what"
    yield "is real is solid, and what is simulated is dashed where there is a real run, else solid."
    yield "Simulated runs meet drawn equivalents of the contention.\n"
    yield "## Targets\n"
    yield "| what | wanted | measured | met |"
    yield "|---|---|---|---|"
    for target in targets(results):
        met = {True: "yes", False: "**no**", None: ""}[target.met]
        yield f"| {target.what} | {target.wanted} | {target.measured} | {met} |"
    yield ""
    for result in results:
        yield from _figure(path, result)


def _figure(path: Path, result: FigureResult) -> Iterator[str]:
    plan = result.plan
    experiment = plan.experiment
    real = [here for line in result.lines for here in line.real if here is not None]
    simulated = [here for line in result.lines for here in line.simulated if here is not None]
    yield f"## {experiment.title}\n"
    yield f"![{experiment.title}]({path.stem}/{plan.name}.png)\n"
    dates = sorted({here.date for here in (*real, *simulated)})
    yield f"`{plan.command}`, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}. {emulated(plan)}"
    longest, largest = (
        max(getattr(here, of) or 0 for here in simulated) for of in ("seconds", "memory_mb")
    )
    yield f"The longest simulation took {longest:,.0f} s of a core; a process had {largest:,.0f} MB"
    yield "at most."
    if experiment.axis == "load" and len(experiment.points) > 2:
        yield collapses(result)
    yield ""
    if real:
        yield f"Real, {plan.queries(Mode.REAL):,} queries a run:\n"
        yield from _table(result, [line.real for line in result.lines], "send")
    yield f"Simulated, {plan.queries(Mode.SIMULATED):,} queries a run:\n"
    yield from _table(result, [line.simulated for line in result.lines], "work")


def _table(
    result: FigureResult, columns: Sequence[Sequence[TrialResult | None]], last: str
) -> Iterator[str]:
    axis = result.plan.experiment.axis
    yield (
        f"| {axis} | policy | p50 | p99 | p99.9 | gap | shrinks | reconstructed | failed | {last} |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for point, label in enumerate(result.plan.experiment.labels):
        baseline = columns[0][point]
        for line, results in zip(result.lines, columns, strict=True):
            here = results[point]
            if here is not None:
                yield _row(label, line, here, baseline)
    yield ""


def _row(label: str, line: Line, here: TrialResult, baseline: TrialResult | None) -> str:
    shrinks = f"{baseline.gap_ms / here.gap_ms:.2f}x" if baseline else ""
    last = here.work or here.send_delay_p99_ms or 0.0
    return (
        f"| {label} | {line.label} | {here.p50_ms:.1f} | {here.p99_ms:.1f} | {here.p999_ms:.1f} "
        f"| {here.gap_ms:.1f} | {shrinks} | {here.share(Source.RECONSTRUCTION):.1%} "
        f"| {here.errors} | {last:.2f} |"
    )

"""The report of the latency figures, as Markdown: what was run, the tables, the pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from parity_models.scheduling import Source
from parity_models.simulation.trial import PARTS, Emulation, Mode, TrialResult
from parity_models_lab.latency.experiment import Picture
from parity_models_lab.latency.frontier import said
from parity_models_lab.latency.kept import NEAR, calm_point, kept
from parity_models_lab.latency.latency_targets import collapses, targets
from parity_models_lab.latency.reproduce_latency import FigureResult, Plan
from parity_models_lab.report_page import provenance, targets_table


def write_report(path: Path, results: Sequence[FigureResult], command: str) -> None:
    """Write the report; the pictures are in the folder beside it that has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_report(path, results, command)) + "\n")


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
    yield "*busy* is how long instances were busy for each query, in ms, all models together, and"
    yield "*work* how many units ran for it, to their end or until they were cancelled;"
    yield "*send* is how late the load generator sent, at p99. *kept*: of the run's"
    yield f"{PARTS} parts, in how many p99 is at most {NEAR:g} times equal resources' undisturbed."
    yield "In the pictures lines are simulated and marks are real;"
    yield "p50 solid and round, p99.9 dashed and triangular. In the distributions beside them what"
    yield "is real is solid, and what is simulated is dashed where there is a real run, else solid."
    yield "Simulated runs meet the same transfers over simulated links, and drawn equivalents of"
    yield "other contention.\n"
    yield from targets_table(targets(results))
    yield ""
    yield "## Figures\n"
    yield "| figure | command |"
    yield "|---|---|"
    for result in results:
        yield f"| {result.plan.experiment.title} | `{result.plan.command}` |"
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
    if experiment.picture is Picture.COST:
        yield from said(result.lines, experiment.axis, experiment.labels)
    if real:
        yield f"Real, {plan.queries(Mode.REAL):,} queries a run:\n"
        yield from _table(result, [line.real for line in result.lines], "send")
    yield f"Simulated, {plan.queries(Mode.SIMULATED):,} queries a run:\n"
    yield from _table(result, [line.simulated for line in result.lines], "work")


def _table(
    result: FigureResult, columns: Sequence[Sequence[TrialResult | None]], last: str
) -> Iterator[str]:
    experiment = result.plan.experiment
    headings = [experiment.axis, "policy", "p50", "p99", "p99.9", "gap", "shrinks"]
    headings += ["kept"] * bool(experiment.undisturbed) + ["reconstructed", "failed", "busy", last]
    yield f"| {' | '.join(headings)} |"
    yield "|---" * len(headings) + "|"
    for point, label in enumerate(experiment.labels):
        baseline = columns[0][point]
        calm_at = calm_point(experiment.undisturbed, point)
        calm = None if calm_at is None else columns[0][calm_at]
        for line, results in zip(result.lines, columns, strict=True):
            here = results[point]
            if here is None:
                continue
            cells = [label, line.label_at(point), *_latencies(here, baseline)]
            if experiment.undisturbed:
                cells.append("" if calm is None else f"{kept(here, calm):.0%}")
            yield f"| {' | '.join([*cells, *_costs(here)])} |"
    yield ""


def _latencies(here: TrialResult, baseline: TrialResult | None) -> list[str]:
    shrinks = f"{baseline.gap_ms / here.gap_ms:.2f}x" if baseline else ""
    in_ms = (here.p50_ms, here.p99_ms, here.p999_ms, here.gap_ms)
    return [*(f"{ms:.1f}" for ms in in_ms), shrinks]


def _costs(here: TrialResult) -> list[str]:
    last = here.work or here.send_delay_p99_ms or 0.0
    return [
        f"{here.share(Source.RECONSTRUCTION):.1%}",
        f"{here.errors}",
        f"{here.busy_ms or 0:.1f}",
        f"{last:.2f}",
    ]

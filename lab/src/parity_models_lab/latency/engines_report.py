"""The report of one experiment on several engines, as Markdown and a picture."""

from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from parity_models.scheduling import Source
from parity_models.simulation.course import SHARES
from parity_models.simulation.trial import Mode, TrialResult
from parity_models_lab.latency.engines import WHAT
from parity_models_lab.latency.figures import PALETTE
from parity_models_lab.latency.reproduce_latency import FigureResult
from parity_models_lab.plots import FAINT, INK
from parity_models_lab.report_page import provenance

WANTED = 2.0
"""How many times smaller than equal resources' the gap of a parity policy is to be."""


def write_engines(path: Path, results: Mapping[str, FigureResult], command: str) -> None:
    """Write the report of results by engine, and its picture into the folder beside it that has its
    name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = path.with_suffix("") / "latency.png"
    _draw(picture, results)
    path.write_text("\n".join(_report(path, picture, results, command)) + "\n")


def _report(
    path: Path, picture: Path, results: Mapping[str, FigureResult], command: str
) -> Iterator[str]:
    first = next(iter(results.values()))
    plan = first.plan
    setting = plan.experiment.at(plan.experiment.real[0], plan.experiment.series[0])
    yield "# One experiment on every engine\n"
    yield from provenance(command)
    yield f"The experiment `{plan.figure}`, {plan.queries(Mode.REAL):,} queries a run at"
    yield f"{setting.queries_per_second:.0f} a second, on {setting.instances} +"
    yield f"{setting.parity_instances} instances whose accelerators are emulated: a unit takes a"
    yield "drawn service time and drawn delays, and holds no core. Every run has the same arrivals"
    yield "and the same course of disturbances (on Ray each instance's begins when it starts)."
    yield "Latencies in ms, from the scheduled send; the *gap* is p99.9 - p50, *shrinks* is equal"
    yield f"resources' gap divided by this one's, and is to be {WANTED:g} or more; *send* is how"
    yield "late the load generator sent, at p99; *busy* is how long instances were busy for each"
    yield "query (Ray does not tell).\n"
    yield from (
        f"- **{engine}**: {WHAT.get(engine, 'an engine of your own')}" for engine in results
    )
    yield f"\n![{plan.experiment.title}]({picture.relative_to(path.parent)})\n"
    yield (
        f"| {plan.experiment.axis} | engine | policy | p50 | p99 | p99.9 | gap | shrinks | met "
        "| reconstructed | failed | accuracy | busy | send |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for point in plan.experiment.real:
        for engine, result in results.items():
            baseline = result.lines[0].real[point]
            for line in result.lines:
                here = line.real[point]
                if here is not None and baseline is not None:
                    names = (plan.experiment.labels[point], engine, line.label)
                    yield _row(names, here, baseline)


def _row(names: tuple[str, ...], here: TrialResult, baseline: TrialResult) -> str:
    shrinks = baseline.gap_ms / here.gap_ms
    busy = "" if here.busy_ms is None else f"{here.busy_ms:.1f}"
    met = "" if here is baseline else "yes" if shrinks >= WANTED else "**no**"
    return (
        f"| {' | '.join(names)} | {here.p50_ms:.1f} | {here.p99_ms:.1f} | {here.p999_ms:.1f} "
        f"| {here.gap_ms:.1f} | {shrinks:.2f}x | {met} | {here.share(Source.RECONSTRUCTION):.1%} "
        f"| {here.errors} | {here.accuracy or 0:.2%} | {busy} | {here.send_delay_p99_ms or 0:.2f} |"
    )


def _draw(path: Path, results: Mapping[str, FigureResult]) -> None:
    """A panel for each engine: the share of queries that took longer, at the last real point."""
    with mpl.rc_context({"font.size": 10, "axes.edgecolor": FAINT, "text.color": INK}):
        figure = Figure(figsize=(4 * len(results), 4), dpi=140, layout="constrained")
        panels = figure.subplots(1, len(results), squeeze=False, sharex=True, sharey=True)[0]
        for axes, (engine, result) in zip(panels, results.items(), strict=True):
            for line, colour in zip(result.lines, cycle(PALETTE), strict=False):
                here = line.real[result.plan.experiment.real[-1]]
                if here is not None:
                    longer = 1 - np.asarray(SHARES)
                    axes.plot(here.quantiles_ms, longer, color=colour, label=line.label)
            axes.set_yscale("log")
            axes.set_ylim(2e-4, 1)
            axes.set_xlim(left=0)
            axes.yaxis.set_major_locator(FixedLocator([1, 0.1, 0.01, 0.001]))
            axes.yaxis.set_major_formatter(FixedFormatter(["100 %", "10 %", "1 %", "0.1 %"]))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_title(engine, loc="left", fontweight="bold")
            axes.set_xlabel("latency in ms")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color=FAINT, alpha=0.2, linewidth=0.5)
        panels[0].set_ylabel("share of queries that took longer")
        panels[-1].legend(loc="upper right", fontsize=8, edgecolor="none", framealpha=0.8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)

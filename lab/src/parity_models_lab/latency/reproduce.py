"""The command `latency`: the paper's figures, and ours, as tables, as JSON and as pictures."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import StrEnum, auto
from itertools import cycle
from pathlib import Path
from typing import Annotated

import numpy as np
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import ScalarFormatter

from parity_models.options import Option
from parity_models_lab.contention import ContentionError
from parity_models_lab.contention.network import check_privileges
from parity_models_lab.latency.figure import Figure, figure_names, figures_of, load_figure
from parity_models_lab.latency.runs import Cell, Out, Seed, Trials, Work, run_figure
from parity_models_lab.latency.setting import Setting
from parity_models_lab.latency.trial import SHARES, TrialResult
from parity_models_lab.plots import FAINT, PALETTE, save, style, tail_axes
from parity_models_lab.results import INVALID, Row, check_out, report

SEND_DELAY_MS = 1.0
"""Maximum p99 of how late a load generator sends."""

LAG = 0.1
"""Maximum mean time that reports wait for the server, as a share of the service time."""

NOTE = (
    "Lines are simulated, marks are real runs; p50 solid and round, p99.9 dashed and triangular. "
    "Distributions: real ones solid, simulated ones dashed beside them."
)


class Links(StrEnum):
    """Links of real runs; without any, nothing is run for real."""

    SHAPED = auto()
    NONE = auto()


def latency(
    figure: Annotated[
        list[str] | None,
        Option(
            f"One of {', '.join(figure_names())}, a figure's file of yours, or all "
            "(but those that take long); may be given several times.",
            metavar="FIGURE",
        ),
    ] = None,
    out: Out = Path("lab/results/latency"),
    work: Work = Path("runs/latency"),
    network: Annotated[
        Links | None,
        Option(
            "shaped (real runs, shuffles through shaped links; needs root and iproute2) or none "
            "(simulate only). By default shaped where that can be.",
        ),
    ] = None,
    speed: Annotated[
        float,
        Option(
            "The share of two cores' time for the server and its workers: in real runs by a "
            "quota (root and cgroup v1). 0: no quota, and simulated servers take no time.",
            at_least=0,
            at_most=1,
        ),
    ] = 0.0,
    seed: Seed = 0,
) -> None:
    """Run the latency figures, for real and simulated.

    Real runs have this machine's scale, simulated ones the paper's. Every policy of a point meets
    the same arrivals and the same contention. Writes FIGURE.json and FIGURE.png for each. An
    interrupted run goes on where it stopped.
    """
    figures = {name: load_figure(name) for name in figures_of(list(figure or ["all"]))}
    if network is None:
        with suppress(ContentionError):
            check_privileges()
            network = Links.SHAPED
    check_out(out)
    trials = Trials(work)
    for name, each in figures.items():
        real = each.real if network is Links.SHAPED else ()
        cells = run_figure(each, trials, seed, real=real, speed=speed)
        at_speed, of_seed = f"-speed-{speed:g}" if speed else "", f"-seed-{seed}" if seed else ""
        stem = f"{Path(name).stem}{at_speed}{of_seed}"
        queries = {"real": each.real_queries, "simulated": each.simulated_queries}
        rows = list(rows_of(each, cells))
        report(each.title, rows, out / f"{stem}.json", figure=name, queries=queries)
        draw(each, cells, out / f"{stem}.png")


def rows_of(figure: Figure, cells: Sequence[Cell]) -> Iterator[Row]:
    """Yield a row for each run; times in ms.

    `shrinks` is the first series' gap divided by this one's.
    """
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
    """Write a PNG: p50 (solid) and p99.9 (dashed) along the axis, and distributions at one point.

    Lines are simulated, markers are real runs; where points are words, dashes are simulated. The
    distributions are those at the last point that was run for real, if any.
    """
    real = [cell.point for cell in cells if cell.trial.mode == "real"]
    shown = max(real, default=len(figure.points) - 1)
    looks = {"real": ("o", "^"), "simulated": ("_", "_") if figure.in_words else ("-", "--")}
    with style():
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
        handles = along.get_legend_handles_labels()
        picture.legend(*handles, loc="outside right upper", fontsize=8, frameon=False)
        tail_axes(across, 2e-4)
        across.set_xlim(left=0)
        across.set_xlabel(f"latency in ms, at {figure.axis} = {figure.labels[shown]}")
        across.set_title("share of queries that took longer", loc="left")
        along.spines[["top", "right"]].set_visible(False)
        for axes in (along, across):
            axes.grid(color=FAINT, alpha=0.2, linewidth=0.5)
        save(picture, path, NOTE)

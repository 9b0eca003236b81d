"""The report of the latency figures, as Markdown: what was run, the tables, the pictures."""

import os
import platform
from collections.abc import Iterator, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from parity_models.bench.figures import Line
from parity_models.bench.reproduce_latency import FigureResult
from parity_models.bench.trial import Network, Trial, TrialResult

LIBRARIES = ("parity-models", "numpy", "onnxruntime", "pyzmq", "simpy")


def write_report(path: Path, results: Sequence[FigureResult], command: str) -> None:
    """Write the report; the pictures are in the folder beside it that has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_report(path, results, command)) + "\n")


def write_validation(
    path: Path, pairs: Sequence[tuple[str, Trial, TrialResult, TrialResult]], command: str
) -> None:
    """Write how far the simulator is from real runs: (label, trial, real, simulated) each."""
    lines = ["# The simulator against real runs\n", *_provenance(command)]
    setting = pairs[0][1].setting
    lines += [
        f"{setting.instances} + {setting.parity_instances} instances, "
        f"{setting.queries_per_second:.0f} queries per second, {pairs[0][1].queries:,} queries a "
        f"run, {setting.shuffles} emulated shuffles. Both have the same arrivals, and the same "
        "course of disturbances in time; the real runs have processes, sockets, an HTTP server "
        "and a client besides. Latencies in ms.\n",
        "| policy | p50 real | simulated | off | p99 real | simulated | off "
        "| p99.9 real | simulated | off |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for label, _, real, simulated in pairs:
        cells = [label]
        for of in ("p50_ms", "p99_ms", "p999_ms"):
            r, s = getattr(real, of), getattr(simulated, of)
            cells += [f"{r:.1f}", f"{s:.1f}", f"{s / r - 1:+.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _provenance(command: str) -> Iterator[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    yield f"`{command}`, {date.today().isoformat()}, on {os.cpu_count()} cores"
    yield f"({platform.machine()}, Python {platform.python_version()}, {versions}).\n"


def emulated(network: Network | None) -> str:
    """What is real in the real trials and what is not, for people."""
    if network is None:
        return "Everything here is simulated."
    shuffles = {
        Network.SHAPED: "real transfers between network namespaces, through the shaped links that "
        "queries take",
        Network.EMULATED: "drawn delays in the workers",
    }[network]
    return (
        "Real runs have worker processes, ONNX Runtime, a server and an open-loop client; "
        "emulated is the accelerator (each unit takes a drawn service time, holding no core). "
        f"Background shuffles are {shuffles}; another tenant's work is drawn delays."
    )


def _report(path: Path, results: Sequence[FigureResult], command: str) -> Iterator[str]:
    plan = results[0].plan
    yield "# Tail latency\n"
    yield from _provenance(command)
    yield emulated(plan.network) + "\n"
    yield "All policies of a point have the same number of instances, the same arrivals and the"
    yield "same disturbances, from the same seed. Latencies are in ms, from the scheduled send; the"
    yield "*gap* is p99.9 - p50, and *shrinks* is equal resources' gap divided by this one's."
    yield "*work* is how many units ran for each query, all models together. In the pictures lines"
    yield "are simulated and marks are real; p50 solid and round, p99.9 dashed and triangular.\n"
    for result in results:
        experiment = result.plan.experiment
        yield f"## {experiment.title}\n"
        picture = f"{path.stem}/{result.plan.name}.png"
        yield f"![{experiment.title}]({picture})\n"
        if any(any(line.real) for line in result.lines):
            yield f"Real, {result.plan.preset.real_queries:,} queries a run:\n"
            yield from _table(result, [line.real for line in result.lines])
        yield f"Simulated, {result.plan.preset.simulated_queries:,} queries a run:\n"
        yield from _table(result, [line.simulated for line in result.lines])


def _table(result: FigureResult, columns: Sequence[Sequence[TrialResult | None]]) -> Iterator[str]:
    axis = result.plan.experiment.axis
    yield f"| {axis} | policy | p50 | p99 | p99.9 | gap | shrinks | reconstructed | work | errors |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for point, x in enumerate(result.xs):
        baseline = columns[0][point]
        for line, results in zip(result.lines, columns, strict=True):
            here = results[point]
            if here is not None:
                yield _row(x, line, here, baseline)
    yield ""


def _row(x: float, line: Line, here: TrialResult, baseline: TrialResult | None) -> str:
    shrinks = f"{baseline.gap_ms / here.gap_ms:.2f}x" if baseline else ""
    reconstructed = here.sources.get("reconstruction", 0) / max(1, here.answered)
    work = "" if here.work is None else f"{here.work:.2f}"
    return (
        f"| {x:g} | {line.label} | {here.p50_ms:.1f} | {here.p99_ms:.1f} | {here.p999_ms:.1f} "
        f"| {here.gap_ms:.1f} | {shrinks} | {reconstructed:.1%} | {work} | {here.errors} |"
    )

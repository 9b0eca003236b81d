"""No regret: whatever goes wrong, adaptive policies are near the best there is."""

from collections.abc import Iterator, Sequence

from parity_models.simulation.trial import Mode, TrialResult
from parity_models_lab.latency.figures import Line
from parity_models_lab.latency.judging import NOT_RUN
from parity_models_lab.latency.reproduce_latency import FigureResult
from parity_models_lab.target import Target

FIGURES = (
    "load",
    "contention",
    "late",
    "degradation",
    "correlated",
    "bursts",
    "slow-start",
    "generations",
)
"""Where no policy is to be much better."""

REGRET = 1.05
"""How many times the best policy's p99.9 an adaptive one's may be."""

MEDIAN = {"parity, shared pool": 1.05}
"""How many times equal resources' median a policy's may be; adaptive ones' as ADAPTIVE_MEDIAN."""

ADAPTIVE_MEDIAN = 1.03


def is_adaptive(label: str) -> bool:
    """Is this a series of the adaptive policy?"""
    return label.startswith("adaptive")


def median_limits(results: Sequence[FigureResult]) -> dict[str, float]:
    """How many times equal resources' median a series' may be, by label, where that is judged."""
    labels = [line.label for result in results for line in result.lines]
    limits = dict.fromkeys(filter(is_adaptive, labels), ADAPTIVE_MEDIAN)
    return limits | {label: limit for label, limit in MEDIAN.items() if label in labels}


def no_regret(results: Sequence[FigureResult]) -> Iterator[Target]:
    """A target for each adaptive series and mode: its worst point of all figures."""
    judged = [result for result in results if result.plan.name in FIGURES]
    labels = [line.label for result in judged for line in result.lines if is_adaptive(line.label)]
    for mode in Mode:
        for label in dict.fromkeys(labels):
            ratios = [
                (ratio, f"{result.plan.name} at {name}")
                for result in judged
                for point, name in enumerate(result.plan.experiment.labels)
                if (ratio := _regret(result, label, mode, point)) is not None
            ]
            what = f"p99.9 of {label} / the best other policy, worst of the figures, {mode}"
            worst, where = max(ratios, default=(None, ""))
            measured = NOT_RUN if worst is None else f"{worst:.2f}x ({where})"
            met = None if worst is None else worst <= REGRET
            yield Target(what, f"{REGRET:g}x at most", measured, met)


def _regret(result: FigureResult, label: str, mode: Mode, point: int) -> float | None:
    """Those that fail more queries than the series does are left out: the queries that waited
    longest are not among their answers."""

    def run(line: Line) -> TrialResult | None:
        return (line.real if mode is Mode.REAL else line.simulated)[point]

    line = result.line(label)
    here = None if line is None else run(line)
    if here is None:
        return None
    others = [
        other.p999_ms
        for line in result.lines
        if not is_adaptive(line.label)
        and (other := run(line)) is not None
        and other.errors <= here.errors
    ]
    return here.p999_ms / min(others) if others else None

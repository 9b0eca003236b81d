"""What judges of targets have in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from parity_models.simulation.trial import Mode, TrialResult
from parity_models_lab.latency.reproduce_latency import FigureResult
from parity_models_lab.target import Target

NOT_RUN = "not run"

HEDGING = ("hedging, tuned", "hedging, tuned for p99")
"""The series that hedging at its best has at least. Each latency is compared with the lowest of
all series of hedging in the figure."""

NO_MORE_FAILED = "no more failed"

SLACK = 1e-9
"""For loads that are meant to be equal."""


class Ratio(NamedTuple):
    """One result over another one, and how many more queries failed than may."""

    times: float
    more_failed: int = 0

    def __str__(self) -> str:
        failed = f" with {self.more_failed} more failed" if self.more_failed > 0 else ""
        return f"{self.times:.2f}x{failed}"


def over(others: Sequence[TrialResult], here: TrialResult, of: str) -> Ratio:
    """The lowest of the others' field `of` / that of `here`, which may fail no more queries.

    What failed is in no percentile. So of the others only those that fail the fewest queries count.
    """
    fewest = min(each.errors for each in others)
    best = min(getattr(each, of) for each in others if each.errors == fewest)
    return Ratio(best / getattr(here, of), here.errors - fewest)


def at_least(what: str, times: float, ratio: Ratio | None) -> Target:
    """A ratio is to be so many times, or more, and no more queries are to fail."""
    wanted = f"{times:g}x or more, {NO_MORE_FAILED}"
    if ratio is None:
        return Target(what, wanted, NOT_RUN, None)
    return Target(what, wanted, str(ratio), ratio.times >= times and ratio.more_failed <= 0)


def by_load(
    what: str, wanted: str, ratios: Mapping[float, Ratio | None], met: Callable[[float], bool]
) -> Target:
    """Ratios by load, all of which are to be `met` with no more queries failed.

    Not judged unless all of the loads were run.
    """
    run = {load: ratio for load, ratio in ratios.items() if ratio is not None}
    if not run or len(run) < len(ratios):
        return Target(what, wanted, NOT_RUN, None)
    measured = ", ".join(f"{load:.0%}: {ratio}" for load, ratio in run.items())
    fine = all(met(ratio.times) and ratio.more_failed <= 0 for ratio in run.values())
    return Target(what, wanted, measured, fine)


def series_over(
    result: FigureResult, above: str, below: str, mode: Mode, point: int, of: str
) -> Ratio | None:
    """The field `of` of the series `above` / that of `below`; None unless both were run."""
    upper, lower = (result_at(result, label, mode, point) for label in (above, below))
    return over([upper], lower, of) if upper and lower else None


def is_hedging(label: str) -> bool:
    """Is this a series of hedging?"""
    return label.startswith("hedging")


def hedging_at(result: FigureResult, mode: Mode, point: int) -> list[TrialResult]:
    """The results of all series of hedging that are run in this mode; none unless all were run."""
    labels = [
        line.label
        for line in result.lines
        if is_hedging(line.label) and asked(result, mode, point, line.label)
    ]
    found = [result_at(result, label, mode, point) for label in labels]
    run = [each for each in found if each is not None]
    return run if len(run) == len(found) else []


def hedging_over(result: FigureResult, label: str, mode: Mode, point: int, of: str) -> Ratio | None:
    """The field `of` of hedging at its best / that of the series `label`; None unless that and all
    series of hedging were run."""
    here = result_at(result, label, mode, point)
    hedging = hedging_at(result, mode, point)
    return over(hedging, here, of) if here and hedging else None


def asked(result: FigureResult, mode: Mode, point: int, *labels: str) -> bool:
    """Are there these series, and are they run in this mode, unless all is simulated?"""
    plan = result.plan
    series = [each for each in plan.experiment.series if each.label in labels]
    return len(series) == len(labels) and (
        mode is Mode.SIMULATED or all(plan.is_real(each, point) for each in series)
    )


def result_at(result: FigureResult, label: str, mode: Mode, point: int) -> TrialResult | None:
    """The result of a series at a point, if there is one."""
    line = result.line(label)
    if line is None:
        return None
    return (line.real if mode is Mode.REAL else line.simulated)[point]

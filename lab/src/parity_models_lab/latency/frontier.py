"""The frontier: series that no other has both a shorter tail and less busy time than."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parity_models_lab.latency.figures import Line

PERCENTILES = {"p99": "p99_ms", "p99.9": "p999_ms"}


@dataclass(frozen=True)
class Spot:
    """A series at a point: `extra` is the busy time beyond the first series', a share of it."""

    line: Line
    extra: float
    ms: float


def spots(lines: Sequence[Line], point: int, of: str) -> list[Spot]:
    """Where each series is at a point, simulated, by the field `of` of its result.

    Those that fail more queries than the first series are left out: what they did not answer is in
    no percentile. So are those that were not run.
    """
    first = lines[0].simulated[point]
    if first is None or not first.busy_ms:
        return []
    return [
        Spot(line, here.busy_ms / first.busy_ms - 1, getattr(here, of))
        for line in lines
        if (here := line.simulated[point]) is not None
        and here.busy_ms is not None
        and here.errors <= first.errors
    ]


def frontier(of: Sequence[Spot]) -> list[Spot]:
    """Those that no other is both cheaper and faster than, the cheapest first."""
    best: list[Spot] = []
    for spot in sorted(of, key=lambda each: (each.extra, each.ms)):
        if not best or spot.ms < best[-1].ms:
            best.append(spot)
    return best


def said(lines: Sequence[Line], axis: str, labels: Sequence[str]) -> Iterator[str]:
    """In words, for each point of the axis and each percentile."""
    for point, label in enumerate(labels):
        for name, of in PERCENTILES.items():
            found = frontier(spots(lines, point, of))
            named = "; ".join(
                f"{spot.line.label} ({100 * spot.extra:+.0f} %, {spot.ms:.1f} ms)" for spot in found
            )
            yield f"On the frontier of {name} at {axis} {label}, the cheapest first: {named}.\n"

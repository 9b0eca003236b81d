"""Who is on the frontier of tail latency against busy time; swept series."""

from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import Here
from parity_models.errors import UserError
from parity_models_lab.latency.experiment import load_experiment
from parity_models_lab.latency.figures import Line
from parity_models_lab.latency.frontier import Spot, frontier, spots
from parity_models_lab.latency.trial import TrialResult, result_of

SWEPT = """
title = "Swept"
axis = "load"
picture = "cost"
simulated_queries = 300
points = [{ load = 0.3 }, { load = 0.6 }]
[setting]
instances = 4
[[series]]
label = "equal resources"
policy = { name = "equal-resources" }
[[series]]
label = "hedging"
policy = { name = "hedging" }
swept = { hedge_quantile = [0.5, 0.9], k = [2, 4] }
"""


def result(p99: float, busy: float, errors: int = 0) -> TrialResult:
    found = result_of(np.full(100, 0.01), errors, {"model": 100}, busy_ms=busy)
    return msgspec.structs.replace(found, p99_ms=p99)


def line(label: str, *results: TrialResult | None) -> Line:
    return Line(label, results, [None] * len(results), family=label)


LINES = [
    line("equal resources", result(100, 25)),
    line("cheap", result(90, 24)),
    line("fast", result(50, 30)),
    line("neither", result(60, 31)),
    line("failing", result(10, 10, errors=1)),
    line("not run", None),
]


def test_a_swept_series_is_one_for_each_combination(tmp_path: Path) -> None:
    (tmp_path / "swept.toml").write_text(SWEPT)
    experiment = load_experiment(str(tmp_path / "swept.toml"))
    assert [series.label for series in experiment.series] == [
        "equal resources",
        "hedging (hedge_quantile=0.5, k=2)",
        "hedging (hedge_quantile=0.5, k=4)",
        "hedging (hedge_quantile=0.9, k=2)",
        "hedging (hedge_quantile=0.9, k=4)",
    ]
    last = experiment.series[-1]
    assert last.family == "hedging"
    assert last.choice.options == {"hedge_quantile": 0.9}
    assert experiment.at(1, last).k == 4


@pytest.mark.parametrize(
    ("swept", "reason"),
    [
        ("colour = [2, 4]", "no option of the policy"),
        ("k = [2, 400]", "k must be 9 or less, got 400"),
    ],
)
def test_what_cannot_be_swept_is_refused(swept: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "swept.toml").write_text(SWEPT.replace("k = [2, 4]", swept))
    with pytest.raises(UserError, match=reason):
        load_experiment(str(tmp_path / "swept.toml"))


def test_extra_is_beyond_the_first_series_and_those_that_fail_more_are_left_out() -> None:
    found = {spot.line.label: (round(spot.extra, 2), spot.ms) for spot in spots(LINES, 0, "p99_ms")}
    assert found == {
        "equal resources": (0.0, 100),
        "cheap": (-0.04, 90),
        "fast": (0.2, 50),
        "neither": (0.24, 60),
    }


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_everybody_is_on_the_frontier_or_no_better_than_one_who_is(
    places: list[tuple[int, int]],
) -> None:
    there = [Spot(LINES[0], float(extra), float(ms)) for extra, ms in places]
    best = frontier(there)
    for spot in there:
        assert any(each.extra <= spot.extra and each.ms <= spot.ms for each in best)
    for one, other in pairwise(best):
        assert one.extra < other.extra
        assert one.ms > other.ms


@pytest.mark.slow
def test_latency_draws_it(lab_here: Here, tmp_path: Path) -> None:
    (tmp_path / "swept.toml").write_text(SWEPT)
    done = lab_here(
        "latency", "--figure", tmp_path / "swept.toml", "--network", "none",
        "--out", tmp_path / "out", "--work", tmp_path / "work",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "swept.png").read_bytes().startswith(b"\x89PNG")

"""The targets of latency experiments are judged by what was run."""

import numpy as np
import pytest

from parity_models.simulation.trial import Emulation, Mode, TrialResult, result_of
from parity_models_lab.latency.experiment import load_experiment
from parity_models_lab.latency.figures import Line
from parity_models_lab.latency.latency_targets import collapse, targets
from parity_models_lab.latency.reproduce_latency import PRESETS, FigureResult, Plan
from parity_models_lab.target import Target


def result(p50: float, p999: float, errors: int = 0) -> TrialResult:
    """As of a real run, or a simulated one."""
    latencies = np.full(1000, p50 / 1e3)
    latencies[-3:] = p999 / 1e3
    return result_of(latencies, errors, {"model": 1000}, work=1.2, send_delay_p99_ms=0.4)


def judged(
    name: str, modes: tuple[Mode, ...] = tuple(Mode), **series: dict[int, TrialResult]
) -> dict[str, Target]:
    """The targets of a figure with such results, by point, in all `modes` alike."""
    experiment = load_experiment(name)
    lines = []
    for each in experiment.series:
        at = series.get(each.label.split(",")[0].replace(" ", "_"), {})
        results = [at.get(point) for point in range(len(experiment.points))]
        nothing = [None] * len(results)
        simulated, real = (
            results if mode in modes else nothing for mode in (Mode.SIMULATED, Mode.REAL)
        )
        lines.append(Line(each.label, simulated, real))
    plan = Plan(name, experiment, PRESETS["quick"], 0, Emulation.NOTHING)
    return {target.what: target for target in targets([FigureResult(plan, tuple(lines))])}


def test_the_gap_is_judged_at_middling_load_and_the_load_generator_everywhere() -> None:
    found = judged(
        "9a",
        equal_resources={4: result(25, 125), 8: result(25, 500)},
        adaptive_parity={4: result(26, 66), 8: result(26, 66)},
    )
    gap = found["gap of equal resources / adaptive parity, k=2, 270 queries/s (56% load), real"]
    assert (gap.measured, gap.met) == ("2.50x", False)
    assert not any("390" in what for what in found)
    assert found["the load generator's send error at p99, worst of all real runs"].met
    assert found["figure `kills`"].met is None


def test_kills_are_compared_with_the_undisturbed_run() -> None:
    what = "adaptive parity, kill -9 every 2 s, real"
    calm = result(25, 30)
    assert judged("kills", adaptive_parity={0: calm, 2: result(25, 59)})[what].met
    assert not judged("kills", adaptive_parity={0: calm, 2: result(25, 61)})[what].met
    assert not judged("kills", adaptive_parity={0: calm, 2: result(25, 30, 1)})[what].met


def test_adaptive_parity_is_compared_with_the_best_other_policy_at_every_point() -> None:
    what = "p99.9 of adaptive parity / the best other policy, worst of the figures, simulated"
    equal = {0: result(25, 100), 1: result(25, 100), 2: result(25, 50, errors=3)}
    shared = {0: result(25, 60), 1: result(25, 200), 2: result(25, 200)}
    adaptive = {0: result(25, 63), 1: result(25, 50), 2: result(25, 100)}
    found = judged("load", equal_resources=equal, hedging=shared, adaptive_parity=adaptive)
    assert found[what].measured == "1.05x (load at 0.1)"
    assert found[what].met
    slower = adaptive | {1: result(25, 120)}
    assert not judged("load", equal_resources=equal, adaptive_parity=slower)[what].met


def test_each_latency_is_compared_with_that_of_the_best_hedging() -> None:
    """`judged` gives all series of hedging the same results."""
    what = "p99.9 of hedging at its best / adaptive parity, by load, simulated"
    slow, fast = dict.fromkeys(range(8), result(25, 100)), dict.fromkeys(range(8), result(25, 50))
    assert judged("hedging", hedging=slow, adaptive_parity=fast)[what].met
    tail = judged("hedging", hedging=slow, adaptive_parity=fast | {3: slow[3]})[what]
    assert (tail.measured.split(", ")[2:4], tail.met) == (["40%: 2.00x", "50%: 1.00x"], False)
    part = judged("hedging", hedging=slow, adaptive_parity={0: fast[0]})[what]
    assert (part.measured, part.met) == ("not run", None)


@pytest.mark.parametrize(
    ("figure", "what"),
    [
        ("9a", "gap of equal resources / adaptive parity, k=2, 270 queries/s (56% load), real"),
        ("10", "gap of equal resources / adaptive parity, k=3, real"),
        ("hedging", "p99.9 of hedging at its best / adaptive parity, by load, real"),
        ("load", "p99.9 of equal resources / adaptive parity at 100 % load, real"),
        ("kills", "adaptive parity, kill -9 every 2 s, real"),
        ("9a", "median of adaptive parity / equal resources, worst of all figures, real"),
        ("9a", "the load generator's send error at p99, worst of all real runs"),
    ],
)
def test_what_was_not_run_for_real_says_so(figure: str, what: str) -> None:
    alike = {point: result(25, 100) for point in range(8)}
    found = judged(
        figure, (Mode.SIMULATED,), equal_resources=alike, hedging=alike, adaptive_parity=alike
    )
    assert (found[what].measured, found[what].met) == ("not run", None)


def test_a_policy_collapses_where_its_median_doubles_or_queries_fail() -> None:
    fine, waiting, failing = result(25, 60), result(51, 90), result(25, 60, errors=1)
    assert collapse(Line("", [fine, fine, waiting], []), [0.1, 0.2, 0.3]) == 0.3
    assert collapse(Line("", [fine, failing, fine], []), [0.1, 0.2, 0.3]) == 0.2
    assert collapse(Line("", [fine, fine, fine], []), [0.1, 0.2, 0.3]) is None
    what = "collapse of adaptive parity, simulated"
    assert judged("load", adaptive_parity={0: fine, 10: waiting})[what].met
    assert not judged("load", adaptive_parity={0: fine, 9: waiting})[what].met

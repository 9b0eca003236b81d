"""Redundant work runs as far as it does not slow originals down."""

from random import Random

from estimates import ran, undisturbed
from parity_models.scheduling.policies.interference import Interference


def allowed(interference: Interference) -> int:
    """Of a hundred pieces of redundant work, how many may run."""
    return round(100 * interference.spare)


def test_nothing_spare_runs_until_it_is_known_how_long_originals_run_alone() -> None:
    interference = Interference()
    ran(interference, 1.0, 10)
    assert allowed(interference) == 2
    ran(interference, 1.0, 20)
    assert 0 < allowed(interference) < 100


def test_all_spare_work_may_run_while_originals_take_as_long_beside_it() -> None:
    interference = undisturbed()
    for _ in range(300):
        ran(interference, 1.0, 1, beside=True)
        ran(interference, 1.04, 1, beside=True)
    assert allowed(interference) == 100


def test_spare_work_that_slows_most_originals_down_is_stopped_and_comes_back() -> None:
    interference = undisturbed()
    ran(interference, 2.0, 40, beside=True)
    assert 49 <= allowed(interference) <= 51
    ran(interference, 2.0, 40, beside=True)
    assert allowed(interference) == 2
    ran(interference, 1.0, 100)
    assert allowed(interference) == 100


def test_spare_work_is_not_blamed_for_what_slows_originals_that_run_alone() -> None:
    interference = undisturbed()
    ran(interference, 3.0, 200)
    assert allowed(interference) == 100


def test_run_times_that_vary_much_are_no_reason_to_stop_spare_work() -> None:
    rng = Random(0)
    interference = Interference()
    for beside in (False, True):
        for _ in range(1000):
            ran(interference, rng.lognormvariate(0, 0.8), 1, beside=beside)
        assert allowed(interference) >= 90


def test_how_long_originals_run_alone_is_learned_anew_as_what_is_dear_lets_them() -> None:
    interference = undisturbed()
    ran(interference, 2.0, 80, beside=True)
    assert allowed(interference) == 2
    ran(interference, 2.0, 200)
    ran(interference, 2.0, 100, beside=True)
    assert allowed(interference) == 100, "all is slower, for another reason"


def test_some_slow_originals_are_no_reason_to_stop_spare_work() -> None:
    interference = undisturbed()
    for _ in range(100):
        ran(interference, 1.0, 6, beside=True)
        ran(interference, 9.0, 4, beside=True)
        assert allowed(interference) == 100

"""Units get their times from a generator that begins anew with each, as cheaply as it goes."""

from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.emulation import SlicedRandom

SLICES = 20_000


def first(seed: str, slices: range, count: int = 1) -> list[list[float]]:
    """The first numbers of each slice."""
    rng = SlicedRandom(seed)
    drawn = []
    for number in slices:
        rng.begin(number)
        drawn.append([rng.random() for _ in range(count)])
    return drawn


@given(seed=st.text(max_size=10), numbers=st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_numbers_depend_on_the_seed_and_the_slice_and_on_nothing_before(
    seed: str, numbers: list[int]
) -> None:
    drawn: dict[int, tuple[object, ...]] = {}
    rng = SlicedRandom(seed)
    for number in [*numbers, *reversed(numbers)]:
        rng.begin(number)
        values = (rng.random(), rng.gauss(0, 1), rng.choice(range(1000)), rng.expovariate(1))
        assert drawn.setdefault(number, values) == values
        assert 0 <= rng.random() < 1
    assert len(set(drawn.values())) == len(drawn)


def test_numbers_are_known() -> None:
    """In every process, whatever its hashes are."""
    assert first("0/3/units", range(2)) == [[0.28065372484342765], [0.8604625779061246]]


@pytest.mark.parametrize("seed", ["0/0/units", "1/17/units"])
def test_numbers_of_neighbouring_slices_are_as_if_drawn_one_after_the_other(seed: str) -> None:
    drawn = first(seed, range(SLICES), 2)
    for column in zip(*drawn, strict=True):
        counts = [0] * 100
        for value in column:
            counts[int(100 * value)] += 1
        chi_squared = sum((count - SLICES / 100) ** 2 for count in counts) / (SLICES / 100)
        assert 50 < chi_squared < 160, "of 99 degrees of freedom"
    pairs = [
        *zip([a for a, _ in drawn], [b for _, b in drawn], strict=True),  # within one slice
        *zip([a for a, _ in drawn], [a for a, _ in drawn][1:], strict=False),
    ]
    x, y = ([each[side] for each in pairs] for side in (0, 1))
    mean_x, mean_y = fmean(x), fmean(y)
    covariance = fmean((a - mean_x) * (b - mean_y) for a, b in pairs)
    assert abs(covariance / (stdev(x) * stdev(y))) < 4 / len(pairs) ** 0.5

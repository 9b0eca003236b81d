"""When refused clients are told to come back, and why they are refused, by itself."""

from random import Random

import pytest

from parity_models.serving.errors import OverloadedError, Refused, UnavailableError, whole_seconds
from parity_models.serving.metrics import Metrics


@pytest.mark.parametrize("seconds", [1.0, 1.2, 2.5, 7.9])
def test_whole_seconds_are_on_average_what_they_were(seconds: float) -> None:
    chance = Random(0)
    told = [whole_seconds(seconds, chance) for _ in range(10_000)]
    assert set(told) <= {int(seconds), int(seconds) + 1}
    assert sum(told) / len(told) == pytest.approx(seconds, abs=0.02)


def test_where_no_time_is_known_clients_come_back_at_different_ones() -> None:
    told = {OverloadedError("too much").retry_after for _ in range(20)}
    assert len(told) == 20
    assert all(each is not None and 1 <= each <= 2 for each in told)
    assert OverloadedError("too much", retry_after=0.25).retry_after == 0.25
    assert UnavailableError("stopped").retry_after is None


def test_why_is_a_label_of_a_few_that_are_there_from_the_start() -> None:
    (family,) = [each for each in Metrics().registry.collect() if each.name == "parm_refused"]
    assert {sample.labels["why"] for sample in family.samples} == {*Refused}

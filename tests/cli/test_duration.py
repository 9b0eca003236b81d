"""Durations are typed with a unit, or as a number in the option's own."""

import pytest
import typer

from parity_models.cli.duration import Duration


@pytest.mark.parametrize(
    ("written", "unit", "meant"),
    [
        ("2", "s", 2.0),
        ("2", "ms", 2.0),
        ("50ms", "s", 0.05),
        ("0.5 S", "ms", 500.0),
        ("250us", "ms", 0.25),
        ("1m", "s", 60.0),
        ("1h", "min", 60.0),
        ("1e-3", "s", 0.001),
    ],
)
def test_a_time_may_have_a_unit(written: str, unit: str, meant: float) -> None:
    assert Duration(unit)(written) == pytest.approx(meant)


@pytest.mark.parametrize("written", ["", "s", "1 day", "--", ".", "1.2.3", "nan", "inf", "1e999"])
def test_what_is_no_time_is_refused(written: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no time"):
        Duration("s")(written)


@pytest.mark.parametrize(
    ("written", "reason"),
    [("5s", "must be 0.1 min or more, got 5s"), ("2h", "must be 60 min or less, got 2h")],
)
def test_a_time_out_of_range_is_refused_as_it_was_typed(written: str, reason: str) -> None:
    with pytest.raises(typer.BadParameter, match=reason):
        Duration("min", at_least=0.1, at_most=60)(written)

"""Times on the command line: a number in the option's own unit, or one with a unit of its own."""

from math import inf
from typing import Any

import typer

from parity_models.errors import UserError
from parity_models.options import read_time

_WORDS = {"s": "SECONDS", "min": "MINUTES"}
"""What stands for a time in help, by the unit of a bare number."""


class Duration:
    """Parses a time; what it becomes, and a bare number, is in `unit`, as are the bounds.

    As the `parser` of an option; raises typer.BadParameter.
    """

    def __init__(self, unit: str, at_least: float = 0, at_most: float = inf) -> None:
        self._unit = self.__name__ = unit  # Typer names the type of what it parses
        self._at_least, self._at_most = at_least, at_most

    def __call__(self, written: str | float) -> float:
        try:
            time = read_time(str(written), self._unit)
        except UserError as error:
            raise typer.BadParameter(str(error)) from error
        if time < self._at_least:
            raise typer.BadParameter(
                f"must be {self._at_least:g} {self._unit} or more, got {written}"
            )
        if time > self._at_most:
            raise typer.BadParameter(
                f"must be {self._at_most:g} {self._unit} or less, got {written}"
            )
        return time


def duration(help: str, unit: str, *, at_least: float = 0, at_most: float = inf) -> Any:
    """An option that is a time, as `Duration` reads it: in seconds ("s") or minutes ("min")."""
    parser = Duration(unit, at_least, at_most)
    return typer.Option(help=help, metavar=_WORDS[unit], parser=parser)

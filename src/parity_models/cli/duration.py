"""Times on the command line: a number in the option's own unit, or one with a unit of its own."""

import typer

from parity_models.errors import UserError
from parity_models.options import read_time


class Duration:
    """Parses a time; what it becomes, and a bare number, is in `unit`.

    As the `parser` of an option; raises typer.BadParameter.
    """

    def __init__(self, unit: str) -> None:
        self._unit = self.__name__ = unit  # Typer names the type of what it parses

    def __call__(self, written: str | float) -> float:
        try:
            return read_time(str(written), self._unit)
        except UserError as error:
            raise typer.BadParameter(str(error)) from error

"""Times on the command line: a number in the option's own unit, or one with a unit of its own."""

import re
from math import inf

import typer

UNITS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
"""What may follow a number, in seconds."""

_NAMES = {"ms": "milliseconds", "s": "seconds", "min": "minutes"}

_WRITTEN = re.compile(rf"([0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?)\s*({'|'.join(UNITS)})?", re.IGNORECASE)


class Duration:
    """Parses a time; what it becomes, and a bare number, is in `unit`.

    As the `parser` of an option; raises typer.BadParameter.
    """

    def __init__(self, unit: str) -> None:
        self.__name__ = _NAMES[unit]
        self._unit = unit

    def __call__(self, written: str | float) -> float:
        match = _WRITTEN.fullmatch(str(written).strip())
        value = inf if match is None else float(match[1])
        if match is None or value == inf:
            raise typer.BadParameter(
                f"{written!r} is no time; write a number of {self.__name__}, or one with a unit, "
                "as 50ms, 2s, 5m or 1h"
            )
        return value if match[2] is None else value * UNITS[match[2].lower()] / UNITS[self._unit]

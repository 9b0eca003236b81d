"""Does the engine have what the scheduler believes? What differs for good is to be repaired."""

from collections.abc import Mapping
from dataclasses import dataclass

RunningUnits = Mapping[str, int | None]
"""The unit of each instance; None: it is idle."""


@dataclass(frozen=True, slots=True)
class Difference:
    """An instance that is there for one of the two only, or has another unit than is believed.

    `believed` and `real` are its units; None where it has none, or is not there.
    """

    instance: str
    believed: int | None
    real: int | None
    is_known: bool
    instance_is_there: bool

    def __str__(self) -> str:
        if not self.instance_is_there:
            return f"instance {self.instance} is believed to be up, and the engine has it not"
        if not self.is_known:
            return f"the engine has instance {self.instance}, which is not believed to be up"
        believed = "no unit" if self.believed is None else f"unit {self.believed}"
        real = "none" if self.real is None else f"unit {self.real}"
        return f"instance {self.instance} is believed to have {believed}, and has {real}"


CHECK_INTERVAL = 1.0
"""Seconds between two self-checks."""


class SelfCheck:
    """Compares the two now and then.

    What is on its way between the two differs for a moment. So a difference counts once it is the
    same at two looks: units and instances are told apart by ids that are never used twice.
    """

    def __init__(self) -> None:
        self._before: set[Difference] = set()

    def look(self, believed: RunningUnits, real: RunningUnits) -> list[Difference]:
        """The differences to repair, of which each is told once."""
        differences = {
            Difference(
                instance,
                believed.get(instance),
                real.get(instance),
                instance in believed,
                instance in real,
            )
            for instance in believed.keys() | real.keys()
            if (instance in believed, believed.get(instance))
            != (instance in real, real.get(instance))
        }
        lasting = differences & self._before
        self._before = differences - lasting
        return sorted(lasting, key=lambda difference: difference.instance)

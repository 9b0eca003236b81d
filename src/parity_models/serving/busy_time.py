"""How long instances were busy: what queries cost."""


class BusyTime:
    """The time from when a unit is given to an instance to its end, summed by role.

    That is what the unit takes of the instance, the way there and back included. `seconds` are of
    units that have ended.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began: dict[int, tuple[str, float]] = {}

    def begin(self, unit: int, role: str, now: float) -> None:
        self._began[unit] = (role, now)

    def end(self, unit: int, now: float) -> None:
        """The unit is over, however it ended; one that did not begin is left alone."""
        role, began = self._began.pop(unit, ("", now))
        if role:
            self.seconds[role] = self.seconds.get(role, 0.0) + now - began

"""Which model of a repository has how many of the instances that all of them share.

A model's *load* is how many instances its queries keep busy: as many as arrive in a second, divided
by those that one instance answers in a second. A model is *short* while its instances are busier
than `BUSY`, and has some *to spare* while, with one less, they would not be busier than `IDLE`.
Then instances move, one at a time:

- A place that nobody has goes to a model that is short, or to the busiest.
- Of the models that are short, the one with the fewest instances gets one of a model that has some
  to spare.
- If none has, it gets one of a model that has at least two more: so what is too little for all is
  divided evenly, and a flood of requests for one model leaves the others what they need.

No model ever has fewer than its least. Loads that stay as they are end all moves.

Sans-I/O: times are arguments, and nobody is started or ended here.
"""

from collections.abc import Iterable, Mapping
from math import ceil, exp
from typing import NamedTuple

from parity_models.errors import UserError

BUSY, IDLE = 0.75, 0.6
"""A model is short of instances if they are busy for more than the share BUSY of the time. It can
spare one if the others would then be busy for at most the share IDLE."""

RISES, RISES_RUNS = 2.0, 30
"""A load is averaged over RISES seconds, or over RISES_RUNS times what a query takes if that is
longer: the load of few and long queries varies more by chance."""

FALLS = 3
"""A model can spare an instance only if it could by an average over this many times as long, too.
"""

_ROUNDING = 1e-9


class Work(NamedTuple):
    """What a model has to do: how many queries it has been `asked` so far, how many instances are
    `busy` now, and the `rate` at which one of them answers queries; 0 while that is unknown."""

    asked: int
    busy: int
    rate: float


class Move(NamedTuple):
    """An instance of `giver`, or a place that nobody has, is to be one of `taker`."""

    giver: str | None
    taker: str


class _Load:
    """Averages of a load, in instances."""

    def __init__(self) -> None:
        self.now = self.lately = 0.0
        self._at: float | None = None
        self._asked = 0

    def look(self, now: float, work: Work) -> None:
        before, asked = self._at, work.asked - self._asked
        self._at, self._asked = now, work.asked
        if before is None or now <= before or asked < 0:
            return
        passed = now - before
        load, rises = float(work.busy), RISES
        if work.rate > 0:
            load, rises = asked / passed / work.rate, max(RISES, RISES_RUNS / work.rate)
        self.now += (load - self.now) * (1 - exp(-passed / rises))
        self.lately += (load - self.lately) * (1 - exp(-passed / (FALLS * rises)))


class Sharing:
    """`total` instances, of which models named in `reserves` have so many at the least, others one.

    Raises UserError for reserves that are more than there are.
    """

    def __init__(self, total: int, reserves: Mapping[str, int]) -> None:
        self._total = total
        self._reserves = dict(reserves)
        self._loads: dict[str, _Load] = {}
        self.least: dict[str, int] = {}
        """The least that each model has."""
        self.has: dict[str, int] = {}
        """How many each model has."""
        if sum(reserves.values()) > total:
            raise UserError(
                f"{sum(reserves.values())} instances are reserved ({_listed(reserves)}), of "
                f"{total} that models share; reserve fewer, or share more"
            )

    @property
    def free(self) -> int:
        """Places that nobody has."""
        return self._total - sum(self.has.values())

    def least_of(self, name: str) -> int:
        """The least that a model has, or would have if it were served."""
        return self.least.get(name, self._reserves.get(name, 1))

    @property
    def loads(self) -> dict[str, float]:
        """How many instances each model keeps busy."""
        return {name: load.now for name, load in self._loads.items()}

    def begin(self, names: Iterable[str]) -> None:
        """Divide all places evenly among these models, as far as their leasts allow; those for
        which there is no room have none."""
        for name in sorted(names, key=lambda name: (name not in self._reserves, name)):
            if self._reserves.get(name, 1) <= self._room(name):
                self._add(name, self._reserves.get(name, 1))
                self.has[name] = self.least[name]
        while self.has and self.free:
            self.has[min(self.has, key=self._by_number)] += 1

    def enter(self, name: str, needs: int = 1) -> None:
        """A model is to be served, which `needs` so many instances at the least: it has them now,
        and others may have fewer. Raises UserError if that cannot be."""
        least = max(needs, self._reserves.get(name, 1))
        room = self._room(name)
        if least > room:
            kept = {each: count for each, count in self._kept().items() if each != name}
            raise UserError(
                f"it needs {least} of the {self._total} instances that models share, and {room} "
                f"are left: the others keep {_listed(kept) or 'none'}; raise --shared-instances, "
                "or unload a model"
            )
        self._add(name, least)
        while self.has[name] < least:
            if not self.free:
                self.has[max(self._givers(), key=self._to_spare)] -= 1
            self.has[name] += 1

    def leave(self, name: str) -> None:
        """A model is not served any more; its places are free. One that has none is ignored."""
        for each in (self.has, self.least, self._loads):
            each.pop(name, None)

    def look(self, now: float, works: Mapping[str, Work]) -> Move | None:
        """The next move, if there is one, which has been taken down; of models that have no `works`
        nothing is known yet."""
        for name, work in works.items():
            if name in self._loads:
                self._loads[name].look(now, work)
        move = self._next()
        if move is not None:
            self.has[move.taker] += 1
            if move.giver is not None:
                self.has[move.giver] -= 1
        return move

    def wants(self, name: str) -> int:
        """With fewer instances the model is short of them."""
        return max(self.least[name], ceil(self._loads[name].now / BUSY - _ROUNDING))

    def keeps(self, name: str) -> int:
        """With more instances the model has some to spare; never fewer than it wants."""
        load = self._loads[name]
        return max(self.least[name], ceil(max(load.now, load.lately) / IDLE - _ROUNDING))

    def _next(self) -> Move | None:
        short = sorted(
            (name for name in self.has if self.has[name] < self.wants(name)), key=self._by_number
        )
        if self.free > 0 and self.has:
            return Move(None, short[0] if short else max(self.has, key=self._busy))
        if not short:
            return None
        taker = short[0]
        givers = [
            name
            for name in self._givers()
            if self._to_spare(name)[0] > 0 or self.has[name] >= self.has[taker] + 2
        ]
        return Move(max(givers, key=self._to_spare), taker) if givers else None

    def _add(self, name: str, least: int) -> None:
        self.least[name] = least
        self.has.setdefault(name, 0)
        self._loads.setdefault(name, _Load())

    def _kept(self) -> dict[str, int]:
        """The least of each model that is served, or may be as some are reserved for it."""
        return self._reserves | self.least

    def _room(self, name: str) -> int:
        """How many places a model can have at the most."""
        return self._total - sum(count for each, count in self._kept().items() if each != name)

    def _givers(self) -> list[str]:
        return [name for name in self.has if self.has[name] > self.least[name]]

    def _by_number(self, name: str) -> tuple[int, str]:
        return self.has[name], name

    def _to_spare(self, name: str) -> tuple[int, int, str]:
        return self.has[name] - self.keeps(name), self.has[name], name

    def _busy(self, name: str) -> tuple[float, int, str]:
        return self._loads[name].now / max(1, self.has[name]), -self.has[name], name


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())

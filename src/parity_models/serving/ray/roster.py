"""Who serves whom: instances leased to frontends, from what both report of themselves.

All of it is soft state. A roster that starts anew knows everything again once everybody has
reported; until then it takes nothing from anybody. Times are the caller's, in seconds, and should
stand still while the caller does.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

INTERVAL = 0.5
"""Seconds between two reports of an instance or a frontend."""

TTL = 3.0
"""Seconds after which who has not reported is gone."""


@dataclass(frozen=True)
class Seat:
    """An instance as it can be leased: where its worker listens, what it runs and where.

    `bundle` names the bundle whose models it has, and the key.
    """

    key: str
    bundle: str
    roles: frozenset[str]
    node: str
    units: str
    control: str


@dataclass(frozen=True)
class InstanceReport:
    """What an instance says: its seat, the frontend whose lease it has, and whether it wants to
    stop."""

    seat: Seat
    holder: str | None = None
    leaving: bool = False


@dataclass(frozen=True)
class FrontendReport:
    """What a frontend says: the seats that it holds, and those it found nobody on."""

    frontend: str
    bundle: str
    held: tuple[Seat, ...] = ()
    lost: tuple[str, ...] = ()
    leaving: bool = False


class Roster:
    """Grants every seat to one frontend at a time, as `assign` has it.

    A seat that is to move is granted to its next frontend when the last one has let go of it, or
    is gone.
    """

    def __init__(self, now: float) -> None:
        self._settled = now + TTL
        self._seats: dict[str, tuple[Seat, float]] = {}
        self._leaving: set[str] = set()
        self._frontends: dict[str, tuple[str, float]] = {}
        self._holders: dict[str, str] = {}

    def instance_seen(self, now: float, report: InstanceReport) -> None:
        key = report.seat.key
        self._seats[key] = (report.seat, now)
        if report.leaving:
            self._leaving.add(key)
        if report.holder is not None:
            self._holders.setdefault(key, report.holder)

    def frontend_seen(self, now: float, report: FrontendReport) -> tuple[Seat, ...]:
        """Returns the seats that are the frontend's from now on; others it must let go."""
        self._forget(now)
        me = report.frontend
        if report.leaving:
            self._frontends.pop(me, None)
            self._holders = {key: who for key, who in self._holders.items() if who != me}
            return ()
        self._frontends[me] = (report.bundle, now)
        for key in report.lost:
            self._seats.pop(key, None)
        held = {seat.key for seat in report.held}
        for key in [key for key, who in self._holders.items() if who == me and key not in held]:
            del self._holders[key]
        for seat in report.held:
            if self._holder(seat.key, now) in (None, me):
                self._holders[seat.key] = me
                self._seats[seat.key] = (seat, now)
        wanted = assign(
            [seat for seat, _ in self._seats.values() if seat.key not in self._leaving],
            {frontend: bundle for frontend, (bundle, _) in self._frontends.items()},
            self._holders,
        )
        mine = []
        for key, frontend in wanted.items():
            if frontend == me and self._holder(key, now) in (None, me):
                self._holders[key] = me
                mine.append(self._seats[key][0])
        return tuple(mine)

    def _holder(self, key: str, now: float) -> str | None:
        """Who has the seat; one that is gone has none, nor one that never was here."""
        holder = self._holders.get(key)
        return holder if holder in self._frontends or now < self._settled else None

    def _forget(self, now: float) -> None:
        for key in [key for key, (_, seen) in self._seats.items() if now - seen > TTL]:
            del self._seats[key]
            self._leaving.discard(key)
            self._holders.pop(key, None)
        for frontend in [f for f, (_, seen) in self._frontends.items() if now - seen > TTL]:
            del self._frontends[frontend]


def assign(
    seats: Sequence[Seat], frontends: Mapping[str, str], holders: Mapping[str, str]
) -> dict[str, str]:
    """Which frontend every seat should go to, by the seat's key; none if none has its bundle.

    `frontends` are their bundles by name, `holders` who has which seat now. Of seats of one kind
    (bundle and roles), no frontend gets two more than another of that bundle, and as few as that
    takes move. Where there is a choice, a frontend's seats are on different nodes.
    """
    kinds = defaultdict(list)
    for seat in sorted(seats, key=lambda seat: seat.key):
        kinds[seat.bundle, tuple(sorted(seat.roles))].append(seat)
    assigned: dict[str, str] = {}
    on_node: Counter[tuple[str, str]] = Counter()
    total: Counter[str] = Counter()

    def give(seat: Seat, frontend: str) -> None:
        assigned[seat.key] = frontend
        on_node[frontend, seat.node] += 1
        total[frontend] += 1

    for (bundle, _), alike in sorted(kinds.items()):
        among = sorted(name for name, its in frontends.items() if its == bundle)
        if not among:
            continue
        kept = {name: [seat for seat in alike if holders.get(seat.key) == name] for name in among}
        share, more = divmod(len(alike), len(among))
        most_first = sorted(among, key=lambda name: (-len(kept[name]), total[name], name))
        room = {name: share + (place < more) for place, name in enumerate(most_first)}
        free = [seat for seat in alike if holders.get(seat.key) not in room]
        for name, its in kept.items():
            while its:
                # The next to stay is on the node where this frontend has least so far.
                seat = min(its, key=lambda seat: (on_node[name, seat.node], seat.key))
                its.remove(seat)
                if room[name]:
                    room[name] -= 1
                    give(seat, name)
                else:
                    free.append(seat)
        for seat in free:
            name = min(
                (name for name in among if room[name]),
                key=lambda name: (on_node[name, seat.node], -room[name], total[name], name),
            )
            room[name] -= 1
            give(seat, name)
    return assigned

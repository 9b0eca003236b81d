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
class Replica:
    """A replica of instances, which can be leased: `roles` are what it runs, on `node`.

    Its worker listens at the endpoints `units` and `control`. `bundle` names the deployment whose
    models and key it has.
    """

    key: str
    bundle: str
    roles: frozenset[str]
    node: str
    units: str
    control: str


@dataclass(frozen=True)
class InstanceReport:
    """What an instance reports: its replica, the frontend that leases it, and whether it is to
    stop."""

    replica: Replica
    holder: str | None = None
    leaving: bool = False


@dataclass(frozen=True)
class FrontendReport:
    """What a frontend reports: the replicas that it holds, and the keys of those it found gone."""

    frontend: str
    bundle: str
    held: tuple[Replica, ...] = ()
    lost: tuple[str, ...] = ()
    leaving: bool = False


class Roster:
    """Grants each replica to one frontend at a time, as `assign` decides.

    A replica that is to move is granted to its next frontend once the last one has let go of it or
    is gone.
    """

    def __init__(self, now: float) -> None:
        self._settled = now + TTL
        self._replicas: dict[str, tuple[Replica, float]] = {}
        self._leaving: set[str] = set()
        self._frontends: dict[str, tuple[str, float]] = {}
        self._holders: dict[str, str] = {}

    def instance_seen(self, now: float, report: InstanceReport) -> None:
        key = report.replica.key
        self._replicas[key] = (report.replica, now)
        if report.leaving:
            self._leaving.add(key)
        if report.holder is not None:
            self._holders.setdefault(key, report.holder)

    def frontend_seen(self, now: float, report: FrontendReport) -> tuple[Replica, ...]:
        """Returns the replicas that are the frontend's from now on; others it must let go."""
        self._forget(now)
        me = report.frontend
        if report.leaving:
            self._frontends.pop(me, None)
            self._holders = {key: who for key, who in self._holders.items() if who != me}
            return ()
        self._frontends[me] = (report.bundle, now)
        for key in report.lost:
            self._replicas.pop(key, None)
        held = {replica.key for replica in report.held}
        for key in [key for key, who in self._holders.items() if who == me and key not in held]:
            del self._holders[key]
        for replica in report.held:
            if self._holder(replica.key, now) in (None, me):
                self._holders[replica.key] = me
                self._replicas[replica.key] = (replica, now)
        wanted = assign(
            [replica for replica, _ in self._replicas.values() if replica.key not in self._leaving],
            {frontend: bundle for frontend, (bundle, _) in self._frontends.items()},
            self._holders,
        )
        mine = []
        for key, frontend in wanted.items():
            if frontend == me and self._holder(key, now) in (None, me):
                self._holders[key] = me
                mine.append(self._replicas[key][0])
        return tuple(mine)

    def _holder(self, key: str, now: float) -> str | None:
        """The frontend that has the replica; None if that frontend is gone or never reported."""
        holder = self._holders.get(key)
        return holder if holder in self._frontends or now < self._settled else None

    def _forget(self, now: float) -> None:
        for key in [key for key, (_, seen) in self._replicas.items() if now - seen > TTL]:
            del self._replicas[key]
            self._leaving.discard(key)
            self._holders.pop(key, None)
        for frontend in [f for f, (_, seen) in self._frontends.items() if now - seen > TTL]:
            del self._frontends[frontend]


def assign(
    replicas: Sequence[Replica], frontends: Mapping[str, str], holders: Mapping[str, str]
) -> dict[str, str]:
    """Which frontend each replica should go to, by the replica's key; no entry if none fits it.

    `frontends` gives each frontend's bundle, `holders` the frontend that has a replica now. The
    replicas of one bundle and set of roles are shared out evenly among the frontends of that
    bundle: none gets two more than another. As few replicas move as that takes. Where there is a
    choice, a frontend's replicas are on different nodes.
    """
    kinds = defaultdict(list)
    for replica in sorted(replicas, key=lambda replica: replica.key):
        kinds[replica.bundle, tuple(sorted(replica.roles))].append(replica)
    assigned: dict[str, str] = {}
    on_node: Counter[tuple[str, str]] = Counter()
    total: Counter[str] = Counter()

    def give(replica: Replica, frontend: str) -> None:
        assigned[replica.key] = frontend
        on_node[frontend, replica.node] += 1
        total[frontend] += 1

    for (bundle, _), alike in sorted(kinds.items()):
        among = sorted(name for name, its in frontends.items() if its == bundle)
        if not among:
            continue
        kept = {
            name: [replica for replica in alike if holders.get(replica.key) == name]
            for name in among
        }
        share, more = divmod(len(alike), len(among))
        most_first = sorted(among, key=lambda name: (-len(kept[name]), total[name], name))
        room = {name: share + (place < more) for place, name in enumerate(most_first)}
        free = [replica for replica in alike if holders.get(replica.key) not in room]
        for name, its in kept.items():
            while its:
                # The next to stay is on the node where this frontend has least so far.
                replica = min(its, key=lambda replica: (on_node[name, replica.node], replica.key))
                its.remove(replica)
                if room[name]:
                    room[name] -= 1
                    give(replica, name)
                else:
                    free.append(replica)
        for replica in free:
            name = min(
                (name for name in among if room[name]),
                key=lambda name: (on_node[name, replica.node], -room[name], total[name], name),
            )
            room[name] -= 1
            give(replica, name)
    return assigned

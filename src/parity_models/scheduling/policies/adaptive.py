"""The adaptive policy: one race for each query, with a budget of answers that may differ.

race.py has the rule: when to ask the backup, when its output answers, when to send a copy. This
policy drives it in the scheduler. What only a server knows is here:

- A query that still needs help may share a parity query with other late ones, padded with answered
  queries, in place of a copy of each. A reconstruction answers at once if it is worth its doubt.
- Redundant tasks are not preemptible, as they serve the oldest queries.
- effect.py stops redundant work that does not help; there is none while the front door is the
  bottleneck.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from math import inf

from parity_models.options import option
from parity_models.roles import BACKUP, DEPLOYED, Source, parity_role
from parity_models.scheduling.dispatch import LATENCY_AWARE
from parity_models.scheduling.effect import Redundancy
from parity_models.scheduling.policies.groups import CodingGroups
from parity_models.scheduling.policies.policy import Policy, Requires, StandIns, rows_needed
from parity_models.scheduling.port import Port
from parity_models.scheduling.race import JUST_MODEL, Action, Answer, Ask, Race, Rule
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.states import WITHHELD
from parity_models.scheduling.work import Query, Task, Unit

PARITY = parity_role(0)

KEEP_ONE_IN = 8
"""One of this many answered queries is kept to complete groups of late ones; keeping costs time."""

NEWEST, WORTHWHILE = 0.02, 0.5
"""The weight of the newest reconstruction in the share that was worth its doubt; parity queries are
sent while that is at least WORTHWHILE."""

FASTER, PRESUMED = 0.9, 0.5
"""A lone late query gets a parity query only if that takes at most the share FASTER of a copy's
time; until it is known, it is presumed to take the share PRESUMED."""

SLOW = 1.5
"""An instance whose recent units took this many times as long as others' is slow."""


class Adaptive(Policy):
    """Answer late queries by stand-ins or copies, and others where that spares work.

    `runs` are run times of the deployed model that are known in advance.
    """

    _port: Port
    """That of the newest event, for the conditions of races."""

    name = "adaptive"
    requires = Requires.EITHER
    rule = LATENCY_AWARE

    @dataclass(frozen=True, kw_only=True)
    class Options(Policy.Options):
        """The policy's options."""

        differ: float = option(
            0.001,
            "The share of all answers that may differ from the model's.",
            unit="share",
            ge=0,
            le=1,
        )
        copies: float = option(0.3, "Maximum copies per query, on average.", ge=0, le=1)

    def __init__(
        self,
        stand_ins: StandIns,
        options: Options | None = None,
        *,
        runs: RunTimes | None = None,
    ) -> None:
        options = options or self.Options()
        self.asks = stand_ins
        self.race_rule = Rule(options.differ, options.copies, backup=stand_ins.backup, runs=runs)
        self._rows = rows_needed(stand_ins.code) if stand_ins.code else []
        self._groups = CodingGroups(stand_ins.code, max_wait=None)
        self._parity_runs = RunTimes(window=300, every=20)
        self._accepted = 1.0
        """The share of reconstructions that were worth their doubt."""
        self._running: dict[int, Query] = {}
        """The queries with only their original running, the oldest units first, if there is a
        code."""
        self._races: dict[int, Race] = {}

    def roles(self, instances: int, extra: int) -> list[frozenset[str]]:
        roles = {DEPLOYED, *[BACKUP] * self.asks.backup, *self._groups.parity_roles}
        return [frozenset(roles)] * (instances + extra)

    @property
    def differ(self) -> float:
        return self.race_rule.purse.share

    def change_budget(self, differ: float) -> None:
        self.race_rule.purse.change(differ)

    def redundancy(self, port: Port) -> Redundancy:
        bottleneck = port.process_load.is_bottleneck
        return Redundancy.BOTTLENECK if bottleneck else self.race_rule.effect.state

    # The conditions of races (race.View)

    @property
    def waiting(self) -> float:
        return self._port.queued(DEPLOYED) / max(1, self._port.up(DEPLOYED))

    @property
    def idle(self) -> bool:
        port = self._port
        room = min(port.idle_for(BACKUP), port.idle_for(DEPLOYED)) * port.max_batch
        return room > port.queued(BACKUP) + port.queued(DEPLOYED)

    @property
    def open(self) -> bool:
        port = self._port
        return self.asks.backup and port.up(BACKUP) > 0 and Source.BACKUP not in port.closed_gates

    @property
    def helps(self) -> bool:
        return self._port.redundancy_on and not self._port.process_load.is_bottleneck

    @property
    def busy(self) -> float:
        return self._port.process_load.busy

    # Events

    def stands_in(self, port: Port) -> bool:
        self._port = port
        return port.redundancy_on and self.race_rule.asks and self.open

    def stranded(self, port: Port, query: Query) -> None:
        race = self._races.get(query.id)
        if race is None:
            actions = self._race_for(port, query).begin(port.now, self, stranded=True)
        else:
            actions = race.failed(port.now, self)
        self._carry_out(port, query, actions)

    def arrived(self, port: Port, query: Query) -> None:
        actions = self._race_for(port, query).begin(port.now, self)
        if actions is not JUST_MODEL:  # the model is asked already
            self._carry_out(port, query, actions)

    def _race_for(self, port: Port, query: Query) -> Race:
        self._port = port
        race = Race(self.race_rule, query.arrived, query.due, query.exact)
        self._races[query.id] = race
        return race

    def starts(self, port: Port, task: Task) -> None:
        query = port.queries.get(task.subject)
        if query is not None:
            race = self._races[query.id]
            if self._rows and race.tasks == 1 and task is query.original:
                self._running[query.id] = query
            slow = port.pace(task.instance) > SLOW
            self._carry_out(port, query, race.started(port.now, slow=slow))

    def redundancy_starts(self, port: Port, task: Task) -> None:
        if task.role == BACKUP:
            return
        self._groups.redundancy_starts(port, task)
        for query in map(port.queries.get, task.members):
            if query is not None:
                self._carry_out(port, query, self._races[query.id].started(port.now))

    def on_prediction(self, port: Port, task: Task) -> None:
        if task.group is not None:
            self._groups.on_prediction(port, task)
        query = port.queries.get(task.subject)
        if self._rows and query is not None and query.coded and not query.crashes:
            if query.id % KEEP_ONE_IN and self._groups.can_form((query,)):
                return
            if port.screen(query):
                self._groups.keep(port, (query.kind, query.tenant), query.id)

    def reconstructed(self, port: Port, query: Query, doubt: float) -> None:
        actions = self._races[query.id].reconstructed(port.now, doubt)
        answers = isinstance(next(iter(actions)), Answer)
        self._accepted += NEWEST * (answers - self._accepted)
        self._carry_out(port, query, actions, Source.RECONSTRUCTION)

    def redundancy_finished(self, port: Port, task: Task) -> None:
        if task.role != BACKUP:
            self._groups.redundancy_finished(port, task)
            return
        query = port.queries.get(task.subject)
        if query is not None:
            race = self._races[query.id]
            self._carry_out(port, query, race.answered(port.now, task.doubt, self))

    def refused(self, port: Port, query: Query, source: Source) -> None:
        if query.backup is not None:
            port.drop(query.backup)
        race = self._races[query.id]
        if source is Source.RECONSTRUCTION:
            self._carry_out(port, query, race.reconstructed(port.now, inf))
        self._carry_out(port, query, race.refused(port.now))

    def on_loss_or_deadline(self, port: Port, query: Query) -> None:
        self._carry_out(port, query, self._races[query.id].lost())

    def _alarm(self, port: Port, query: Query) -> None:
        if not query.crashes:
            self._carry_out(port, query, self._races[query.id].alarm(port.now, self))

    def resolved(self, port: Port, query: Query) -> None:
        self._races.pop(query.id).ended(port.now)
        self._running.pop(query.id, None)
        if query.original.group is not None:
            self._groups.resolved(port, query)

    def unit_ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        self.race_rule.lag = port.process_load.lag
        if unit.role in (DEPLOYED, BACKUP):
            rows = len(unit.tasks)
            self.race_rule.ended(unit.role, unit.took, finished=finished, rows=rows)
        else:
            self._parity_runs.add(unit.took, finished=finished)

    def may_answer(self, port: Port, query: Query) -> bool:
        return self._races[query.id].held is not None or super().may_answer(port, query)

    def on_suspected_poison(self, port: Port, query: Query) -> None:
        group = self._groups.of(query)
        self._groups.on_suspected_poison(port, query)
        for other in map(port.queries.get, group.members if group else ()):
            if other is not None and other is not query:  # its parity query may never start
                race = self._races[other.id]
                self._carry_out(port, other, race.reconstructed(port.now, inf))

    # Actions

    def _carry_out(
        self,
        port: Port,
        query: Query,
        actions: Iterable[Action],
        source: Source = Source.BACKUP,
    ) -> None:
        may_ask = True
        for action in actions:
            if isinstance(action, Answer):
                port.answer(query, source, action.doubt)
            elif not isinstance(action, Ask):
                port.set_alarm(query, action.time, partial(self._alarm, port, query))
            elif action.role == BACKUP:
                may_ask = port.ask(query, first=self._races[query.id].withheld)
            elif query.state in WITHHELD:
                port.queue_again(query.original)
            elif self._races[query.id].tasks > 1:
                self._ask_again(port, query)
        if not may_ask:
            self._carry_out(port, query, self._races[query.id].refused(port.now))

    def _ask_again(self, port: Port, query: Query) -> None:
        """Send a parity query of this and other late queries if that is cheaper, else a copy."""
        members = [query, *self._company(port, query)]
        self._running.pop(query.id, None)
        median = self.race_rule.median
        faster = (self._parity_runs.median or PRESUMED * median) < FASTER * median
        if (
            self._rows
            and query.coded
            and query.original.group is None
            and port.up(PARITY)
            and Source.RECONSTRUCTION not in port.closed_gates
            and (faster or (len(members) > 1 and port.queued(DEPLOYED)))
            and self._groups.can_form(members)
            and port.screen(query)
        ):
            if self._accepted >= WORTHWHILE:
                self._groups.form(port, members, self._rows[len(members) - 1])
                for member in members[1:]:
                    del self._running[member.id]
                    self._races[member.id].shared()
                return
            self._accepted += NEWEST * NEWEST  # so that it is tried again
        port.copy(query)

    def _company(self, port: Port, query: Query) -> list[Query]:
        """Return other late queries, as many as fit into a parity query."""
        company: list[Query] = []
        units = {task.unit for task in query.tasks}
        began = port.now - self.race_rule.lag - self.race_rule.copied_after
        for other in self._running.values():
            unit = other.original.unit
            if unit is None:
                continue  # it failed, and waits
            if len(company) >= len(self._rows) - 1 or unit.started > began:
                break
            alike = (other.kind, other.tenant) == (query.kind, query.tenant)
            barred = not other.coded or other.crashes or unit in units
            if (
                alike and not barred and port.screen(other)
            ):  # of one batch, an instance would hold up both
                company.append(other)
                units.add(unit)
        return company

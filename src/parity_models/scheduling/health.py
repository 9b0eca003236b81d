"""The health of instances: which get work, which are verified, which are replaced.

An instance that is *in* takes units as the dispatch rule says. It is *out* while nothing is
dispatched to it:

    verifying   it has joined, or comes back, and has not yet answered a golden query of each role
    ejected     its units fail more often than others'; it comes back after a while
    replaced    it hung, or gave a wrong answer, and is out until it leaves

At most half of a role's instances are out for failing or hanging, counting all that left and are
not back. An instance that gave a wrong answer is always taken out: a wrong answer is worse than
none. The others on its node are verified next, as they may be wrong for the same reason.

Wrong answers are found by golden queries, whose answers are known, and by samples: clients' queries
that other instances answer again. If two agree and a third differs, the third is *examined*, out of
service: it is wrong if it differs many times in a row. See docs/explanation/health.md.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from math import inf, log

from parity_models.roles import DEPLOYED
from parity_models.scheduling.actions import Recycle, RecycleReason
from parity_models.scheduling.port import Core
from parity_models.scheduling.work import Task, Unit

BACK_OFF, MAX_BACK_OFF = 1.0, 60.0
"""Seconds of an instance's first ejection, and the maximum; each one is twice as long."""

REPLACED_WITHIN = 30.0
"""Seconds for which an instance that left counts as out, if no other joins in its place; after
that the pool counts as smaller."""

CONFIRM_AFTER, CONFIRM_SHARE = 0.25, 0.125
"""Seconds for which a unit stays over its limit before it counts as hung, or this share of the
deadline if that is less: if the server was held up, the unit may have finished and wait to be read.
"""

ALL_GOLDEN = 8
"""Golden queries of each role for an instance that replaces a wrong one: as many as drivers have
(trust/golden.py)."""

MAX_ASKED, MAX_AGREED, MAX_WRONG = 4, 8, 100
"""The maximum numbers of waiting samples, of samples that two instances agreed on, and of wrong
instances that are remembered."""

CONFIRMED = 3
"""The times that one of two agreeing instances repeats its answer before the third is examined."""

REPEATS = 24
"""Times in a row that an instance differs from two that agree before it counts as wrong. Outputs
that vary by chance between two values reach this once in 10 million times."""


class State(StrEnum):
    """The state of an instance, for operators."""

    UP = "up"
    SUSPECTED = "suspected"
    """It failed lately, or is to answer golden queries."""
    EJECTED = "ejected"
    """It gets no work."""
    VERIFYING = "verifying"
    """It answers golden queries."""


class Outliers:
    """Finds instances that do badly more often than the others do.

    A cumulative sum for each instance (Page, Continuous inspection schemes, Biometrika 1954) weighs
    two hypotheses after each event, good or bad. One: the instance does badly as often as the
    others lately do, with probability p. Two: it does well half as often as they do, that is, badly
    with probability (1 + p) / 2. The sum is the logarithm of their likelihood ratio, never below 0.
    Inputs that fail on all instances raise p, so that no instance stands out.
    """

    WINDOW = 100
    """The latest events, of all instances, from which p is estimated. A longer window follows a
    sudden rise of p more slowly, and meanwhile honest instances stand out."""

    STANDS_OUT = 14.0
    """The sum from which an instance stands out. An honest one reaches it at most once in e^14
    events (Lorden, Procedures for reacting to a change in distribution, Annals of Mathematical
    Statistics 1971). If the others never do badly, 4 bad events in a row reach it."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self._recent: deque[tuple[str, bool]] = deque(maxlen=self.WINDOW)
        """The instances of the latest events, and whether those were bad."""

    def add(self, instance: str, *, bad: bool) -> float:
        """Count an event of an instance. Return how much its sum has grown."""
        old = new = self.sums.get(instance, 0.0)
        if bad or old:
            others = [was_bad for other, was_bad in self._recent if other != instance]
            usual = (sum(others) + 1) / (len(others) + 2)  # Laplace's rule of succession
            worse = (1 + usual) / 2
            evidence = log(worse / usual) if bad else log((1 - worse) / (1 - usual))
            new = self.sums[instance] = max(0.0, old + evidence)
        self._recent.append((instance, bad))
        return new - old

    def take_back(self, instance: str, growth: float) -> None:
        """Take back an event that was not the instance's fault: subtract its sum's `growth`."""
        if instance in self.sums:
            self.sums[instance] = max(0.0, self.sums[instance] - growth)

    def clear(self, instance: str) -> None:
        """Forget an instance, or begin anew with it."""
        self.sums.pop(instance, None)
        others = [event for event in self._recent if event[0] != instance]
        self._recent = deque(others, maxlen=self.WINDOW)


class LongestRun:
    """The longest of the last WINDOW to 2 * WINDOW run times, in seconds."""

    KNOWN, WINDOW = 20, 500

    def __init__(self) -> None:
        self.count = 0
        self._before = self._now = 0.0
        """The longest of the window before, and of this one."""

    @property
    def seconds(self) -> float | None:
        """The longest run time; None before KNOWN units have finished."""
        return None if self.count < self.KNOWN else max(self._before, self._now)

    def finished(self, seconds: float) -> bool:
        """Count a unit that ran to its end. Return whether it was about as fast as others are."""
        if self.count % self.WINDOW == 0:
            self._before, self._now = self._now, 0.0
        usual = seconds <= 2 * max(self._before, self._now)
        self.count += 1
        if seconds > self._now:
            self._now = seconds
        return usual


class RunLimits:
    """The longest that units may run before they count as hung, in seconds.

    Units differ in cost by role, kind of query and number of rows, so a rare kind is never judged
    by a frequent one. While a kind is unknown, that of larger batches of the same queries counts;
    if that is unknown too, only the engine's own limit does.

    A unit that was *overtaken* (one that began later has finished in usual time) gets OVERTAKEN
    times the longest run time of its kind. If it was not, the whole machine may be slow, and the
    unit gets FACTOR times the longest, but no more than the share BEFORE_DEADLINE of the deadline,
    unless that is less than LEAST_FACTOR times the longest. No limit is below the share OF_DEADLINE
    of the deadline, kept between SHORTEST and AT_LEAST: a machine may be busy for a moment. An
    overtaken unit gets at least that plus the longest run time. A task that is tried again gets the
    whole deadline: it may be slow.

    By simulation (tests/scheduling/test_hung.py), no instance is replaced in 20,000 queries under
    shuffles, slowdowns, pauses of up to 1 s and run times of log-normal sigma 1.
    """

    OVERTAKEN, FACTOR, LEAST_FACTOR = 2.75, 20, 5
    AT_LEAST, SHORTEST, OF_DEADLINE = 1.0, 0.5, 0.5
    BEFORE_DEADLINE = 0.75
    MAX_KINDS = 256
    """Kinds that are remembered, the newest ones."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self.least = min(self.AT_LEAST, max(self.SHORTEST, self.OF_DEADLINE * deadline))
        """No limit is shorter."""
        self._kinds: dict[tuple[str, Hashable], defaultdict[int, LongestRun]] = {}
        """The longest runs, by role and kind, then by the bit length of the number of rows."""
        self._overtook = 0
        """The newest unit that has finished in usual time."""

    def finished(self, unit: Unit) -> None:
        """Count a unit that ran to its end."""
        key = (unit.role, unit.kind)
        if key not in self._kinds:
            self._kinds[key] = defaultdict(LongestRun)
            if len(self._kinds) > self.MAX_KINDS:
                del self._kinds[next(iter(self._kinds))]
        longest = self._kinds[key][len(unit.tasks).bit_length()]
        if longest.finished(unit.took) and unit.id > self._overtook:
            self._overtook = unit.id

    def of(self, unit: Unit) -> float | None:
        """Return the limit of a unit that runs; None while it is unknown."""
        if any(task.failed_on for task in unit.tasks):
            return self._deadline
        sizes: Mapping[int, LongestRun] = self._kinds.get((unit.role, unit.kind), {})
        for size in sorted(sizes):
            longest = sizes[size].seconds
            if longest is None or size < len(unit.tasks).bit_length():
                continue
            if unit.id < self._overtook:
                return max(self.least + longest, self.OVERTAKEN * longest)
            in_time = max(self.BEFORE_DEADLINE * self._deadline, self.LEAST_FACTOR * longest)
            return max(self.least, min(self.FACTOR * longest, in_time))
        return None if unit.tasks else self._deadline


@dataclass(slots=True, eq=False)
class Check:
    """A check of an instance: a golden query of `role`, or a sample, which is a client's query.

    A sample is answered by several instances, each in a unit of its own, and its tensors are held
    meanwhile. `answers` lists the instances that gave each different answer, the client's first.
    `agreed` is the number of the answer that two instances agree on. If `suspect` names a third,
    which differs, one of the two must repeat that answer `repeats_left` times. Otherwise an
    instance is examined, and is wrong if it differs `repeats_left` times in a row.
    """

    role: str = DEPLOYED
    query: int | None = None
    kind: Hashable = None
    answers: list[list[str]] = field(default_factory=list)
    agreed: int | None = None
    repeats_left: int = 0
    suspect: str | None = None

    def can_ask(self, instance: str) -> bool:
        """Return whether the instance has not answered the sample yet."""
        return not any(instance in each for each in self.answers)


@dataclass(slots=True, eq=False)
class Member:
    """An instance that has joined and not left."""

    name: str
    roles: frozenset[str]
    node: str | None
    is_in: bool = False
    """It gets units, unless it rests."""
    timer: int = 0
    """It was ejected last, or rested, until then."""
    sound: bool = True
    """It has finished its last unit."""
    replaced: bool = False
    """It is being replaced."""
    suspected: bool = False
    check: Check | None = None
    """Its check in progress."""
    to_verify: deque[Check] = field(default_factory=deque)
    served: Counter[str] = field(default_factory=Counter)
    """The queries of each role that it ran since it was last verified."""
    samples: int = 0
    until_sample: int = 1
    """Its answers to clients until the next one is sampled."""
    quarantined: int = 0
    """Quarantines in a row: its own and its predecessors'."""
    on_probation: bool = False
    """It was ejected, and has finished no unit since."""
    back_off: float = BACK_OFF


class Health:
    """Decides which instances the dispatch rule has; acts through the core."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._dispatch = core.dispatch
        self._verify_every = core.config.verify_every
        self._sample_every = core.config.sample_every
        self._members: dict[str, Member] = {}
        self._away: list[tuple[frozenset[str], float]] = []
        """The roles of instances that are away, and until when they count as out."""
        self._failures = Outliers()
        self._probes: Counter[str] = Counter()
        self._asked: deque[Check] = deque()
        """Samples that wait for another instance."""
        self._agreed: deque[Check] = deque()
        """Samples on whose answer two instances agreed lately."""
        self._wrong: list[tuple[frozenset[str], str | None, int]] = []
        """The roles and node of quarantined instances that left, and their quarantines in a row."""
        self._limits = RunLimits(core.config.deadline)
        self.watch = 0
        """The timer of the next search for hung units."""
        self._over_limit: dict[int, float] = {}
        """The time from which each unit is over its limit."""

    def states(self) -> list[tuple[str, State]]:
        """Return every instance that has joined and not left, with its state."""
        return [(name, self._state(member)) for name, member in self._members.items()]

    def _state(self, member: Member) -> State:
        if member.check is not None:
            return State.VERIFYING
        if not member.is_in:
            return State.EJECTED
        suspected = member.suspected or self._failures.sums.get(member.name)
        return State.SUSPECTED if suspected else State.UP

    # Joining and leaving

    def joined(self, instance: str, roles: frozenset[str], node: str | None) -> None:
        member = self._members[instance] = Member(instance, roles, node)
        away = next((away for away in self._away if away[0] == roles), None)
        if away is not None:
            self._away.remove(away)
        wrong = next((each for each in self._wrong if each[:2] == (roles, node)), None)
        if wrong is not None:
            self._wrong.remove(wrong)
            member.quarantined = wrong[2]
            if member.quarantined > 1:
                wait = min(MAX_BACK_OFF, BACK_OFF * 2 ** (member.quarantined - 1))
                self._set_timer(member, wait, self._come_in)
                return
        self._come_in(member)

    def left(self, instance: str) -> None:
        member = self._members.pop(instance)
        self._core.cancel_timer(member.timer)
        if member.is_in:
            self._dispatch.leave(instance)
        now = self._core.now
        self._away = [away for away in self._away if away[1] > now]
        self._away.append((member.roles, now + REPLACED_WITHIN))
        self._failures.clear(instance)
        self._give_up_checks(member)
        if member.replaced and member.quarantined:
            wrong = (member.roles, member.node, member.quarantined)
            self._wrong = [*self._wrong[-MAX_WRONG:], wrong]

    def _set_timer(
        self, member: Member, seconds: float, callback: Callable[[Member], None]
    ) -> None:
        at = self._core.now + seconds
        member.timer = self._core.set_timer(at, partial(callback, member))

    def _come_in(self, member: Member) -> None:
        """Verify an instance that joins or comes back: with all checks, if it replaces a wrong
        one."""
        if self._verify_every:
            probes = ALL_GOLDEN if member.quarantined else 1
            member.to_verify.extend(Check(role) for role in _in_order(member.roles) * probes)
        if member.quarantined and DEPLOYED in member.roles:
            for each in self._agreed:
                self._hold(each)
                member.to_verify.append(replace(each, repeats_left=REPEATS))
        self._verify_next(member)

    def _may_lose(self, member: Member) -> bool:
        """Return whether it can be spared: at most half of each role's instances would be out."""
        if not member.is_in:
            return True
        now = self._core.now
        for role in member.roles:
            alike = [other for other in self._members.values() if role in other.roles]
            away = sum(role in roles for roles, until in self._away if until > now)
            out = away + sum(not other.is_in for other in alike)
            if 2 * (out + 1) > len(alike) + away:
                return False
        return True

    def _take_out(self, member: Member, reason: RecycleReason, why: str) -> None:
        """Give an instance no more work, and have it replaced."""
        if member.is_in:
            self._dispatch.leave(member.name)
        member.is_in = False
        self._core.act(Recycle(member.name, reason, why))

    # Units

    def started(self, unit: Unit) -> None:
        unit.sound = self._members[unit.instance].sound
        if not self.watch:
            self.watch = self._core.set_timer(unit.started + self._limits.least, self._find_hung)

    def ended(self, unit: Unit, *, finished: bool, rest: float = 0.0) -> None:
        """A unit is off its instance, which is idle now, or will be after `rest` seconds."""
        member = self._members[unit.instance]
        if finished or any(task.wanted for task in unit.tasks):  # it was not cancelled
            member.sound = finished
        if finished:
            self._limits.finished(unit)
            for task in unit.tasks:
                if task.charge is not None:
                    self._charge_others(member, task)
            self._failures.add(member.name, bad=False)
            member.on_probation = False
        elif rest == 0:
            self._did_badly(member, unit)
        if self._sample_every and finished and unit.role == DEPLOYED:
            member.until_sample -= len(unit.tasks)
            if member.until_sample <= 0:
                self._take_sample(member, unit)
        if member.is_in:
            self._next(member, unit, finished=finished, rest=rest)

    def _next(self, member: Member, unit: Unit, *, finished: bool, rest: float) -> None:
        """Verify an instance that has ended a unit, if it is due, or have it rest, or mark it
        idle."""
        every = self._verify_every
        if every:
            member.served[unit.role] += len(unit.tasks)
        if rest > 0:
            self._set_timer(member, rest, self._rested)
        elif every and (member.suspected or max(member.served.values()) >= every):
            self._verify_again(member)
        elif member.to_verify:
            self._verify_next(member)
        elif not (self._asked and self._answers_again(member)):
            self._dispatch.mark_idle(member.name, unit.took, finished=finished, role=unit.role)

    def _rested(self, member: Member) -> None:
        self._dispatch.mark_idle(member.name, 0.0, finished=False)

    # Failing: an instance is ejected when its units fail more often than others'

    def _charge_others(self, member: Member, task: Task) -> None:
        """Charge the instances that failed the task, if their charges were taken back: `member` has
        finished it, so they were at fault."""
        if task.charge and not task.charge[1] and not task.turned_away:
            for name in dict.fromkeys(task.failed_on):
                if name != member.name and name in self._members:
                    self._failures.add(name, bad=True)

    def _did_badly(self, member: Member, unit: Unit) -> None:
        """Charge the instance with the failure, unless the tasks have failed elsewhere as well."""
        wanted = [task for task in unit.tasks if task.wanted]
        if not wanted:  # it was cancelled
            return
        charges = [task.charge for task in wanted if task.charge]
        elsewhere = [charge for charge in charges if charge[0] != member.name]
        for charge in elsewhere:
            self._failures.take_back(*charge)
        growth = 0.0 if elsewhere else self._charge(member)
        for task in wanted:
            task.charge = (member.name, growth)

    def _charge(self, member: Member) -> float:
        """Eject an instance that fails too often. Return how much its sum grew."""
        growth = self._failures.add(member.name, bad=True)
        failing = member.on_probation or (
            self._failures.sums[member.name] >= self._failures.STANDS_OUT
        )
        if member.is_in and failing and self._may_lose(member):
            self._take_out(member, RecycleReason.FAILING, "fails units more often than others do")
            self._back_off(member)
        return growth

    def _back_off(self, member: Member, rest: float = 0.0) -> None:
        """Keep the instance out for a while, twice as long each time, or for `rest` seconds."""
        self._failures.clear(member.name)
        self._set_timer(member, rest or member.back_off, self._come_in)
        if rest == 0:
            member.on_probation = True
            member.back_off = min(2 * member.back_off, MAX_BACK_OFF)

    # Hanging: its unit stays over the limit

    def _find_hung(self) -> None:
        """Replace the instances whose units have hung, and set the time of the next search.

        It comes before a unit that begins now can reach its limit.
        """
        now = self._core.now
        confirm_after = min(CONFIRM_AFTER, CONFIRM_SHARE * self._core.config.deadline)
        before, self._over_limit = self._over_limit, {}
        self.watch = 0
        again = now + self._limits.least if self._core.units else inf
        for unit in self._core.units.values():
            limit, member = self._limits.of(unit), self._members[unit.instance]
            if limit is None or member.replaced:
                continue
            if now < unit.started + limit:
                again = min(again, unit.started + limit)
                continue
            since = self._over_limit[unit.id] = before.get(unit.id, now)
            if now < since + confirm_after:
                again = min(again, since + confirm_after)
            elif self._may_lose(member):
                unit.hung = member.replaced = True
                took = f"for {now - unit.started:.3g} s, more than {limit:.3g} s"
                why = f"has had a unit of {unit.role} {took}"
                self._take_out(member, RecycleReason.HUNG, why)
        if again < inf:
            self.watch = self._core.set_timer(again, self._find_hung)

    # Wrong answers: golden queries

    def verified(self, unit: Unit, *, right: bool, answer: int) -> None:
        """An instance has answered a golden query, rightly or not, or a sample, with the answer
        number `answer`."""
        member = self._members[unit.instance]
        check, member.check = member.check, None
        member.sound = True
        self._limits.finished(unit)
        assert check is not None
        if check.query is not None:
            self._answered_again(member, check, check.query, answer)
        elif not right:
            self._quarantine(member, f"answered a golden query of the role {unit.role} wrongly")
        if not member.replaced:
            self._verify_next(member)

    def _quarantine(self, member: Member, why: str) -> None:
        member.quarantined += 1
        member.replaced = True
        self._give_up_checks(member)
        self._take_out(member, RecycleReason.QUARANTINED, why)
        others = self._members.values()
        if member.node is None or all(each.node == member.node for each in others):
            return  # if all share a node, that is no sign of a fault
        for other in others:
            if other.is_in and other.node == member.node:
                self._suspect(other)

    def not_verified(self, unit: Unit, *, rest: float = 0.0) -> None:
        """A golden query got no answer: the instance failed, or turned it away for `rest`."""
        member = self._members[unit.instance]
        self._give_up_checks(member)
        member.sound = False
        if member.replaced:
            return
        if not member.is_in:
            if rest == 0 and member.back_off > BACK_OFF:
                self._take_out(member, RecycleReason.FAILING, "fails golden queries")
            self._back_off(member, rest)
        elif rest > 0:
            self._set_timer(member, rest, self._rested)
        else:
            self._charge(member)
            if member.is_in:
                self._dispatch.mark_idle(member.name, 0.0, finished=False)

    def _suspect(self, member: Member) -> None:
        """Verify it at once, or after its present unit."""
        member.suspected = True
        if self._verify_every and member.is_in and self._dispatch.occupy(member.name):
            self._verify_again(member)

    def _verify_again(self, member: Member) -> None:
        """Verify the roles that are due; all of them if it is suspected."""
        member.to_verify.extendleft(
            Check(role)
            for role in reversed(_in_order(member.roles))
            if member.suspected or member.served[role] >= self._verify_every
        )
        self._verify_next(member)

    def _verify_next(self, member: Member) -> None:
        """Begin the next check; after the last one, the instance is idle."""
        if member.to_verify:
            self._verify(member, member.to_verify.popleft())
            return
        if member.suspected and self._verify_every:
            member.suspected = False
        if not member.is_in:
            member.is_in = True
            self._dispatch.join(member.name, member.roles, member.node)
        elif not self._answers_again(member):
            self._dispatch.mark_idle(member.name, 0.0, finished=False)

    def _verify(self, member: Member, check: Check) -> None:
        member.check, role, probe = check, check.role, self._probes[check.role]
        if check.query is None:
            member.served[role] = 0
            self._probes[role] += 1
        self.started(self._core.verify(member.name, role, probe, check.query, check.kind))

    # Wrong answers to clients: some queries are answered again elsewhere, and a third decides

    def _take_sample(self, member: Member, unit: Unit) -> None:
        """Have another instance answer a query that this one has just answered, if one can."""
        member.samples += 1
        member.until_sample = min(self._sample_every, 2**member.samples)
        query = self._core.queries.get(unit.tasks[0].subject)
        if query is None or query.crashes or any(task.failed_on for task in query.tasks):
            return
        if self._core.up(DEPLOYED) < 2 or len(self._asked) >= MAX_ASKED:
            return
        check = Check(DEPLOYED, query.id, unit.kind, [[member.name]])
        self._hold(check)
        self._ask_another(check)

    def _ask_another(self, check: Check) -> None:
        """Have an instance that has not answered the sample do so, as soon as one is idle."""
        if self._dispatch.idle_for(DEPLOYED):
            for name in self._dispatch.up[DEPLOYED]:
                if check.can_ask(name) and self._dispatch.occupy(name):
                    self._verify(self._members[name], check)
                    return
        self._asked.append(check)

    def _answers_again(self, member: Member) -> bool:
        """Have this idle instance answer a sample that waits. Return whether there is one."""
        for check in self._asked:
            if check.can_ask(member.name) and DEPLOYED in member.roles:
                self._asked.remove(check)
                self._verify(member, check)
                return True
        return False

    def _answered_again(self, member: Member, check: Check, query: int, answer: int) -> None:
        """This instance has answered a sample. If two agree and a third differs, examine the third:
        it is wrong if it differs REPEATS times in a row."""
        if check.agreed is not None:
            check.repeats_left -= 1
            if check.repeats_left and (answer == check.agreed) == (check.suspect is not None):
                member.to_verify.appendleft(check)
                return
            if check.suspect is not None and answer == check.agreed:
                self._examine(check.suspect, replace(check, repeats_left=REPEATS, suspect=None))
            elif check.suspect is None and answer != check.agreed:
                why = "answered a client's query differently from two others, again and again"
                self._quarantine(member, why)
            self._core.release(query)
            return
        groups = check.answers
        if answer == len(groups):
            groups.append([])
        groups[answer].append(member.name)
        agreed = max(range(len(groups)), key=lambda number: len(groups[number]))
        others = [each for group in groups if group is not groups[agreed] for each in group]
        if len(groups[agreed]) > 1:
            check.agreed = agreed
            self._hold(check)
            self._agreed.append(check)
            if len(self._agreed) > MAX_AGREED:
                self._let_go(self._agreed.popleft())
            if others:
                confirm = replace(check, repeats_left=CONFIRMED, suspect=others[0])
                member.to_verify.appendleft(confirm)
                return
        elif len(groups) == 2 and self._core.up(DEPLOYED) > 2:
            self._ask_another(check)
            return
        else:
            for name in (groups[agreed][0], *others):
                if name in self._members:
                    self._suspect(self._members[name])
        self._core.release(query)

    def _examine(self, name: str, check: Check) -> None:
        member = self._members.get(name)
        if member is not None and not member.replaced:
            self._hold(check)
            member.to_verify.appendleft(check)
            if member.is_in and self._dispatch.occupy(name):
                self._verify_next(member)

    def _give_up_checks(self, member: Member) -> None:
        for check in (member.check, *member.to_verify):
            if check is not None:
                self._let_go(check)
        member.check = None
        member.to_verify.clear()

    def _hold(self, check: Check) -> None:
        assert check.query is not None
        self._core.hold(check.query)

    def _let_go(self, check: Check) -> None:
        if check.query is not None:
            self._core.release(check.query)


def _in_order(roles: frozenset[str]) -> list[str]:
    return sorted(roles, key=lambda role: (role != DEPLOYED, role))

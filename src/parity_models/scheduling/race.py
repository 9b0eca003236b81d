"""The race for one query: the model, exact copies and a stand-in; the first good answer wins.

The user gives one number, the share of all answers that may differ from the model's. It is earned
with every query and kept in a purse. A stand-in's output has a *doubt*: the probability that it
differs, given its confidence. Every answer of a stand-in is paid for with its doubt, so expected
differences never exceed the budget: of n consecutive queries at most share * (n + WINDOW).

An output answers when it is worth its price:

    doubt * price <= worth

- At first, an answer is worth what it spares the model: 1 + QUEUE * w ** 1.5, with w queries that
  wait for each instance. So cheap outputs answer at once, more of them the longer the queue is.
- Later, it is worth LATE * l ** 1.5, where l is the time since the query arrived, beyond the median
  run time and in median run times. Until then the output is *held*; the surer, the shorter. One
  that never becomes worth its price waits for the model or a copy.
- The price rises as the purse empties, and settles where income is spent.

The stand-in is asked when the query arrives if its output comes before the model begins, and if
that spares more work than it costs: the share of outputs that would answer at once must exceed the
stand-in's share of the model's time, by more than the driver's event loop takes for a query. The
output comes first while queries wait; a stand-in that is cheap enough (LIGHT) also may delay the
model. Else the stand-in is asked once the query is late: once its unit has run longer than most,
and the surest outputs would soon be worth their price. A query that is still late gets an exact
copy, within a budget.

All this costs the driver's event loop time. So help for late queries takes at most a share of the
time that the loop has left, and goes to the oldest while there is little. Once no redundant work
may be sent, no backup is asked first until the queries of that time have begun: it would overtake
them.

Nothing here reads a clock or does I/O. The server's policy (policies/adaptive.py), its simulation
and the client library (late/) drive the same races: they report events, and carry out the actions
that the methods return. Times are in seconds.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from math import exp, inf
from typing import NamedTuple, Protocol

from parity_models.roles import BACKUP, DEPLOYED
from parity_models.scheduling.effect import Effect
from parity_models.scheduling.run_times import RecentDurations, RunTimes

QUEUE, LATE = 12.0, 6.0
"""The worth of an answer while queries wait, and of a late one; 1 while nothing waits."""

WINDOW = 5000
"""The queries whose budget the purse holds when it is full."""

FIRST = 3000
"""The queries whose budget is in the purse at first."""

KEPT, GAIN = 0.75, 4.0
"""The price aims at a purse that is filled to the share KEPT, and reacts with this gain."""

MAX_DRIFT = 10.0
"""The bound of the price's integral, so that it is soon right again after a long calm."""

FAIR = 4.0
"""The first price: an output whose doubt is FAIR times the budget is worth it when nothing waits.
Answers that cost nothing make up for it."""

LIGHT = 0.1
"""A stand-in that takes at most this share of the model's time may delay the model."""

LATE_WORK = 0.05
"""Stand-ins that are asked for late queries cost at most this share of the model's work."""

COPIED = 0.1
"""The share of units, the longest ones, that are copied; a burst of late ones may use the rest of
the budget."""

MAX_TASKS = 3
"""The most tasks for one query, the backup's among them until its output is here: a query that is
slow everywhere is slow itself, and one that crashes instances should not crash more of them."""

BURST = 20.0
"""Copies, or redundant tasks, that may be sent at once after a time in which few were."""

SPARE = 0.05
"""An event loop that is busy for the share b of the time can spare (1 - b) / b of the work of a
query for each query. Help for late queries takes at most this share of it."""

OLDEST, RESERVE = 3.0, 10.0
"""Once fewer tasks than RESERVE are left of that, queries must be the older to be helped, up to
this many medians."""

NEWEST, MAX_GAP = 0.02, 0.1
"""The weight of the newest query in means, and the most seconds before one that count."""

WHILE_BUSY = 0.1
"""Minimum seconds until queries are reconsidered while nothing redundant may be sent."""

HELD_UP = 0.001
"""An alarm that is more than this many seconds late means that the driver was held up."""

COPY_SAVES = 0.5
"""Units are copied from an age from which they run this many median run times more on average."""

PRESUMED = 0.5
"""The backup's run time as a share of the model's, until it is known."""

MARGIN = 0.1
"""A margin of times, in median run times: half of all tasks take longer than their median."""

KNOWN = 50
"""Outputs of a stand-in from which its doubts are known; before, one query in EXPLORE asks it."""

EXPLORE = 8

PRESUMED_LATE = 2.0
"""While the model's times are unknown, a query without a deadline is late from this age on, and
from twice the longest time so far."""


class Ask(NamedTuple):
    """Run the query on this role: the model (once more, if it runs already), or the backup."""

    role: str


class Answer(NamedTuple):
    """Give the stand-in's output as the answer; it was paid for with this doubt."""

    doubt: float


class WakeAt(NamedTuple):
    """Call `alarm` at this time, and not at the time that was set before."""

    time: float


Action = Ask | Answer | WakeAt

ASK_BACKUP, ASK_MODEL = Ask(BACKUP), Ask(DEPLOYED)
JUST_MODEL = (ASK_MODEL,)


class Budget:
    """Allow `share` redundant tasks per query on average: at most `burst` + share * n for n
    consecutive queries. `left` may be spent now."""

    def __init__(self, share: float, burst: float = 10.0) -> None:
        self.share = share
        self._burst = self.left = burst

    def earn(self) -> None:
        """Add the share of a query that arrived."""
        left = self.left + self.share
        self.left = left if left < self._burst else self._burst

    def spend(self) -> bool:
        """Spend a task. Return whether the budget allowed it."""
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Purse:
    """Expected differences that may still be spent, and the price of one.

    Every query earns `share`; of n consecutive queries at most share * (n + WINDOW) is spent. The
    price is a controller's: proportional to how empty the purse is, with an integral that is
    critically damped (gain ** 2 / (4 * window)).
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.spent = 0.0
        self._saved = float(FIRST)
        """The queries whose budget is left."""
        self._seen = FIRST / KEPT
        self._drift = 0.0

    def change(self, share: float) -> None:
        """Earn another share from now on; what is saved keeps its number of queries."""
        self.share, self._drift = share, 0.0

    def earn(self) -> None:
        """Add the share of a query that arrived."""
        if self._seen < WINDOW:
            self._seen += 1
        if self._saved < WINDOW:
            self._saved = min(self._saved + 1, float(WINDOW))
        fill = self._saved / self._seen
        drift = self._drift + GAIN**2 / (4 * self._seen) * (KEPT - fill)
        if -MAX_DRIFT < drift < MAX_DRIFT:
            self._drift = drift

    @property
    def left(self) -> float:
        """The expected differences that may be spent now."""
        return self._saved * self.share

    @property
    def price(self) -> float:
        """The price of a unit of doubt; infinite without a budget."""
        if not self.share:
            return inf
        fill = self._saved / self._seen
        return exp(GAIN * (KEPT - fill) + self._drift) / (FAIR * self.share)

    def spend(self, doubt: float) -> bool:
        """Spend the doubt of an answer. Return whether there was enough left."""
        if not doubt <= self.left:
            return False
        if doubt:
            self._saved = max(0.0, self._saved - doubt / self.share)
        self.spent += doubt
        return True


class View(Protocol):
    """The conditions that a race asks its driver about, now."""

    @property
    def waiting(self) -> float:
        """Queries that wait for the model, per instance."""

    @property
    def idle(self) -> bool:
        """True if an instance is idle for the backup, and another for the model."""

    @property
    def open(self) -> bool:
        """True if the backup can be asked."""

    @property
    def helps(self) -> bool:
        """True if redundant work may be sent."""

    @property
    def busy(self) -> float:
        """The share of the time in which the driver's event loop is busy."""


class Rule:
    """What the races of one model share: budgets, prices, and measured times.

    Args:
        differ: The share of all answers that may differ from the model's.
        copies: The most copies per query, on average.
        backup: True if there is a backup to ask.
        may_hang: Copies do not end at MAX_TASKS; then one is sent when the query's age has doubled.

    """

    def __init__(
        self,
        differ: float,
        copies: float,
        *,
        backup: bool = True,
        runs: RunTimes | None = None,
        may_hang: bool = False,
    ) -> None:
        self.may_hang = may_hang
        self._has_backup = backup
        self.not_before = 0.0
        """The age from which a query may be helped."""
        self.lag = 0.0
        """Seconds that reports wait for the driver's process: no lateness of an instance."""
        self.purse = Purse(differ)
        self.copies = Budget(copies, BURST)
        self.help = Budget(inf, BURST)
        """Tasks for late queries that the event loop has time for."""
        self.passed_over: Race | None = None
        """The newest query that waits, and that may not ask the backup first."""
        self.runs = RunTimes(every=50) if runs is None else runs
        """Run times of the model."""
        self.effect = Effect()
        """Judges whether redundant work helps."""
        self.backup_runs = RunTimes(window=300, every=20)
        self._waits = RecentDurations(window=500, every=25)
        """Times from asking the backup to its output."""
        self._doubts: deque[float] = deque(maxlen=500)
        self._ranked: list[float] = []
        self._new_doubts = 0
        self._arrived, self._arrived_at = 0, 0.0
        self._loop_time = 0.0
        """Seconds of the event loop for each query, about."""
        self._rows = 1.0
        """Queries in a unit of the model, on average."""
        self.median = 0.0
        """The median run time of the model; 0 while it is unknown."""
        self.backup_share = PRESUMED
        """The backup's run time as a share of the model's; presumed until it is known."""
        self.helped_by = 0.0
        """The age by which help that was sent in time has answered: mostly the backup's output, or
        else a copy; 0 while it is unknown."""
        self._asked_after = 0.0
        self.copied_after = 0.0
        """The run time after which a unit is copied, but for the lag of reports."""
        self._renew()

    def earn(self, now: float, busy: float) -> None:
        """Add the budgets of a query that arrived while the event loop is this `busy`."""
        self._arrived += 1
        passed, self._arrived_at = min(now - self._arrived_at, MAX_GAP), now
        self._loop_time += NEWEST * (busy * passed - self._loop_time)
        self.purse.earn()
        if self.copies.left < BURST:
            self.copies.earn()
        if self.help.left < BURST:
            self.help.share = SPARE * (1 - busy) / busy if busy > 0 else inf
            self.help.earn()

    def ended(self, role: str, seconds: float, *, finished: bool, rows: int = 1) -> None:
        """Record the run time of a unit of so many rows, which ran to its end or not."""
        if role == DEPLOYED:
            self._rows += NEWEST * (rows - self._rows)
        times = {DEPLOYED: self.runs, BACKUP: self.backup_runs}[role]
        if times.add(seconds, finished=finished):
            self._renew()

    def _renew(self) -> None:
        """Derive from run times what races ask for most often."""
        median, backup = self.runs.median, self.backup_runs.median
        if not median:
            return
        self.median = median
        self.backup_share = share = backup / median if backup else PRESUMED
        longer = (share + MARGIN) * median
        self._asked_after = self.runs.lasts_from(min(0.5, LATE_WORK / share), longer)
        self.copied_after = self.runs.lasts_from(COPIED, COPY_SAVES * median)
        takes = backup if backup and self.affordable(LATE) > 0.5 else self.copied_after
        self.helped_by = self.lag + self.copied_after + takes + MARGIN * median

    def output(self, waited: float, doubt: float) -> None:
        """Record an output of the backup, its doubt, and the time since it was asked."""
        self._waits.add(waited)
        self._doubts.append(doubt)
        self._new_doubts += 1
        if self._new_doubts >= KNOWN:
            self._new_doubts, self._ranked = 0, sorted(self._doubts)

    @property
    def patience(self) -> float | None:
        """The time in which the backup's output is expected; None while it is unknown."""
        return self._waits.quantile(0.95)

    def worth(self, waiting: float) -> float:
        """Return the worth of an answer that spares the model a query while `waiting` wait per
        instance: what it spares, less what it costs to ask the backup for each such answer."""
        gross = 1 + QUEUE * waiting**1.5
        given = self.affordable(gross)
        return max(0.0, 1 - self.backup_share / given) * gross if given else 0.0

    def affordable(self, worth: float) -> float:
        """Return the share of outputs that are worth their price, and can be paid for."""
        doubt = min(worth / self.purse.price, self.purse.left)
        return bisect_right(self._ranked, doubt) / max(1, len(self._ranked))

    def asks_first(self, waiting: float) -> bool:
        """Return whether to ask the backup before a query is late: its output comes before the
        model begins, and it spares more than it costs instances, and than the event loop takes."""
        cost = self.backup_share
        if self.not_before:
            return False
        if not self._ranked:
            return self._arrived % EXPLORE == 0
        if cost > LIGHT and waiting <= cost:
            return False
        given = self.affordable(self.worth(waiting))
        return given > cost and (given - cost) * self.median >= self._rows * self._loop_time

    @property
    def asks(self) -> bool:
        """True if the backup may be asked at all."""
        return self._has_backup and self.purse.share > 0

    def asked_at(self, arrived: float, started: float) -> float:
        """Return when to ask the backup for a query that the model has run since `started`: once
        its unit is longer than most, and the surest outputs would soon be worth their price."""
        at = max(started + self.lag + self._asked_after, arrived + self.not_before)
        if not self._ranked:
            return at
        surest = self._ranked[len(self._ranked) // 20]
        released = self.released_after(surest) - self.backup_share * self.median
        return max(at, arrived + released)

    def helps_from(self, group: int, arrived: float) -> float:
        """Return the time from which help may be sent for a query of this group of `effect`."""
        left = self.help.left
        age = OLDEST * (1 - left / RESERVE) * self.median if left >= 1 else inf
        return max(arrived + age, self.effect.helps_from(group, arrived))

    def worth_late(self, age: float) -> float:
        """Return the worth of an answer to a query of this age."""
        return LATE * max(0.0, age / self.median - 1) ** 1.5 if self.median else inf

    def released_after(self, doubt: float) -> float:
        """Return the age of a query from which an output of this doubt is worth its price; infinite
        without a budget."""
        price = self.purse.price
        return self.median * (1 + (doubt * price / LATE) ** (2 / 3)) if price < inf else inf


@dataclass(slots=True, eq=False)
class Race:
    """The race for one query; see above. Every method returns the actions to carry out, in order.

    An answered race is over: its driver cancels what still runs. An `exact` query is raced by the
    model and its copies alone.
    """

    _rule: Rule
    arrived: float
    due: float
    exact: bool = False
    held: float | None = None
    """The doubt of the output that is held, if one is."""
    withheld: bool = False
    """True while the model waits for the backup."""
    at: float = inf
    """The time of the last WakeAt."""
    tasks: int = 1
    """How often the model was asked."""
    _group: int = 0
    _asked: float | None = None
    """When the backup was asked."""
    _first: float | None = None
    """When the model first began to run."""
    _started: float | None = None
    """When the newest of the model's tasks began; infinite until a copy begins."""

    def begin(self, now: float, view: View, *, stranded: bool = False) -> Collection[Action]:
        """The query has arrived; if it is `stranded`, the model cannot be asked."""
        rule = self._rule
        rule.earn(now, view.busy)
        if now >= rule.effect.acts_from:
            self._group = rule.effect.arrived(now)
        if stranded:
            return self.failed(now, view)
        if self.exact or not rule.asks or not view.open:
            return JUST_MODEL
        if self._keeps_place(view):
            rule.passed_over = self
            return JUST_MODEL
        waiting = view.waiting
        if not rule.asks_first(waiting):
            if not waiting or not rule.median:
                return JUST_MODEL
            return ASK_MODEL, self._wake(now + rule.median / 2)
        self._asked = now
        patience = rule.patience
        if patience is None or rule.backup_share > LIGHT or not view.idle:
            return ASK_BACKUP, ASK_MODEL
        self.withheld = True
        return ASK_BACKUP, self._wake(now + patience)

    def started(self, now: float, *, slow: bool = False) -> Collection[Action]:
        """The model, or a copy, runs from now on; on a `slow` instance the query is late."""
        self._started = now
        if self._rule.passed_over is self:
            self._rule.passed_over = None
        if self._first is None:
            self._first = -inf if slow else now
        self.withheld = False
        return self._next(now)

    def answered(self, now: float, doubt: float, view: View) -> Collection[Action]:
        """The backup's output is here; it differs from the model's with the probability `doubt`."""
        rule = self._rule
        if self.exact or self.held is not None:
            return ()
        rule.output(now - (self.arrived if self._asked is None else self._asked), doubt)
        self.held = doubt
        if doubt * rule.purse.price <= rule.worth(view.waiting) and rule.purse.spend(doubt):
            return (Answer(doubt),)
        if self.withheld:
            self.withheld = False
            return ASK_MODEL, *self._next(now)
        return self._next(now)

    def refused(self, now: float) -> Collection[Action]:
        """The backup's output must not answer, or its task failed: only the model may."""
        if self.exact:
            return ()
        if self._asked is not None and self.held is None:
            self._rule.output(now - self._asked, inf)
        self.exact, self.held = True, None
        if self.withheld:
            self.withheld = False
            return (ASK_MODEL,)
        return self._next(now)

    def reconstructed(self, now: float, doubt: float) -> Collection[Action]:
        """The prediction was reconstructed in place of a copy's; it answers now, or not at all."""
        rule = self._rule
        worth = rule.worth_late(now - self.arrived)
        if not self.exact and doubt * rule.purse.price <= worth and rule.purse.spend(doubt):
            return (Answer(doubt),)
        self._started = self.arrived  # so that it is copied
        return (self._wake(now),)

    def shared(self) -> None:
        """The query shares the parity query of another, in place of a copy."""
        self.tasks += 1
        self._started = inf

    def failed(self, now: float, view: View) -> Collection[Action]:
        """The model failed and is not asked again: ask the backup, or give what there is."""
        if self._may_ask(view):
            self._asked = now
            return (ASK_BACKUP,)
        return self.lost()

    def lost(self) -> Collection[Action]:
        """The query's instance failed, or its deadline has come: give what there is."""
        if self.held is not None and self._rule.purse.spend(self.held):
            return (Answer(self.held),)
        return ()

    def ended(self, now: float) -> None:
        """The query was answered, or has failed."""
        rule = self._rule
        if rule.passed_over is self:
            rule.passed_over = None
        rule.effect.ended(now, self._group, now - self.arrived, rule.helped_by)

    def alarm(self, now: float, view: View) -> Collection[Action]:
        """The time of the last WakeAt has come.

        If this is reported late, the driver was held up, and so may be what instances have to
        report: the decision waits for as long again, once.
        """
        late, self.at = now - self.at, inf
        if late > HELD_UP:
            return (WakeAt(now + late),)
        rule, held, first, started = self._rule, self.held, self._first, self._started
        is_due = held is not None and now >= self.arrived + rule.released_after(held)
        if held is not None and is_due and rule.purse.spend(held):
            return (Answer(held),)
        if self.withheld:  # the backup takes long
            self.withheld = False
            return ASK_MODEL, *self._next(now, again=True)
        actions: list[Action] = []
        helps = view.helps
        may_ask = helps and self.tasks < MAX_TASKS and self._may_ask(view)
        if first is None or started is None:
            if may_ask and not self._keeps_place(view) and rule.asks_first(view.waiting):
                self._asked = now
                actions.append(ASK_BACKUP)
        elif helps and now >= rule.helps_from(self._group, self.arrived):
            if may_ask and now >= rule.asked_at(self.arrived, first) and rule.help.spend():
                self._asked = now
                actions.append(ASK_BACKUP)
            known = rule.median or self.due < inf
            if known and now >= self._copied_at(started) and rule.copies.spend():
                rule.help.spend()
                self.tasks += 1
                self._started = inf  # until the copy starts
                actions.append(ASK_MODEL)
        wait = 0.0 if helps else WHILE_BUSY
        return *actions, *self._next(now, again=True, wait=wait)

    def _keeps_place(self, view: View) -> bool:
        """Return whether the backup may not be asked first: no redundant work may be sent, or none
        might when an older query arrived that still waits, and would be overtaken."""
        return not view.helps or self._rule.passed_over is not None

    def _may_ask(self, view: View) -> bool:
        unasked = self._asked is None and not self.exact
        return unasked and self._rule.asks and view.open

    def _copied_at(self, started: float) -> float:
        """Return when to copy the query: not while the backup is expected to answer soon, nor if
        its output is released before a copy answers."""
        rule = self._rule
        # The time at which the backup was asked, if its output is still awaited.
        asked = None if self.exact or self.held is not None else self._asked
        if self.tasks + (asked is not None) >= MAX_TASKS:
            return 2 * started - self.arrived if rule.may_hang else inf
        at, median = started + rule.lag + rule.copied_after, rule.median
        at = max(at, self.arrived + rule.not_before)
        if asked is not None:
            at = max(at, asked + (rule.patience or median))
        if self.held is not None and self.held <= rule.purse.left:
            at = inf if self.arrived + rule.released_after(self.held) < at + median else at
        return at

    def _next(
        self, now: float, *, again: bool = False, wait: float = 0.0
    ) -> tuple[WakeAt] | tuple[()]:
        """Return the time of the next decision; one that is due `again` is made a little later, by
        `wait` seconds at least."""
        rule, first, started = self._rule, self._first, self._started
        median = rule.median
        if not median:
            if self.due < inf:
                return (self._wake((now + self.due) / 2),) if now < self.due else ()
            age = max(PRESUMED_LATE, 2 * rule.runs.longest, rule.not_before)
            at = max(self.arrived + age, now)
            if again:
                at = max(at, 2 * now - self.arrived)
            return (self._wake(at),)
        at = inf
        if self.held is not None:
            at = self.arrived + rule.released_after(self.held)
        elif first is None and self._asked is None and not self.exact:
            at = now + median / 2
        if first is not None and started is not None:
            if self._asked is None and not self.exact and rule.asks:
                at = min(at, rule.asked_at(self.arrived, first))
            at = min(at, self._copied_at(started))
        if again and at <= now:  # a query that hangs costs little time
            at = now + max(median / 4, (now - self.arrived) / 8, wait)
        if at == inf:
            return ()
        self.at = at = max(at, now)
        return (WakeAt(at),)

    def _wake(self, at: float) -> WakeAt:
        self.at = at
        return WakeAt(at)

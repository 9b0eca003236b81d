"""The rule for one query: what is asked, and when a stand-in's output answers; and run times."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_world import SOME_SLOW, run_times
from parity_models.roles import BACKUP, DEPLOYED
from parity_models.scheduling import race as racing
from parity_models.scheduling.race import (
    ASK_BACKUP,
    ASK_MODEL,
    KNOWN,
    MAX_TASKS,
    Action,
    Answer,
    Ask,
    Budget,
    Purse,
    Race,
    Rule,
    WakeAt,
)
from parity_models.scheduling.run_times import RunTimes

SHARE = 0.001


@dataclass
class Conditions:
    """A View."""

    waiting: float = 0.0
    idle: bool = True
    open: bool = True
    helps: bool = True
    busy: float = 0.0


CALM = Conditions()


def rule(differ: float = SHARE, doubts: Sequence[float] = (), backup: float = 0.01) -> Rule:
    """Return a rule that knows the run times, and so many outputs' doubts."""
    known = Rule(differ, 0.0, runs=run_times(*SOME_SLOW))
    for number in range(KNOWN if doubts else 0):
        known.output(backup, doubts[number % len(doubts)])
        known.ended(BACKUP, backup, finished=True)
    return known


def asked(known: Rule, now: float = 0.0) -> Race:
    """Return a race whose model runs, and whose backup was asked."""
    race = Race(known, now, now + 100)
    with patch.object(Rule, "asks_first", return_value=True):
        assert ASK_BACKUP in race.begin(now, Conditions(idle=False))
    race.started(now)
    return race


def within(history: Sequence[tuple[float, float]], burst: float) -> bool:
    """Return whether at most `burst` more than earned is ever spent: sums of both, in time."""
    least = inf
    for earned, spent in history:
        least = min(least, spent - earned)
        if spent - earned - least > burst + 1e-6:
            return False
    return True


# Budgets


@given(st.floats(0.01, 1), st.floats(1, 50), st.lists(st.booleans(), max_size=500))
def test_budget_of_copies_always_holds(share: float, burst: float, history: list[bool]) -> None:
    budget, earned, spent = Budget(share, burst), 0.0, 0
    sums = [(0.0, 0.0)]
    for wants in history:
        if wants:
            spent += budget.spend()
        else:
            budget.earn()
            earned += share
        sums.append((earned, spent))
    assert within(sums, burst)


SHARES = (0.0, 0.001, 0.1, 0.1, 1.0)


@given(st.lists(st.one_of(st.none(), st.floats(0, 2), st.sampled_from(SHARES).map(str))))
def test_purse_spends_a_share_and_a_window_at_most(history: list[float | str | None]) -> None:
    """Queries arrive (None), doubts are spent (numbers), and the share changes (texts)."""
    with patch.multiple(racing, WINDOW=10, FIRST=3):
        purse, queries, most = Purse(0.1), 0, 0.1
        sums = [(0.0, 0.0)]
        for event in history:
            if event is None:
                purse.earn()
                queries += 1
            elif isinstance(event, str):
                purse.change(float(event))
                most = max(most, purse.share)
            else:
                purse.spend(event)
            assert purse.left >= 0
            assert purse.price > 0
            sums.append((queries, purse.spent))
        assert within([(most * number, spent) for number, spent in sums], most * 10)


def test_the_price_rises_as_the_purse_empties_and_falls_as_it_fills() -> None:
    purse = Purse(0.1)
    before = purse.price
    purse.spend(purse.left / 2)
    spent = purse.price
    assert spent > before
    for _ in range(2000):
        purse.earn()
    assert purse.price < spent


# Any history


@dataclass
class Query:
    """What a driver knows of a query."""

    race: Race
    asked: Counter[str] = field(default_factory=Counter)
    queued: int = 0
    """The model's tasks that have not started."""
    alarm: float | None = None
    pending: bool = False
    """The backup's output is awaited."""
    output: float | None = None


class Driver:
    """Drives races through events that may be late, and checks every action."""

    def __init__(self, differ: float, copies: float) -> None:
        self.rule = Rule(differ, copies)
        self.copies, self.most = copies, differ
        self.view = Conditions()
        self.now = 0.0
        self.arrived = 0
        self.queries: dict[int, Query] = {}
        self.log: list[object] = []
        self.spent, self.copied = [(0.0, 0.0)], [(0.0, 0.0)]

    def step(self, name: str, choice: int) -> None:
        """Let something happen, if it can."""
        getattr(self, f"_{name}")(choice)
        for query in self.queries.values():
            if query.output is not None and not query.race.exact:
                assert query.race.held == query.output, "an output that has not answered is held"
            if query.race.withheld:
                assert query.alarm is not None or query.pending, "the model does not wait for ever"
        self.spent.append((self.arrived, self.rule.purse.spent))
        self.copied.append((self.copies * self.arrived, self.copied[-1][1]))

    def _pick(self, choice: int, suits: Callable[[Query], object]) -> list[tuple[int, Query]]:
        """Return one of the queries that suit, if there are any."""
        found = [each for each in self.queries.items() if suits(each[1])]
        return found[choice % len(found) :][:1] if found else []

    def _arrive(self, choice: int) -> None:
        self.arrived += 1
        due = self.now + (inf, 1.0, 9.0)[choice % 3]
        race = Race(self.rule, self.now, due, exact=choice % 7 == 0)
        self.queries[self.arrived] = Query(race)
        self._carry_out(self.arrived, race.begin(self.now, self.view))
        assert race.withheld or self.queries[self.arrived].queued == 1

    def _start(self, choice: int) -> None:
        for number, query in self._pick(choice, lambda query: query.queued):
            query.queued -= 1
            self._carry_out(number, query.race.started(self.now, slow=choice % 3 == 0))

    def _output(self, choice: int) -> None:
        for number, query in self._pick(choice, lambda query: query.pending):
            query.pending, query.output = False, (0.0, 0.0005, 0.05, 0.3, 1.0)[choice % 5]
            self._carry_out(number, query.race.answered(self.now, query.output, self.view))

    def _refuse(self, choice: int) -> None:
        for number, query in self._pick(choice, lambda query: query.asked[BACKUP]):
            query.pending = False
            self._carry_out(number, query.race.refused(self.now))
            assert not query.race.withheld

    def _reconstruct(self, choice: int) -> None:
        for number, query in self._pick(choice, lambda query: query.race.tasks > 1):
            self._carry_out(number, query.race.reconstructed(self.now, choice / 500))

    def _lose(self, choice: int) -> None:
        for number, query in self._pick(choice, lambda query: query.asked[DEPLOYED]):
            race = query.race
            lost = race.lost() if choice % 2 else race.failed(self.now, self.view)
            self._carry_out(number, lost)

    def _end(self, choice: int) -> None:
        for number, _ in self._pick(choice, lambda query: query.asked[DEPLOYED]):
            self._over(number)

    def _time(self, choice: int) -> None:
        """The clock lags: alarms are late."""
        self.now += choice / 100
        due = [(query.alarm, n) for n, query in self.queries.items() if query.alarm is not None]
        for alarm, number in sorted(due):
            if alarm <= self.now:
                self.queries[number].alarm = None
                actions = self.queries[number].race.alarm(self.now, self.view)
                self._carry_out(number, actions)

    def _unit(self, choice: int) -> None:
        for _ in range(25):
            self.rule.ended(DEPLOYED, 0.5 + choice / 100, finished=choice % 4 > 0)
            self.rule.ended(BACKUP, choice / 500, finished=True)

    def _view(self, choice: int) -> None:
        self.view = Conditions(choice % 4, choice % 3 > 0, choice % 5 > 0, choice % 7 > 0)
        self.view.busy = choice % 11 / 10

    def _change(self, choice: int) -> None:
        self.rule.purse.change(SHARES[choice % len(SHARES)])
        self.most = max(self.most, self.rule.purse.share)

    def _over(self, number: int) -> None:
        self.queries.pop(number).race.ended(self.now)

    def _carry_out(self, number: int, actions: Collection[Action]) -> None:
        for action in actions:
            self.log.append((number, action))
            query = self.queries[number]  # KeyError: it was answered before
            if isinstance(action, Answer):
                assert not query.race.exact
                self._over(number)
            elif isinstance(action, WakeAt):
                assert isfinite(action.time)
                assert action.time >= self.now
                query.alarm = action.time
            else:
                self._ask(query, action)

    def _ask(self, query: Query, action: Ask) -> None:
        query.asked[action.role] += 1
        if action.role == BACKUP:
            assert query.asked[BACKUP] == 1
            assert self.rule.purse.share
            assert self.view.open
            assert not query.race.exact
            query.pending = True
        else:
            query.queued += 1
            assert query.asked[DEPLOYED] + query.pending <= MAX_TASKS
            if query.asked[DEPLOYED] > 1:
                self.copied.append((self.copied[-1][0], self.copied[-1][1] + 1))


EVENTS = [
    *["arrive"] * 3,
    *["start", "output", "time"] * 2,
    *["refuse", "reconstruct", "lose", "end", "unit", "view", "change"],
]
STEPS = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 1000)), max_size=150)
TINY: dict[str, Any] = {"WINDOW": 10, "FIRST": 5, "KNOWN": 3, "BURST": 2.0}


@given(st.sampled_from(SHARES), st.sampled_from([0.0, 0.3]), STEPS)
def test_race_keeps_promises(differ: float, copies: float, steps: list[tuple[str, int]]) -> None:
    with patch.multiple(racing, **TINY):
        drivers = Driver(differ, copies), Driver(differ, copies)
        for driver in drivers:
            for step in steps:
                driver.step(*step)
        assert drivers[0].log == drivers[1].log, "the same events give the same actions"
    driver = drivers[0]
    assert within([(driver.most * n, spent) for n, spent in driver.spent], driver.most * 10)
    assert within(driver.copied, 2.0)
    for _ in range(3):
        driver.step("time", 100_000)
    assert all(query.asked[DEPLOYED] for query in driver.queries.values() if not query.pending)


# When an output answers


def released(doubt: float) -> float:
    """Return when an output of this doubt answers a query that has arrived at 0."""
    race = asked(rule())
    actions: Collection[Action] = race.answered(0.1, doubt, CALM)
    while Answer(doubt) not in actions:
        (now,) = (action.time for action in actions if isinstance(action, WakeAt))
        actions = race.alarm(now + 1e-9, CALM)
    return now


def test_the_surer_an_output_the_sooner_it_is_released() -> None:
    assert 1 < released(0.05) < released(0.2) < released(0.5)


def test_an_output_with_little_doubt_answers_at_once_and_others_only_where_queries_wait() -> None:
    assert asked(rule()).answered(0.1, 0.0, CALM) == (Answer(0.0),)
    doubt = 0.02
    for waiting in (0.0, 9.0):
        actions = asked(rule(SHARE, [0.0, doubt])).answered(0.1, doubt, Conditions(waiting))
        assert (Answer(doubt) in actions) == (waiting > 0)


def test_an_output_stays_held_while_the_purse_is_empty() -> None:
    known = rule()
    race = asked(known)
    race.answered(0.1, 0.1, CALM)
    known.purse.spend(known.purse.left)
    for actions in (race.alarm(50.0, CALM), race.lost()):
        assert Answer(0.1) not in actions
    assert race.held == 0.1
    for _ in range(1000):
        known.earn(0.0, 0.0)
    assert race.lost() == (Answer(0.1),)


def test_an_output_without_doubt_is_held_once_there_is_no_budget() -> None:
    known = rule()
    race = asked(known)
    known.purse.change(0.0)
    (wake,) = race.answered(0.1, 0.0, CALM)
    assert isinstance(wake, WakeAt)
    assert isfinite(wake.time), "the alarm is that of the copy"


def test_failed_model_leads_to_the_backup_or_to_its_held_output() -> None:
    race = Race(rule(), 0.0, 9.0)
    race.begin(0.0, CALM)
    race.started(0.0)
    assert race.failed(0.1, Conditions(open=False)) == ()
    assert race.failed(0.1, CALM) == (ASK_BACKUP,)
    race.answered(0.2, 0.5, CALM)
    assert race.failed(0.3, CALM) == (Answer(0.5),)


# When the backup is asked


@pytest.mark.parametrize(
    ("doubts", "backup", "first"),
    [
        ([0.0], 0.01, True),
        ([0.9], 0.01, False),
        ([0.0, 0.9], 0.09, True),
        ([0.0, *[0.9] * 24], 0.09, False),
        ([0.0], 2.0, False),
    ],
)
def test_backup_goes_first_where_it_pays(doubts: list[float], backup: float, first: bool) -> None:
    known = rule(SHARE, doubts, backup)
    assert (ASK_BACKUP in Race(known, 0.0, 9.0).begin(0.0, CALM)) == first
    assert ASK_BACKUP not in Race(known, 0.0, 9.0, exact=True).begin(0.0, CALM)


@pytest.mark.parametrize(("rows", "first"), [(1, True), (30, False)])
def test_backup_goes_first_where_the_event_loop_takes_less_than_it_spares(
    rows: int, first: bool
) -> None:
    """The loop takes 0.09 s for a query, and the model 1 s for a unit."""
    known, view = rule(SHARE, [0.0]), Conditions(busy=0.9)
    for _ in range(300):
        known.ended(DEPLOYED, 1.0, finished=True, rows=rows)
    actions = [Race(known, 0.1 * each, 99.0).begin(0.1 * each, view) for each in range(300)]
    assert (ASK_BACKUP in actions[-1]) == first


def test_the_model_waits_only_for_a_backup_that_is_quick_and_has_an_instance() -> None:
    quick, heavy = rule(SHARE, [0.0], 0.01), rule(SHARE, [0.0], 0.4)
    busy = Conditions(waiting=1.0, idle=False)
    for known, view, waits in ((quick, CALM, True), (quick, busy, False), (heavy, busy, False)):
        race = Race(known, 0.0, 9.0)
        begun = race.begin(0.0, view)
        assert ASK_BACKUP in begun
        assert (ASK_MODEL not in begun) == waits == race.withheld


def test_a_query_that_got_no_help_is_not_overtaken() -> None:
    known = rule(SHARE, [0.0])
    older, newer, last = (Race(known, 0.0, 9.0) for _ in range(3))
    assert older.begin(0.0, Conditions(helps=False)) == (ASK_MODEL,)
    assert newer.begin(0.1, CALM) == (ASK_MODEL,), "it would overtake the older one"
    older.started(0.2)
    newer.ended(0.3)
    assert ASK_BACKUP in last.begin(0.3, CALM)


def test_the_busier_the_event_loop_the_fewer_and_the_older_queries_are_helped() -> None:
    helped: dict[float, list[float]] = {}
    for busy in (0.1, 0.5, 0.9):
        known, view = rule(SHARE, [0.0], 0.5), Conditions(busy=busy)
        helped[busy] = []
        for number in range(1000):
            race = Race(known, float(number), inf)
            race.begin(number, view)
            race.started(number, slow=True)
            ages = [each / 10 for each in range(10, 60)]
            for age in ages:
                race.at = number + age
                if ASK_BACKUP in race.alarm(number + age, view):
                    helped[busy].append(age)
                    break
    assert len(helped[0.1]) > 400
    assert 60 < len(helped[0.5]) < 80
    assert 20 < len(helped[0.9]) < 30
    for ages in helped.values():
        assert ages[0] == 1.0
        assert ages[-1] > 2, "once there is little time left, only the oldest are helped"


# Run times are estimated from all units, those cut short included


@given(
    st.lists(st.sampled_from([1.0, 1.5, 2.0, 4.0, 9.0]), min_size=1),
    st.sampled_from([0.0, 0.2, 0.5]),
)
def test_at_most_the_share_of_units_is_below_a_quantile(times: list[float], share: float) -> None:
    age = run_times(*((time, True) for time in times)).quantile(share)
    assert age is not None
    assert sum(time < age for time in times) <= share * len(times)
    assert sum(time <= age for time in times) > share * len(times)


def test_units_cut_short_before_the_median_say_nothing() -> None:
    known = RunTimes(every=5)
    for seconds in (1, 2, 3, 4, 5):
        known.add(seconds, finished=True)
    assert not any(known.add(2.9, finished=False) for _ in range(5))
    assert known.median == 3
    for _ in range(5):
        known.add(3.0, finished=False)
    assert known.median == 5
    assert known.quantile(0.9) == 6, "past it, they run for twice as long"


def test_slow_units_are_remembered_though_they_are_cut_short() -> None:
    known = RunTimes(window=100, every=10)
    for unit in range(300):
        slow, seen = unit % 10 == 9, unit < 100
        known.add((9.0 if seen else 1.3) if slow else 1.0, finished=seen or not slow)
    late, longest = known.quantile(0.94), known.quantile(0.99)
    assert late is not None
    assert longest is not None
    assert longest < 9, "those that ran to their end are forgotten"
    assert late > 2, "what is late runs as long again"

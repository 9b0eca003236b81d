"""The watch of the live page, which hears of a server's events without a server."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histories import check_nothing_is_left
from observed_world import observed_history
from parity_models.scheduling import (
    BACKUP,
    DEPLOYED,
    Action,
    Answer,
    Fail,
    Reason,
    Recycle,
    RecycleReason,
    Redundancy,
    Run,
    Source,
)
from parity_models.scheduling.health import State
from parity_models.serving.metrics import Metrics
from parity_models.serving.page.watch import (
    MINUTES,
    NOW,
    REMEMBERED,
    WIDTH,
    InstanceView,
    Latencies,
    Watch,
)

BOTH = frozenset({DEPLOYED, BACKUP})
EPOCH = 1000.0
SECONDS = st.floats(1e-5, 100.0)


class AnyRequest:
    """Every query arrived at 0."""

    def __getitem__(self, query: int) -> SimpleNamespace:
        return SimpleNamespace(arrived=0.0)


class FakeFrontend:
    """The part of a frontend that a watch reads."""

    ready = True
    asked = 0
    redundancy = Redundancy.ON

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.of_instances: dict[str, State] = {}
        self.scheduler = self
        self.front_door = SimpleNamespace(lag=0.0)

    def instances(self) -> list[tuple[str, State]]:
        return list(self.of_instances.items())

    def queue_depths(self) -> dict[str, int]:
        return {DEPLOYED: 3}

    def busy_seconds(self) -> dict[str, float]:
        return {DEPLOYED: 0.0}


def watch_of(frontend: FakeFrontend, clock: Any = lambda: 0.0) -> Watch:
    requests: Any = AnyRequest()
    unchecked: Any = frontend
    return Watch(unchecked, requests, model="m", policy="p", clock=clock, epoch=EPOCH)


class Watched:
    """A watch of three instances, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.frontend = FakeFrontend()
        self.watch = watch_of(self.frontend, lambda: self.now)
        for number in range(3):
            self.watch.instance_joined(0.0, str(number), BOTH, f"node{number % 2}")

    def act(self, *actions: Action) -> None:
        self.watch.acted(self.now, actions)

    def run(self, instance: str, seconds: float) -> None:
        """Let an instance run a unit of the model for so long."""
        unit = Run(instance, int(1e6 * self.now), DEPLOYED, (1,))
        self.act(unit)
        self.now += seconds
        self.watch.unit_ended(self.now, unit, finished=True)

    def cells(self) -> dict[str, InstanceView]:
        return {view.name: view for view in self.watch.views(self.now)}

    def slow(self) -> list[str]:
        return [name for name, cell in self.cells().items() if cell.slow]

    def pass_time(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.watch.tick()

    def kinds(self) -> list[str]:
        return [event.kind for event in self.watch.events]


def test_an_instance_shows_what_it_runs_and_how_long_that_takes_it() -> None:
    watched = Watched()
    unit = Run("1", 1, DEPLOYED, (7,))
    watched.act(unit)
    watched.now = 0.25
    cell = watched.cells()["1"]
    assert (cell.running, cell.since_ms) == (DEPLOYED, 250.0)
    watched.watch.unit_ended(watched.now, unit, finished=True)
    cell = watched.cells()["1"]
    assert (cell.running, cell.usual_ms) == ("", 250.0)


def test_an_instance_is_slow_if_its_units_take_or_have_taken_longer_than_those_of_others() -> None:
    watched = Watched()
    for name, seconds in (("0", 0.01), ("1", 0.012), ("2", 0.05)):
        watched.run(name, seconds)
    assert watched.slow() == ["2"]
    watched.act(Run("0", 9, DEPLOYED, (9,)))
    watched.now += 0.015
    assert watched.slow() == ["2"]
    watched.now += 0.015
    assert watched.slow() == ["0", "2"]


def test_an_instance_that_is_gone_is_shown_until_another_replaces_it() -> None:
    watched = Watched()
    watched.watch.instance_left(1.0, "0", "was ended")
    watched.watch.instance_left(1.0, "1", "was ended by signal 9 (Killed)")
    gone = watched.cells()["1"]
    assert (gone.state, gone.why) == ("gone", "was ended by signal 9 (Killed)")
    watched.watch.instance_joined(2.0, "1.1", BOTH, "node1")
    assert watched.cells().keys() == {"0", "1.1", "2"}
    assert watched.kinds() == ["left", "left", "joined"]
    watched.now = 1.0 + REMEMBERED
    assert watched.cells().keys() == {"1.1", "2"}


def test_states_are_shown_and_ejections_are_events() -> None:
    watched = Watched()
    watched.frontend.of_instances = {"0": State.EJECTED, "1": State.SUSPECTED}
    watched.pass_time()
    states = {cell.name: cell.state for cell in watched.watch.frame().instances}
    assert states == {"0": "ejected", "1": "suspected", "2": "up"}
    watched.frontend.of_instances = {"0": State.UP, "1": State.UP}
    watched.pass_time()
    assert watched.kinds() == ["ejected", "back"]


def test_a_frame_has_the_answers_of_the_last_second_and_their_latencies() -> None:
    watched = Watched()
    watched.now = 0.5
    watched.act(Answer(11, Source.BACKUP), Answer(12, Source.MODEL), Answer(13, Source.MODEL))
    watched.act(Fail(14, Reason.OVERLOADED, "too much waits"))
    watched.pass_time(0.5)
    frame = watched.watch.frame()
    assert frame.latest is not None
    assert frame.latest.answers == {Source.BACKUP: 1, Source.MODEL: 2}
    assert (frame.latest.failed, frame.latest.queued) == (1, 3)
    assert frame.answered.now is not None
    assert (frame.answered.now.count, round(frame.answered.now.p50, -2)) == (3, 500)
    assert len(watched.watch.frame().points) == 1


def test_replaced_instances_and_failing_queries_are_events_once() -> None:
    watched = Watched()
    watched.act(Recycle("1", RecycleReason.QUARANTINED, "answered a golden query wrongly"))
    for query in range(5):
        watched.act(Fail(query, Reason.OVERLOADED, "too much waits"))
    assert [(event.kind, event.text) for event in watched.watch.events] == [
        ("quarantined", "instance 1 is replaced: it answered a golden query wrongly"),
        ("failed", "queries fail (overloaded): too much waits"),
    ]
    assert watched.watch.failures == {Reason.OVERLOADED: 5}


def test_gates_and_redundant_work_are_read_off_the_metrics() -> None:
    watched = Watched()
    metrics = watched.frontend.metrics
    metrics.gate_open.labels("backup").set(1)
    metrics.gate_agreement.labels("backup").set(0.99)
    metrics.compared_answers.labels("backup").inc(10)
    metrics.disagreed_answers.labels("backup").inc()
    metrics.redundant.labels("backup", "sent").inc(7)
    metrics.redundant.labels("copy", "sent")
    frame = watched.watch.frame()
    (gate,) = frame.gates
    assert (gate.source, gate.level, gate.open) == ("backup", 0.99, True)
    assert (gate.agreed, gate.compared) == (9, 10)
    assert frame.redundant == {"backup": {"sent": 7}}


@pytest.mark.parametrize(
    ("state", "text"),
    [
        *((state, "") for state in Redundancy),
        (Redundancy.BOTTLENECK, "process is the bottleneck; reports wait 3.2 ms"),
    ],
)
def test_a_frame_says_whether_redundant_work_is_sent(state: Redundancy, text: str) -> None:
    watched = Watched()
    watched.frontend.redundancy, watched.frontend.front_door.lag = state, 0.0032
    redundancy = watched.watch.frame().redundancy
    assert redundancy.startswith("redundant work: ")
    assert redundancy.endswith(text)


def test_a_gate_that_closes_and_opens_is_an_event_once_each() -> None:
    watched = Watched()
    for is_open in (1, 0, 0, 1, 1):
        watched.frontend.metrics.gate_open.labels("backup").set(is_open)
        watched.pass_time()
    assert watched.kinds() == ["gate closed", "gate open"]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
@pytest.mark.slow
def test_any_history_is_shown_as_it_happened_and_nothing_piles_up(seed: int) -> None:
    world, k = observed_history(seed, lambda: watch_of(FakeFrontend()))
    watch = world.observer
    assert isinstance(watch, Watch)
    shown = {view.name: view.running for view in watch.views(world.now)}
    running = {name: run.role for name, run in (world.running | world.unreported).items()}
    running |= dict.fromkeys(world.verifying, "golden query")
    for name in world.roles:
        assert shown[name] == running.get(name, "")
    check_nothing_is_left(world, k)
    assert sum(watch.answers.values()) == len(world.answers)
    assert sum(watch.failures.values()) == len(world.failures)


# Latencies


@given(st.lists(SECONDS, min_size=1, max_size=200))
def test_percentiles_are_those_of_what_was_added_within_a_bucket(seconds: list[float]) -> None:
    latencies = Latencies()
    for each in seconds:
        latencies.add(100.0, each)
    now = latencies.tail(101.0).now
    assert now is not None
    assert now.count == len(seconds)
    for share, value in ((50, now.p50), (99, now.p99), (99.9, now.p999)):
        exact = 1e3 * np.percentile(seconds, share, method="inverted_cdf")
        assert value == pytest.approx(exact, rel=WIDTH)


@given(st.lists(st.tuples(st.integers(0, 2 * MINUTES), SECONDS), max_size=100), st.integers(0, 900))
def test_a_window_holds_whole_past_seconds(added: list[tuple[int, float]], later: int) -> None:
    latencies = Latencies()
    for at, seconds in sorted(added):
        latencies.add(at + 0.2, seconds)
    now = max([at for at, _ in added], default=0) + later
    tail = latencies.tail(now + 0.9)
    for window, found in ((NOW, tail.now), (MINUTES, tail.minutes)):
        inside = sum(now - window <= at < now for at, _ in added)
        assert (0 if found is None else found.count) == inside

"""The watch of the live page, told of a server's events without a server."""

from types import SimpleNamespace
from typing import Any

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
    Verify,
)
from parity_models.scheduling.health import State
from parity_models.serving.metrics import Metrics
from parity_models.serving.page.instances import REMEMBERED, InstanceView
from parity_models.serving.page.watch import Watch

BOTH = frozenset({DEPLOYED, BACKUP})
EPOCH = 1000.0


class AnyRequest:
    """Every query arrived at 0."""

    def __getitem__(self, query: int) -> SimpleNamespace:
        return SimpleNamespace(arrived=0.0)


class FakeFrontend:
    """What a watch reads off a frontend."""

    ready = True
    asked = 0
    redundancy = Redundancy.ON
    lag = 0.0

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.of_instances: dict[str, State] = {}

    def states(self) -> dict[str, State]:
        return self.of_instances

    def queue_depths(self) -> dict[str, int]:
        return {DEPLOYED: 3}

    def busy_seconds(self) -> dict[str, float]:
        return {DEPLOYED: 0.0}


def watch_of(frontend: FakeFrontend, clock: Any = lambda: 0.0) -> Watch:
    requests: Any = AnyRequest()
    unchecked: Any = frontend
    return Watch(unchecked, requests, model="m", policy="p", clock=clock, epoch=EPOCH)


class Told:
    """A watch that has been told of some instances, and a clock."""

    def __init__(self, instances: int = 3) -> None:
        self.now = 0.0
        self.frontend = FakeFrontend()
        self.watch = watch_of(self.frontend, lambda: self.now)
        for number in range(instances):
            self.watch.instance_joined(0.0, str(number), BOTH, f"node{number % 2}")

    def act(self, *actions: Action) -> None:
        self.watch.acted(self.now, actions)

    def end(self, run: Run | Verify, *, finished: bool = True) -> None:
        self.watch.unit_ended(self.now, run, finished=finished)

    def cells(self, **states: State) -> dict[str, InstanceView]:
        return {view.name: view for view in self.watch.instances.views(self.now, states)}

    def pass_time(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.watch.tick()

    def events(self) -> list[tuple[str, str]]:
        return [(event.kind, event.text) for event in self.watch.events]


def run(unit: int, instance: str, role: str, *subjects: int) -> Run:
    return Run(instance, unit, role, subjects)


def test_an_instance_shows_what_it_runs_and_how_long_that_takes_it() -> None:
    told = Told()
    unit = run(1, "1", DEPLOYED, 7)
    told.act(unit)
    told.now = 0.25
    assert (told.cells()["1"].running, told.cells()["1"].since_ms) == (DEPLOYED, 250.0)
    told.end(unit)
    assert (told.cells()["1"].running, told.cells()["1"].usual_ms) == ("", 250.0)


def test_an_instance_is_slow_whose_units_take_longer_than_those_of_others() -> None:
    told = Told()
    for number, seconds in enumerate((0.01, 0.012, 0.05)):
        unit = run(number, str(number), DEPLOYED, number)
        told.act(unit)
        told.now += seconds
        told.end(unit)
    assert [name for name, cell in told.cells().items() if cell.slow] == ["2"]


def test_an_instance_is_slow_as_soon_as_its_unit_takes_longer_than_those_of_others() -> None:
    told = Told()
    for number in range(3):
        unit = run(number, str(number), DEPLOYED, number)
        told.act(unit)
        told.now += 0.01
        told.end(unit)
    told.act(run(9, "0", DEPLOYED, 9))
    told.now += 0.015
    assert not told.cells()["0"].slow
    told.now += 0.015
    assert told.cells()["0"].slow


def test_an_instance_that_is_gone_stays_in_its_place_until_another_comes_for_it() -> None:
    told = Told()
    place = told.cells()["1"].place
    told.watch.instance_left(1.0, "1", "was ended by signal 9 (Killed)")
    gone = told.cells()["1"]
    assert (gone.place, gone.state, gone.why) == (place, "gone", "was ended by signal 9 (Killed)")
    told.watch.instance_joined(2.0, "1.1", BOTH, "node1")
    assert "1" not in told.cells()
    assert told.cells()["1.1"].place == place
    assert [kind for kind, _ in told.events()] == ["left", "joined"]


def test_the_place_of_an_instance_that_does_not_come_back_is_given_up() -> None:
    told = Told()
    told.watch.instance_left(1.0, "1", "left")
    told.now = 1.0 + REMEMBERED
    assert "1" not in told.cells()


def test_states_are_shown_and_ejections_are_events() -> None:
    told = Told()
    told.frontend.of_instances = {"0": State.EJECTED, "1": State.SUSPECTED}
    told.pass_time()
    states = {cell.name: cell.state for cell in told.watch.frame(whole=True).instances}
    assert states == {"0": "ejected", "1": "suspected", "2": "up"}
    told.frontend.of_instances = {"0": State.UP, "1": State.UP}
    told.pass_time()
    assert [kind for kind, _ in told.events()] == ["ejected", "back"]


def test_a_frame_has_the_answers_of_the_last_second_and_their_latencies() -> None:
    told = Told()
    told.now = 0.5
    told.act(Answer(11, Source.BACKUP), Answer(12, Source.MODEL), Answer(13, Source.MODEL))
    told.act(Fail(14, Reason.OVERLOADED, "too much waits"))
    told.pass_time(0.5)
    frame = told.watch.frame(whole=False)
    assert frame.latest is not None
    assert frame.latest.answers == {Source.BACKUP: 1, Source.MODEL: 2}
    assert (frame.latest.failed, frame.latest.queued) == (1, 3)
    assert frame.answered.now is not None
    assert (frame.answered.now.count, round(frame.answered.now.p50, -2)) == (3, 500)
    assert len(told.watch.frame(whole=True).points) == 1


def test_replaced_instances_and_failing_queries_are_events_once() -> None:
    told = Told()
    told.act(Recycle("1", RecycleReason.QUARANTINED, "answered a golden query wrongly"))
    for query in range(5):
        told.act(Fail(query, Reason.OVERLOADED, "too much waits"))
    assert told.events() == [
        ("quarantined", "instance 1 is replaced: it answered a golden query wrongly"),
        ("failed", "queries fail (overloaded): too much waits"),
    ]
    assert told.watch.failures == {Reason.OVERLOADED: 5}


def test_gates_and_redundant_work_are_read_off_the_metrics() -> None:
    told = Told()
    metrics = told.frontend.metrics
    metrics.gate_open.labels("backup").set(1)
    metrics.gate_agreement.labels("backup").set(0.99)
    metrics.compared_answers.labels("backup").inc(10)
    metrics.disagreed_answers.labels("backup").inc()
    metrics.redundant.labels("backup", "sent").inc(7)
    metrics.redundant.labels("copy", "sent")
    frame = told.watch.frame(whole=True)
    (gate,) = frame.gates
    assert (gate.source, gate.level, gate.open) == ("backup", 0.99, True)
    assert (gate.agreed, gate.compared) == (9, 10)
    assert frame.redundant == {"backup": {"sent": 7}}


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (Redundancy.ON, "on, as the policy decides"),
        (Redundancy.TESTING, "on and off in turns, to test whether it shortens latencies"),
        (Redundancy.PAUSED, "paused, as it does not shorten latencies"),
        (
            Redundancy.BOTTLENECK,
            "stopped, as the server's own process is the bottleneck; reports wait 3.2 ms",
        ),
        (Redundancy.OFF, "switched off"),
    ],
)
def test_a_frame_says_whether_redundant_work_is_sent(state: Redundancy, text: str) -> None:
    told = Told()
    told.frontend.redundancy, told.frontend.lag = state, 0.0032
    assert told.watch.frame(whole=False).redundancy == f"redundant work: {text}"


def test_a_gate_that_closes_and_opens_is_an_event_once_each() -> None:
    told = Told()
    for is_open in (1, 0, 0, 1, 1):
        told.frontend.metrics.gate_open.labels("backup").set(is_open)
        told.pass_time()
    assert [kind for kind, _ in told.events()] == ["gate closed", "gate open"]


def test_each_frame_has_the_events_that_are_new() -> None:
    told = Told()
    told.watch.instance_left(1.0, "1", "left")
    assert [event.at for event in told.watch.frame(whole=False).events] == [EPOCH + 1.0]
    told.watch.instance_left(2.0, "2", "left")
    assert [event.number for event in told.watch.frame(whole=False).events] == [2]
    assert [event.number for event in told.watch.frame(whole=True).events] == [1, 2]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_any_history_is_shown_as_it_happened_and_nothing_piles_up(seed: int) -> None:
    world, k = observed_history(seed, lambda: watch_of(FakeFrontend()))
    watch = world.observer
    assert isinstance(watch, Watch)
    shown = {view.name: view.running for view in watch.instances.views(world.now, {})}
    running = {name: run.role for name, run in (world.running | world.unreported).items()}
    running |= dict.fromkeys(world.verifying, "golden query")
    for name in world.roles:
        assert shown[name] == running.get(name, "")
    check_nothing_is_left(world, k)
    assert sum(watch.answers.values()) == len(world.answers)
    assert sum(watch.failures.values()) == len(world.failures)
    assert not watch.instances.running()

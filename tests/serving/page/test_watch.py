"""The watch of the live page, which hears of a server's events without a server."""

import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histories import check_nothing_is_left, observed_history
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.actions import Action, Answer, Fail, Reason
from parity_models.scheduling.health import State
from parity_models.serving.metrics import Metrics
from parity_models.serving.page.watch import NOW, Watch
from parity_models.trust.gate import Gate
from parity_models.trust.gates import UNKNOWN
from parity_models.trust.judge import StandInJudge

BOTH = frozenset({DEPLOYED, BACKUP})


class FakeFrontend:
    """The part of a frontend that a watch reads."""

    ready = True
    degraded = False
    asked = 0
    redundancy = "redundant work: on"
    differing = ""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.of_instances: dict[str, State] = {}
        self.scheduler = self
        self.stand_ins = self
        self.judges: dict[str, StandInJudge] = {}
        self.in_flight: defaultdict[int, Any] = defaultdict(lambda: SimpleNamespace(arrived=0.0))

    def instances(self) -> list[tuple[str, State]]:
        return list(self.of_instances.items())

    def queue_depths(self) -> dict[str, int]:
        return {DEPLOYED: 3}

    def busy_seconds(self) -> dict[str, float]:
        return {DEPLOYED: 0.0}


def watch_of(frontend: FakeFrontend) -> Watch:
    unchecked: Any = frontend
    return Watch(unchecked, "p", 0.0)


class Watched:
    """A watch of three instances, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.frontend = FakeFrontend()
        self.watch = watch_of(self.frontend)
        for number in range(3):
            self.watch.instance_joined(0.0, str(number), BOTH, f"node{number % 2}")

    def act(self, *actions: Action) -> None:
        self.watch.acted(self.now, actions)

    def pass_time(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.watch.ticked(self.now)


def test_a_frame_has_the_answers_of_the_last_second_and_their_latencies() -> None:
    watched = Watched()
    watched.now = 0.5
    watched.act(Answer(11, Source.BACKUP), Answer(12, Source.MODEL), Answer(13, Source.MODEL))
    watched.act(Fail(14, Reason.OVERLOADED, "too much waits"))
    watched.pass_time(0.5)
    frame = watched.watch.frame(watched.now)
    (latest,) = frame.points
    assert latest.answers == {Source.BACKUP: 1, Source.MODEL: 2}
    assert (latest.failed, latest.queued) == (1, 3)
    assert latest.answered is not None
    assert latest.answered.p50 == 500
    for _ in range(NOW):
        watched.pass_time()
    assert watched.watch.frame(watched.now).points[-1].answered is None


def test_gates_and_redundant_work_are_read_off_the_metrics() -> None:
    watched = Watched()
    metrics = watched.frontend.metrics
    judge = StandInJudge(Gate(UNKNOWN, 0.9))
    watched.frontend.judges["backup"] = judge
    (gate,) = watched.watch.frame(watched.now).gates
    assert (gate.open, gate.coverage, gate.turns, gate.turned) == (False, 0, (), "")
    for output in np.random.default_rng(0).normal(size=(1000, 3)):
        judge.compare(output, output, late=False)
    metrics.compared_answers.labels("backup", "in time").inc(10)
    metrics.disagreed_answers.labels("backup", "in time").inc()
    metrics.compared_answers.labels("backup", "late").inc(3)
    metrics.redundant.labels("backup", "sent").inc(7)
    metrics.redundant.labels("copy", "sent")
    frame = watched.watch.frame(watched.now)
    (gate,) = frame.gates
    assert (gate.source, gate.level, gate.open, gate.coverage) == ("backup", 0.9, True, 1)
    assert (gate.agreed, gate.compared, gate.late_agreed, gate.late_compared) == (9, 10, 3, 3)
    assert gate.turns[-1][1] == 1
    assert "opened further" in gate.turned
    assert frame.redundant == {"backup": {"sent": 7, "answered": 0, "cancelled": 0}}


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
@pytest.mark.slow
def test_any_history_is_shown_as_it_happened_and_nothing_piles_up(seed: int) -> None:
    world, k = observed_history(seed, watch_of(FakeFrontend()))
    watch = world.observer
    assert isinstance(watch, Watch)
    shown = {view.name: view.running for view in watch.instances()}
    running = {name: run.role for name, run in (world.running | world.unreported).items()}
    running |= dict.fromkeys(world.verifying, "golden query")
    for name in world.roles:
        assert shown[name] == running.get(name, "")
    check_nothing_is_left(world, k)
    assert sum(watch.answers.values()) == len(world.answers)
    assert watch.failed == len(world.failures)


def test_a_frame_is_made_once_for_all_browsers() -> None:
    watch = Watched().watch
    frame = watch.encoded_frame(10.0)
    assert json.loads(frame)["policy"] == "p"
    assert watch.encoded_frame(10.1) is frame
    assert watch.encoded_frame(10.5) is not frame

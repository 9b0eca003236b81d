"""The rivals where answers may be approximate, and the figure that compares them."""

import numpy as np
import pytest

from adaptive_world import port_at
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.work import SchedulerConfig, Unit
from parity_models_lab.latency import reproduce_rivals as racing
from parity_models_lab.latency.rivals import Cascade, ProteusLike, SlackFit
from parity_models_lab.latency.trial import Setting
from scheduling_world import World, world_of


def taught(policy: SlackFit | ProteusLike, **seconds: float) -> World:
    """An instance, and a policy that knows how long the networks take."""
    port = port_at(1.0, policy)
    for role, takes in seconds.items():
        for _ in range(20):
            unit = Unit(-1, "0", role, [], 0.0, took=takes)
            policy.unit_ended(port, unit, finished=True)
    world = World(Scheduler(policy, SchedulerConfig(compare=0.0)))
    world.join("0", policy.roles(1, 0)[0])
    return world


@pytest.mark.parametrize("reason", ["refused", "fails", "leaves", "exact", "closed"])
def test_the_cascade_asks_the_model_where_the_backup_does_not_answer(reason: str) -> None:
    world = world_of("ab", Cascade(), compare=0.0)
    world.refuses = lambda query, source: reason == "refused"
    if reason == "closed":
        world.do(world.scheduler.gate_turned(world.now, Source.BACKUP, False))
    world.arrive(1, exact=reason == "exact")
    if reason == "refused":
        world.finish("a")
    elif reason in ("fails", "leaves"):
        (world.fail if reason == "fails" else world.leave)("a")
    (instance,) = world.running
    assert world.running[instance].role == DEPLOYED
    world.finish(instance)
    assert world.answers == {0: Source.MODEL}


def test_the_cascade_asks_the_model_within_the_budget_if_its_backup_is_late() -> None:
    policy = Cascade(Cascade.Options(hedge_delay=1.0, hedge_budget=0.01))
    world = world_of(map(str, range(30)), policy, compare=0.0, audited=1000)
    world.arrive(12)
    assert {run.role for run in world.running.values()} == {BACKUP}
    world.pass_time(1.5)
    assert [run.role for run in world.running.values()].count(DEPLOYED) == 10
    world.finish("0")
    assert world.answers == {0: Source.BACKUP}
    assert len(world.cancelled) == 1


def test_slackfit_takes_the_largest_network_that_the_slack_allows() -> None:
    policy = SlackFit(SlackFit.Options(objective=2.0))
    world = taught(policy, deployed=1.0, backup=0.1)
    world.arrive(2)
    assert world.scheduler.queued(DEPLOYED) == 1
    world.pass_time(1.1)  # 0.9 are left
    assert (world.scheduler.queued(DEPLOYED), world.scheduler.queued(BACKUP)) == (0, 1)
    for _ in range(2):
        world.finish("0")
    assert world.answers == {0: Source.MODEL, 1: Source.BACKUP}


@pytest.mark.parametrize(("rate", "asked"), [(1, False), (20, True)])
def test_the_share_that_goes_to_the_backup_matches_the_capacity(rate: int, asked: bool) -> None:
    """An instance carries 10 queries a second, and 8 of them while it is busy for 80 % of it."""
    world = taught(ProteusLike(), deployed=0.1, backup=0.0)
    sources = []
    for _ in range(3):  # seconds
        for _ in range(rate):
            (query,) = world.arrive(1)
            while world.running:
                world.finish(min(world.running))
            sources.append(world.answers[query])
            world.pass_time(1 / rate)
    assert abs(sources[-rate:].count(Source.BACKUP) - 0.6 * rate * asked) <= 1


def test_answers_that_differ_are_counted_on_recorded_predictions() -> None:
    recorded = racing.PREDICTED
    agrees = np.array(recorded.agrees)
    run = racing.Candidate(racing.POLICIES["cascade"][0], "load in bursts", 0.3, -np.inf)
    found = racing.simulate_run(run, 0, 1000, {})
    assert found.stood_in > 0.95
    assert found.differs == pytest.approx(1 - agrees.mean(), abs=0.03)
    gated = racing.simulate_run(run._replace(threshold=recorded.threshold), 0, 1000, {})
    passed = np.array(recorded.confidence) >= recorded.threshold
    assert gated.stood_in == pytest.approx(passed.mean(), abs=0.05)
    assert gated.differs < found.differs


@pytest.mark.slow
def test_the_figure_says_who_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    times = np.cumsum(np.random.default_rng(0).exponential(size=500))
    monkeypatch.setattr(racing, "SCENES", {"transfers, conv-arrivals": Setting()})
    monkeypatch.setattr(racing, "LOADS", (0.5,))
    monkeypatch.setattr(racing, "simulated", lambda run, runs: ((one, run(one)) for one in runs))
    rows = racing.compare({"transfers, conv-arrivals": times.tolist()}, 1, 300)
    ours = [row for row in rows if row["policy"] == "adaptive"]
    assert {(row["evidence"], row["budget"]) for row in ours} == {
        (evidence, budget)
        for evidence in ("hindsight", "split", "learned")
        for budget in racing.BUDGETS
    }
    assert all(row["p99 / best rival's"] > 0 for row in ours)
    rivals = [row for row in rows if row not in ours]
    assert all(row["differ"] == 0 for row in rivals if row["policy"] in racing.EXACT)
    in_hindsight = [row for row in rivals if row["evidence"] == "hindsight"]
    assert all(row["differ"] <= row["budget"] for row in in_hindsight)

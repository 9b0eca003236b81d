"""The rivals where answers may be approximate, and the figure that compares them."""

import numpy as np
import pytest

from adaptive_world import port_at
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.work import SchedulerConfig, Unit
from parity_models_lab.latency import reproduce_rivals as racing
from parity_models_lab.latency.rivals import ProteusLike, SlackFit
from parity_models_lab.latency.trial import Setting
from scheduling_world import World


def taught(policy: SlackFit | ProteusLike, **seconds: float) -> World:
    """An instance, and a policy that knows how long the networks take."""
    port = port_at(1.0, policy)
    for role, takes in seconds.items():
        for _ in range(20):
            unit = Unit(-1, "0", role, [], 0.0, took=takes)
            policy.unit_ended(port, unit, finished=True)
    world = World(Scheduler(policy, SchedulerConfig(compare_every=0.0)))
    world.join("0", policy.roles(1, 0)[0])
    return world


def test_slackfit_takes_the_largest_network_that_the_slack_allows() -> None:
    policy = SlackFit(SlackFit.Options(objective=2.0))
    world = taught(policy, deployed=1.0, backup=0.1)
    world.arrive(2)
    assert world.queued(DEPLOYED) == 1
    world.pass_time(1.1)  # 0.9 are left
    assert (world.queued(DEPLOYED), world.queued(BACKUP)) == (0, 1)
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
    recorded = racing.predictions()
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
    monkeypatch.setattr(racing, "FRONTIER", (0.5,))
    monkeypatch.setattr(racing, "simulated", lambda run, runs: ((one, run(one)) for one in runs))
    rows, best = racing.compare({"transfers, conv-arrivals": times.tolist()}, 1, 300)
    assert {row["policy"] for row in rows} == {*racing.POLICIES, "slackfit, no gate"}
    assert all(row["differ"] == 0 for row in rows if row["policy"] in racing.EXACT)
    assert {row["policy"] for row in best} <= set(racing.POLICIES)
    assert all(row["differ"] <= row["differ at most"] for row in best)

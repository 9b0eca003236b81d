"""Of several backups, the one is asked that is worth most; and if that is refused, a better one."""

import pytest

from adaptive_world import SOME_SLOW, port_at, run_times
from parity_models.arrivals import poisson_arrivals
from parity_models.protection.scene import Scene, Service, standard_contention
from parity_models.scheduling import BACKUPS, DEPLOYED, Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Adaptive, StandIns
from parity_models.scheduling.work import Query, Task, Unit
from scheduling_world import World, code, world_of

FAST, BETTER = BACKUPS[:2]
TWO = StandIns(backups=(FAST, BETTER))


def world_with(instances: int = 6, refused: int = 0) -> World:
    """The fast backup takes a tenth of the model's time, the better one a fifth. So many answers of
    the fast one were refused before."""
    policy = Adaptive(TWO, run_times=run_times(*SOME_SLOW))
    original = Task(DEPLOYED, 0, "image")
    query = Query(0, "image", 0.0, 9.0, original, [original])
    world = world_of(map(str, range(instances)), policy, code=code())
    port = port_at(1.0, policy, world.roles)
    for role, seconds in ((FAST, 0.1), (BETTER, 0.2)):
        for _ in range(20):
            tasks = [Task(role, 0, "image")]
            unit = Unit(-1, "0", role, tasks, 1.0 - seconds, took=seconds)
            policy.unit_ended(port, unit, finished=True)
    for _ in range(refused):
        policy.refused(port, query, Source.BACKUP)
    return world


def runs(world: World) -> list[str]:
    return [run.role for run in world.running.values()]


def finish(world: World, role: str) -> None:
    world.finish(next(name for name, run in world.running.items() if run.role == role))


def late(world: World) -> None:
    world.arrive(1)
    world.pass_time(1.2)


def test_the_fast_one_is_asked_first() -> None:
    world = world_with()
    late(world)
    assert runs(world) == [DEPLOYED, FAST]
    finish(world, FAST)
    world.pass_time(0.01)
    assert world.answers == {0: Source.BACKUP}


def test_the_better_one_is_asked_first_where_the_fast_one_s_answers_are_mostly_refused() -> None:
    world = world_with(refused=150)
    late(world)
    assert runs(world) == [DEPLOYED, BETTER]


def test_a_query_that_the_fast_one_may_not_answer_is_asked_of_the_better_one() -> None:
    world = world_with()
    world.refuses = lambda query, source: source is Source.BACKUP
    late(world)
    finish(world, FAST)
    world.pass_time(0.01)
    assert runs(world) == [DEPLOYED, BETTER]
    finish(world, BETTER)
    world.pass_time(0.01)
    assert world.answers == {0: Source.BACKUP_2}
    assert world.scheduler.pending == 0


def test_a_query_that_none_may_answer_is_copied() -> None:
    world = world_with()
    world.refuses = lambda query, source: True
    late(world)
    for role in (FAST, BETTER):
        finish(world, role)
        world.pass_time(0.01)
    assert runs(world) == [DEPLOYED] * 2
    assert not world.answers


@pytest.mark.slow
def test_two_are_about_as_good_as_the_better_of_them_or_better() -> None:
    """One of a tenth of the model's time that may answer 60 %, one of a half that may 95 %."""
    unit, load, instances = 0.025, 0.5, 12
    arrivals = poisson_arrivals(load * instances / unit, 6000, 1)
    seconds, coverage = {"fast": 0.1 * unit, "better": 0.5 * unit}, {"fast": 0.6, "better": 0.95}
    found = {}
    for names in (("fast",), ("better",), ("fast", "better")):
        roles = dict(zip(BACKUPS, names, strict=False))
        service = Service(
            {DEPLOYED: unit} | {role: seconds[name] for role, name in roles.items()},
            StandIns(backups=tuple(roles)),
            {role: coverage[name] for role, name in roles.items()},
        )
        scene = Scene(service, arrivals, 1000, instances, standard_contention(instances, unit))
        found[names] = scene.outcome(PolicyChoice("adaptive", {"budget": 0.3}))
    both = found["fast", "better"]
    assert both.units["backup"] > 0
    assert both.units["backup-2"] > 0
    assert both.p99_ms < 1.15 * min(found[("fast",)].p99_ms, found[("better",)].p99_ms)

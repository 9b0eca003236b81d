"""What a stand-in says and may not be given answers nobody, and the policy hears of it once."""

from parity_models.scheduling import BACKUP, Parity, Reason, Scheduler, Source
from parity_models.scheduling.policies import ApproximateBackup
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query
from scheduling_world import BOTH, World, code, world_of


class Refusals:
    """Mixed into a policy: remembers the refusals that it hears of."""

    refusals: tuple[int, ...] = ()

    def refused(self, port: Port, query: Query, source: Source) -> None:
        self.refusals += (query.id,)


class TellingParity(Refusals, Parity):
    name = "telling-parity"


class TellingBackup(Refusals, ApproximateBackup):
    name = "telling-backup"


def parity_world(*wrong: int) -> tuple[World, TellingParity]:
    """Three instances run two queries and their parity query."""
    policy = TellingParity(code())
    world = World(Scheduler(policy), code(), wrong=wrong)
    for instance in "abc":
        world.join(instance, BOTH)
    world.arrive(2)
    return world, policy


def test_a_reconstruction_that_cannot_be_right_answers_nobody() -> None:
    world, policy = parity_world(0, 1)
    slow, other, parity = world.running
    world.finish(other)
    world.finish(parity)
    assert world.answers == {1: Source.MODEL}
    assert policy.refusals == (0,)
    world.finish(slow)
    assert world.answers == {1: Source.MODEL, 0: Source.MODEL}


def test_a_query_whose_reconstruction_is_wrong_fails_at_its_deadline() -> None:
    world, policy = parity_world(0)
    world.finish(list(world.running)[2])
    assert world.answers == {1: Source.RECONSTRUCTION}
    assert policy.refusals == (0,)
    world.pass_time(11.0)
    assert world.failures[0].reason is Reason.DEADLINE_EXCEEDED


def test_outputs_that_cannot_be_right_reconstruct_nothing() -> None:
    world, _ = parity_world()
    *_, parity = world.running
    run = world.running.pop(parity)
    world.do(world.scheduler.unit_finished(world.now, run.unit, run.subjects))
    assert not world.answers


def test_a_backup_that_may_not_answer_is_refused_once() -> None:
    policy = TellingBackup()
    world = world_of("a", policy)
    world.join("b", frozenset({BACKUP}))
    (query,) = world.arrive(1)
    backup = world.running.pop("b")
    world.do(world.scheduler.unit_finished(world.now, backup.unit, backup.subjects))
    assert policy.refusals == (query,)
    assert not world.answers
    world.finish("a")
    assert world.answers == {query: Source.MODEL}

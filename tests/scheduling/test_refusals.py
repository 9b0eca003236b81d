"""What a stand-in says and may not be given answers nobody, and the policy hears of it."""

from parity_models.scheduling import BACKUP, Parity, Reason, Scheduler, Source
from parity_models.scheduling.policies import ApproximateBackup
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query
from scheduling_world import BOTH, ORIGINALS, World, code


def test_a_reconstruction_that_cannot_be_right_answers_nobody() -> None:
    world = World(Scheduler(Parity(code())), code(), wrong=(0, 1))
    for instance in "abc":
        world.join(instance, BOTH)
    first, second = world.arrive(2)
    slow, other, parity = world.running
    world.finish(other)
    world.finish(parity)
    assert world.answers == {second: Source.MODEL}
    world.finish(slow)
    assert world.answers == {second: Source.MODEL, first: Source.MODEL}


def test_a_query_whose_reconstruction_is_wrong_fails_at_its_deadline() -> None:
    world = World(Scheduler(Parity(code())), code(), wrong=(0, 1))
    for instance in "abc":
        world.join(instance, BOTH)
    (first, _) = world.arrive(2)
    _, other, parity = world.running
    world.finish(parity)
    world.finish(other)
    world.pass_time(11.0)
    assert world.failures[first].reason is Reason.DEADLINE_EXCEEDED


def test_outputs_that_cannot_be_right_reconstruct_nothing() -> None:
    world = World(Scheduler(Parity(code())), code())
    for instance in "abc":
        world.join(instance, BOTH)
    world.arrive(2)
    *_, parity = world.running
    run = world.running.pop(parity)
    world.do(world.scheduler.unit_finished(world.now, run.unit, run.subjects))
    assert not world.answers


class Refusals:
    """Mixed into a policy: remembers what it is told of refusals."""

    refusals: list[int]

    def refused(self, port: Port, query: Query, source: Source) -> None:
        assert source in (Source.BACKUP, Source.RECONSTRUCTION)
        self.refusals = [*getattr(self, "refusals", []), query.id]


class TellingParity(Refusals, Parity):
    name = "telling-parity"


class TellingBackup(Refusals, ApproximateBackup):
    name = "telling-backup"


def test_a_policy_is_told_whose_reconstruction_is_refused() -> None:
    policy = TellingParity(code())
    world = World(Scheduler(policy), code(), wrong=(0,))
    for instance in "abc":
        world.join(instance, BOTH)
    first, second = world.arrive(2)
    *_, parity = world.running
    world.finish(parity)
    assert policy.refusals == [first]
    assert world.answers == {second: Source.RECONSTRUCTION}


def test_a_policy_is_told_once_whose_backup_is_refused() -> None:
    policy = TellingBackup()
    world = World(Scheduler(policy))
    world.join("a", ORIGINALS)
    world.join("b", frozenset({BACKUP}))
    (query,) = world.arrive(1)
    backup = world.running.pop("b")
    world.do(world.scheduler.unit_finished(world.now, backup.unit, backup.subjects))
    assert policy.refusals == [query]
    assert not world.answers
    world.finish("a")
    assert world.answers == {query: Source.MODEL}

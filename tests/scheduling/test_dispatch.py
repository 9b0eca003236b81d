"""The instance that each dispatch rule gives a unit to."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.scheduling import DEPLOYED
from parity_models.scheduling.dispatch import Dispatch, LatencyAware, SingleQueue
from parity_models.scheduling.work import Task
from parity_models_lab.latency.competitors import Prequal, Probe, ProbePool
from policies import EVERY_RULE
from scheduling_world import ORIGINALS, World, world_of


def test_what_waits_at_an_instance_that_leaves_is_moved() -> None:
    world = world_of("01", dispatch=Prequal())
    world.arrive(4)
    world.leave("1")
    while world.running:
        world.finish("0")
    assert len(world.answers) == 4


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.name)
def test_instances_to_avoid_get_a_task_only_while_no_others_are_up(rule: type[Dispatch]) -> None:
    dispatch = rule(rule.Options())
    avoided = {"a", "b"}
    for instance in "abc":
        dispatch.join(instance, ORIGINALS, None)
    dispatch.occupy("c")
    dispatch.add(Task(DEPLOYED, 1, "image", avoid=avoided))
    assert not list(dispatch.assign(1)), "it waits for c"
    dispatch.idle("c", 1.0)
    assert [instance for instance, _ in dispatch.assign(1)] == ["c"]
    dispatch.leave("c")
    dispatch.add(Task(DEPLOYED, 2, "image", avoid=avoided))
    assert [instance in avoided for instance, _ in dispatch.assign(1)] == [True]


SOME = st.sets(st.sampled_from("abcdef"))


@given(idle=st.sampled_from("abcdef"), failed=SOME, taken=SOME, avoid=SOME, shared=st.booleans())
def test_an_idle_instance_takes_a_task_unless_others_that_are_up_suit_it_better(
    idle: str, failed: set[str], taken: set[str], avoid: set[str], shared: bool
) -> None:
    dispatch = SingleQueue()
    node = {each: f"node {ord(each) % 2 if shared else each}" for each in "abcdef"}
    for each in node:
        dispatch.join(each, ORIGINALS, node[each])
        if each != idle:
            dispatch.occupy(each)
    taken = taken - {idle}
    running = [Task(DEPLOYED, 2, "image", instance=each) for each in sorted(taken)]
    task = Task(DEPLOYED, 1, "image", failed_on=sorted(failed), avoid=avoid)
    task.apart.append([task, *running])
    dispatch.add(task)
    suited = set(node)
    beside = {each for each in node if node[each] in {node[one] for one in taken}}
    for worse in (failed, taken, beside, avoid):
        suited = suited - worse or suited
    assert [instance for instance, _ in dispatch.assign(1)] == [idle] * (idle in suited)


def served_in_turn(world: World, queries: int, slow: str) -> Counter[str]:
    """One query at a time; the slow instance takes a second, others a tenth."""
    runs: Counter[str] = Counter()
    for _ in range(queries):
        world.arrive(1)
        (instance,) = world.running
        runs[instance] += 1
        world.pass_time(1.0 if instance == slow else 0.1)
        world.finish(instance)
    return runs


@pytest.mark.parametrize(("rule", "most"), [(LatencyAware, 0), (Prequal, 400 / 8 / 4)])
def test_rules_that_know_latencies_avoid_the_slow(rule: type[Dispatch], most: float) -> None:
    world = world_of("01234567", dispatch=rule())
    served_in_turn(world, 100, slow="3")
    later = served_in_turn(world, 400, slow="3")
    assert later["3"] <= most
    assert rule is not Prequal or len(later) > 4, "probing draws from all of them"


def test_prequal_takes_the_fastest_of_the_cold_and_the_least_busy_if_all_are_hot() -> None:
    pool = ProbePool(hot=0.5)
    for rif in (1, 1, 1, 9):
        pool.add(Probe(f"{rif}", rif, 1.0), 16)
    quick, slow = Probe("quick", 1, 0.1), Probe("slow", 0, 1.0)
    assert pool.best([slow, quick]) is quick
    busy, busier = Probe("busy", 5, 1.0), Probe("busier", 6, 0.1)
    assert pool.best([busier, busy]) is busy
    assert pool.best([busy, slow]) is slow


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 5), st.integers(0, 3))),
    st.integers(2, 4),
)
def test_prequal_keeps_one_probe_an_instance(steps: list[tuple[str, int, int]], size: int) -> None:
    pool = ProbePool(hot=0.8)
    for instance, rif, what in steps:
        if what == 0 and pool.probes:
            pool.use(pool.best(pool.probes), budget=2)
        elif what == 1:
            pool.thin_out()
        elif what == 2:
            pool.forget(instance)
        else:
            pool.add(Probe(instance, rif, 1.0), size)
        names = [probe.instance for probe in pool.probes]
        assert len(names) == len(set(names)) <= size

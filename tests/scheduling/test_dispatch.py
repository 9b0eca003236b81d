"""The instance that each dispatch rule gives a unit to."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from parity_models.roles import DEPLOYED
from parity_models.scheduling.dispatch import LATENCY_AWARE, Dispatch
from parity_models.scheduling.work import Task
from scheduling_world import ORIGINALS, World, world_of

SOME = st.sets(st.sampled_from("abcdef"))


@given(idle=st.sampled_from("abcdef"), failed=SOME, taken=SOME, avoid=SOME, shared=st.booleans())
def test_an_idle_instance_takes_a_task_unless_others_that_are_up_suit_it_better(
    idle: str, failed: set[str], taken: set[str], avoid: set[str], shared: bool
) -> None:
    dispatch = Dispatch()
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


def test_the_latency_aware_rule_avoids_the_slow() -> None:
    world = world_of("01234567", dispatch=Dispatch(LATENCY_AWARE))
    served_in_turn(world, 100, slow="3")
    later = served_in_turn(world, 400, slow="3")
    assert later["3"] == 0

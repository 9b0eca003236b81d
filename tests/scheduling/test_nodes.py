"""Instances that share a node are slow or gone together: what that means for who runs what."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from histories import every_policy
from parity_models.roles import BACKUP, DEPLOYED
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.dispatch import LATENCY_AWARE, RULES, Dispatch
from parity_models.scheduling.policies import Parity
from parity_models.scheduling.work import SchedulerConfig, Task
from scheduling_world import BOTH, ORIGINALS, World, code, world_of


def check_spread(world: World, *, groups: bool) -> None:
    """No two units of one query, or of one coding group, are on one node."""
    runs = world.running.values()
    queries = [run for run in runs if run.role in (DEPLOYED, BACKUP)]
    for one, other in combinations(queries, 2):
        if set(one.subjects) & set(other.subjects):
            assert world.nodes[one.instance] != world.nodes[other.instance]
    for group, members in world.members.items() if groups else ():
        nodes = [
            world.nodes[run.instance]
            for run in runs
            if (group in run.subjects if run not in queries else set(members) & {*run.subjects})
        ]
        assert len(set(nodes)) == len(nodes)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "arrive", "finish", "finish", "finish", "replace", "time"]),
        st.integers(0, 1000),
    ),
    max_size=80,
)
POLICIES = {name: make for name, make in every_policy(0.5).items() if name != "three copies"}


@settings(max_examples=80)
@given(
    st.sampled_from(sorted(POLICIES)),
    st.sampled_from(RULES),
    st.integers(2, 3),
    st.integers(1, 2),
    st.integers(0, 1),
    st.integers(1, 3),
    STEPS,
)
def test_with_nodes_enough_no_two_units_of_a_query_or_of_a_group_are_on_one(
    name: str,
    dispatch: str,
    k: int,
    r: int,
    more_nodes: int,
    max_batch: int,
    steps: list[tuple[str, int]],
) -> None:
    policy = POLICIES[name](code(k, r))
    config = SchedulerConfig(max_batch=max_batch, deadline=20.0)
    world = World(Scheduler(policy, config, Dispatch(dispatch)), code(k, r), max_batch)
    nodes = k + r + more_nodes
    for roles in sorted(set(policy.roles(1, 1)), key=sorted):
        for place in range(2 * nodes):
            world.join(f"{'+'.join(sorted(roles))} {place}", roles, f"node {place % nodes}")
    for number, (step, choice) in enumerate(steps):
        busy = sorted(world.running)
        if step == "arrive":
            world.arrive(1 + choice % 5, ["image", "text"][choice % 7 == 0])
        elif step == "finish" and busy:
            world.finish(busy[choice % len(busy)])
        elif step == "replace":
            instance = sorted(world.roles)[choice % len(world.roles)]
            world.join(f"{number}", world.roles[instance], world.nodes[instance])
            world.leave(instance)
        elif step == "time":
            world.pass_time(choice / 500)
        # Adaptive parity's copies are no units of a group.
        check_spread(world, groups=name.startswith("parity"))


@settings(max_examples=50)
@given(
    st.sampled_from(RULES),
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
    st.lists(st.tuples(st.booleans(), st.integers(0, 1000)), max_size=60),
)
def test_no_query_waits_for_a_node_while_an_instance_is_idle(
    dispatch: str, nodes: list[int], steps: list[tuple[bool, int]]
) -> None:
    world = world_of(
        dict.fromkeys(map(str, range(len(nodes))), BOTH),
        Parity(code(), Parity.Options(max_group_wait=None)),
        code=code(),
        dispatch=Dispatch(dispatch),
        nodes={f"{i}": f"node {node}" for i, node in enumerate(nodes)},
    )
    for arrive, choice in steps:
        busy = sorted(world.running)
        if arrive or not busy:
            world.arrive(1 + choice % 3)
        else:
            world.finish(busy[choice % len(busy)])
        assert not world.scheduler.queued(DEPLOYED) or len(world.running) == len(nodes)


# Dispatch without nodes


SOME = st.sets(st.sampled_from("abcdef"))


@given(idle=st.sampled_from("abcdef"), failed=SOME, taken=SOME, shared=st.booleans())
def test_an_idle_instance_takes_a_task_unless_others_that_are_up_suit_it_better(
    idle: str, failed: set[str], taken: set[str], shared: bool
) -> None:
    dispatch = Dispatch()
    node = {each: f"node {ord(each) % 2 if shared else each}" for each in "abcdef"}
    for each in node:
        dispatch.join(each, ORIGINALS, node[each])
        if each != idle:
            dispatch.occupy(each)
    taken = taken - {idle}
    running = [Task(DEPLOYED, 2, "image", instance=each) for each in sorted(taken)]
    task = Task(DEPLOYED, 1, "image", failed_on=tuple(failed))
    task.apart.append([task, *running])
    dispatch.add(task)
    suited = set(node)
    beside = {each for each in node if node[each] in {node[one] for one in taken}}
    for worse in (failed, taken, beside):
        suited = suited - worse or suited
    assert [instance for instance, _ in dispatch.assign(1)] == [idle] * (idle in suited)


def test_the_latency_aware_rule_avoids_the_slow() -> None:
    world, runs = world_of("01234567", dispatch=Dispatch(LATENCY_AWARE)), []
    for _ in range(500):  # one at a time
        world.arrive(1)
        (instance,) = world.running
        runs.append(instance)
        world.pass_time(1.0 if instance == "3" else 0.1)
        world.finish(instance)
    assert "3" not in runs[100:]


def test_a_stand_in_s_short_units_do_not_make_a_slow_instance_look_fast() -> None:
    dispatch = Dispatch(LATENCY_AWARE)
    for instance in ("slow", "fast"):
        dispatch.join(instance, ORIGINALS | {BACKUP}, None)
    for role, seconds, units in ((DEPLOYED, 1.0, 10), (BACKUP, 0.01, 10)):
        for instance, factor in (("slow", 3), ("fast", 1)) * units:
            dispatch.occupy(instance)
            dispatch.mark_idle(instance, factor * seconds, role=role)
    dispatch.occupy("fast")
    dispatch.mark_idle("fast", 1.0)  # its newest unit is the longest
    dispatch.add(Task(DEPLOYED, 1, "image"))
    assert [instance for instance, _ in dispatch.assign(1)] == ["fast"]
    assert dispatch.pace("slow") > 2 * dispatch.pace("fast")

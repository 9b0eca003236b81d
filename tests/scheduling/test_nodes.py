"""Instances that share a node are slow or gone together: what that means for who runs what."""

from dataclasses import dataclass
from itertools import combinations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from histories import every_policy
from parity_models.codes import Code
from parity_models.scheduling import (
    BACKUP,
    DEPLOYED,
    Parity,
    Policy,
    Scheduler,
    SchedulerConfig,
)
from parity_models.scheduling.dispatch import RULES, Dispatch
from scheduling_world import BOTH, World, code, world_of


@dataclass
class Crowd:
    """A world with two instances for each set of roles on each of the nodes."""

    world: World
    places: dict[str, tuple[frozenset[str], str]]

    def join(self, instance: str, roles: frozenset[str], node: str) -> None:
        self.places[instance] = (roles, node)
        self.world.join(instance, roles, node)

    def replace(self, instance: str, successor: str) -> None:
        """The instance leaves if there is another like it; its successor joins in its place."""
        place = self.places.pop(instance)
        self.world.leave(instance)
        self.join(successor, *place)

    def spares(self) -> list[str]:
        """Instances without which their node runs what it did."""
        places = list(self.places.values())
        return [instance for instance, place in self.places.items() if places.count(place) > 1]

    def node(self, instance: str) -> str:
        return self.places[instance][1]

    def check_spread(self, *, groups: bool) -> None:
        """No two units of one query, or of one coding group, are on one node."""
        runs = self.world.running.values()
        queries = [run for run in runs if run.role in (DEPLOYED, BACKUP)]
        for one, other in combinations(queries, 2):
            if set(one.subjects) & set(other.subjects):
                assert self.node(one.instance) != self.node(other.instance)
        for group, members in self.world.members.items() if groups else ():
            nodes = [
                self.node(run.instance)
                for run in runs
                if (group in run.subjects if run not in queries else set(members) & {*run.subjects})
            ]
            assert len(set(nodes)) == len(nodes)


def crowd(
    policy: Policy, dispatch: Dispatch, the_code: Code, nodes: int, max_batch: int = 1
) -> Crowd:
    config = SchedulerConfig(max_batch=max_batch, deadline=20.0)
    world = World(Scheduler(policy, config, dispatch), the_code, max_batch)
    crowd = Crowd(world, {})
    for roles in sorted(set(policy.roles(1, 1)), key=sorted):
        for number in range(2 * nodes):
            crowd.join(f"{'+'.join(sorted(roles))} {number}", roles, f"node {number % nodes}")
    return crowd


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "arrive", "finish", "finish", "finish", "replace", "time"]),
        st.integers(0, 1000),
    ),
    max_size=80,
)
POLICIES = {name: make for name, make in every_policy(0.5).items() if name != "three copies"}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
    the_code = code(k, r)
    policy = POLICIES[name](the_code)
    the_crowd = crowd(policy, Dispatch(dispatch), the_code, k + r + more_nodes, max_batch)
    world = the_crowd.world
    for number, (step, choice) in enumerate(steps):
        busy, spares = sorted(world.running), the_crowd.spares()
        if step == "arrive":
            world.arrive(1 + choice % 5, ["image", "text"][choice % 7 == 0])
        elif step == "finish" and busy:
            world.finish(busy[choice % len(busy)])
        elif step == "replace":
            the_crowd.replace(spares[choice % len(spares)], f"{number}")
        elif step == "time":
            world.pass_time(choice / 500)
        # Adaptive parity's copies are no units of a group.
        the_crowd.check_spread(groups=name.startswith("parity"))


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(RULES),
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
    st.lists(st.tuples(st.booleans(), st.integers(0, 1000)), max_size=60),
)
def test_no_query_waits_for_a_node_while_an_instance_is_idle(
    dispatch: str, nodes: list[int], steps: list[tuple[bool, int]]
) -> None:
    world = parity_on({f"{i}": f"node {node}" for i, node in enumerate(nodes)}, Dispatch(dispatch))
    for arrive, choice in steps:
        busy = sorted(world.running)
        if arrive or not busy:
            world.arrive(1 + choice % 3)
        else:
            world.finish(busy[choice % len(busy)])
        assert not world.scheduler.queue_depths().get(DEPLOYED) or len(world.running) == len(nodes)


def parity_on(nodes: dict[str, str], dispatch: Dispatch | None = None) -> World:
    policy, instances = (
        Parity(code(), Parity.Options(max_group_wait=None)),
        dict.fromkeys(nodes, BOTH),
    )
    return world_of(instances, policy, code=code(), dispatch=dispatch, nodes=nodes)

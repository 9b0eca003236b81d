"""Random histories of a scheduler, its clients and its instances.

Clocks lag, events are late, doubled or about what is gone, clients give up, one query is failed
again and again. `run_history` drives a World (which checks every action) through one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from random import Random
from typing import Any

from adaptive_world import teach
from parity_models.codes import Code
from parity_models.roles import DEPLOYED, Source
from parity_models.scheduling.actions import Reason
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.dispatch import RULES, Dispatch
from parity_models.scheduling.health import MAX_AGREED, MAX_ASKED, State
from parity_models.scheduling.policies import (
    Adaptive,
    ApproximateBackup,
    EqualResources,
    Hedging,
    NoRedundancy,
    Parity,
    Policy,
    Pool,
    Replication,
    StandIns,
)
from parity_models.scheduling.race import FIRST, KNOWN
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import SchedulerConfig
from parity_models.serving.frontend import Observer
from parity_models_lab.latency.rivals import Cascade, ProteusLike, SlackFit
from scheduling_world import World, code

TENANTS = (None, None, "one", "other")
KINDS = ("image", "image", "text")
INSTANCES = 8
"""As many are up at most."""


def _learned() -> RunTimes:
    random = Random(1)
    times = RunTimes(window=200, every=50)
    for _ in range(200):
        times.add(random.expovariate(10.0) + 0.01, finished=random.random() < 0.9)
    return times


def _adaptive(code: Code, options: dict[str, Any], run_times: RunTimes) -> Policy:
    has = options["stand_ins"]
    stand_ins = StandIns(code if "code" in has else None, "backup" in has)
    policy = Adaptive(stand_ins, Adaptive.Options(differ=options["differ"]), runs=run_times)
    if run_times.median:
        teach(policy, [doubt / KNOWN for doubt in range(KNOWN)])
    return policy


STAND_INS = [("code",), ("backup",), ("code", "backup")]

OTHERS = ("wait", "budget", "copies", "stand_ins", "gated", "differ", "doubt")
"""The options that are not those of parity."""

BUILDERS: dict[str, Callable[[Code, dict[str, Any]], Policy]] = {
    "none": lambda code, options: NoRedundancy(),
    "equal resources": lambda code, options: EqualResources(),
    "replication": lambda code, options: Replication(Replication.Options(copies=options["copies"])),
    "hedging": lambda code, options: Hedging(
        Hedging.Options(hedge_delay=options["wait"], hedge_budget=options["budget"])
    ),
    "live hedging": lambda code, options: Hedging(Hedging.Options(hedge_quantile=0.5)),
    "cascade": lambda code, options: Cascade(
        Cascade.Options(hedge_delay=options["wait"], hedge_budget=options["budget"])
    ),
    "live cascade": lambda code, options: Cascade(Cascade.Options(hedge_quantile=0.5)),
    "slackfit": lambda code, options: SlackFit(SlackFit.Options()),
    "proteus-like": lambda code, options: ProteusLike(),
    "backup": lambda code, options: ApproximateBackup(),
    "adaptive": lambda code, options: _adaptive(code, options, RunTimes(window=20, every=2)),
    "learned adaptive": lambda code, options: _adaptive(code, options, _learned()),
    "parity": lambda code, options: Parity(
        code,
        Parity.Options(**{name: value for name, value in options.items() if name not in OTHERS}),
    ),
}


def every_policy(wait: float) -> dict[str, Callable[[Code], Policy]]:
    """Builders of policies that send redundant work after so many seconds."""
    usual: dict[str, Any] = {"wait": wait, "budget": 1.0, "copies": 2, "max_group_wait": wait}
    usual |= {"stand_ins": ("code", "backup"), "differ": 1.0}

    def build(kind: str, options: dict[str, Any], code: Code) -> Policy:
        return BUILDERS[kind](code, usual | options)

    names = ("none", "replication", "hedging", "cascade", "backup", "parity", "adaptive")
    policies: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in names}
    policies |= {
        "three copies": ("replication", {"copies": 3}),
        "parity, dedicated": ("parity", {"pool": Pool.DEDICATED}),
    }
    return {name: partial(build, *given) for name, given in policies.items()}


@dataclass
class Setup:
    """One configuration of scheduler and policy, built anew as often as needed."""

    policy: str
    dispatch: str
    code: Code
    options: dict[str, Any]
    config: SchedulerConfig
    nodes: int | None

    def build(self) -> tuple[World, Policy]:
        policy = BUILDERS[self.policy](self.code, self.options)
        scheduler = Scheduler(policy, self.config, Dispatch(self.dispatch))
        world = World(scheduler, self.code, self.config.max_batch)
        world.refuses, world.doubt = self.refuses, self.doubt
        return world, policy

    def refuses(self, query: int, source: Source = Source.RECONSTRUCTION) -> bool:
        """Return whether no stand-in may answer the query."""
        gated: int = self.options["gated"]
        return query % 4 < gated

    def doubt(self, query: int, source: Source) -> float:
        """Return the probability that a stand-in is wrong about the query."""
        most: float = self.options["doubt"]
        return most * (query % 5) / 4


def draw_setup(choose: Callable[[Sequence[Any]], Any]) -> Setup:
    """A configuration; `choose` picks one of some options."""
    parities = ["parity", "parity", "parity"]
    adaptive = ["learned adaptive", "learned adaptive", "cascade"]
    return Setup(
        choose([*BUILDERS, *parities, *adaptive]),
        choose(RULES),
        code(choose([2, 3, 4]), choose([1, 2]), choose(["separate", "subtraction"])),
        {
            "wait": 0.5,
            "pool": choose(list(Pool)),
            "max_group_wait": choose([None, 0.0, 0.5, 3.0]),
            "budget": choose([0.05, 1.0]),
            "copies": choose([2, 3]),
            "stand_ins": choose(STAND_INS),
            "gated": choose([0, 0, 1, 4]),
            "differ": choose([0.0, 0.001, 0.1]),
            "doubt": choose([0.0, 0.01, 1.0]),
        },
        SchedulerConfig(
            max_batch=choose([1, 2, 3]),
            max_queue=choose([4, 1000]),
            deadline=choose([5.0, 20.0]),
            max_attempts=choose([1, 2, 3, 4]),
            verify_every=choose([0, 0, 1, 3]),
            sample_every=choose([0, 1, 5]),
            share_groups=choose([True, True, False]),
            compare=choose([0.0, 0.5, 1.0]),
            compare_one_in=choose([1, 3]),
        ),
        choose([None, 1, 2, 3, 4]),
    )


def _one_of(names: Sequence[str], choice: int) -> str:
    return names[choice % len(names)]


def _arrive(world: World, choice: int) -> None:
    due = {0: world.now + 1.0, 1: world.now - 1.0, 2: world.now}.get(choice % 11)
    sharers = KINDS[choice % 3], due, TENANTS[choice % 4]
    world.arrive(1 + choice % 5, *sharers, exact=choice % 6 == 0, unlike=choice % 7 == 0)


def _haunt(world: World, choice: int) -> None:
    """One query is failed wherever it runs."""
    ended = world.answers.keys() | world.failures.keys()
    pending = [query for query in range(world.arrived) if query not in ended]
    query = pending[choice % len(pending)] if pending else None
    for instance, run in list(world.running.items()):
        if run.role == DEPLOYED and query in run.subjects and instance in world.running:
            world.fail(instance)


def _report_again(world: World, choice: int) -> None:
    """An event that was reported already, or is about what is gone, is reported once more."""
    scheduler, now = world.scheduler, world.now
    again: list[Callable[[], Any]] = [
        partial(scheduler.instance_left, now, "never joined"),
        partial(scheduler.queries_abandoned, now, list(world.answers)[-3:]),
        partial(scheduler.queries_failed, now, list(world.failures)[-3:], "no memory"),
        partial(scheduler.time_passed, now - 1.0),
    ]
    again += [
        partial(scheduler.instance_joined, now, name, world.roles[name]) for name in world.roles
    ]
    for unit in sorted(world.over)[-3:]:
        again.append(partial(scheduler.unit_finished, now, unit))
        again.append(partial(scheduler.unit_failed, now, unit, "the model raised"))
    world.do(again[choice % len(again)]())


STEPS: dict[str, Callable[[World, int], None]] = {
    "arrive": _arrive,
    "time": lambda world, choice: world.pass_time(choice / 500),
    "stall": lambda world, choice: world.stall(choice / 500),
    "haunt": _haunt,
    "again": _report_again,
    "abandon": lambda world, choice: world.abandon(*range(world.arrived)[-(choice % 9) :]),
    "driver fails": lambda world, choice: world.do(
        world.scheduler.queries_failed(world.now, [choice % (world.arrived + 1)], "no memory")
    ),
}
"""Steps that may come at any time."""

STEP_NAMES = [
    *["arrive"] * 3,
    *["finish"] * 4,
    *["fail", "leave", "join", "time", "busy", "stall", "end", "report", "haunt", "again"],
    *["abandon", "driver fails"],
]


def history(random: Random) -> tuple[Setup, list[tuple[str, int]]]:
    """A long history in which some steps are frequent and others do not occur.

    (Groce et al., Swarm testing, ISSTA 2012.)
    """
    often = {name: random.choice([0, 0, 1, 3]) for name in STEP_NAMES}
    often |= {"arrive": random.choice([2, 4]), "finish": random.choice([1, 4, 6])}
    often["time"] = random.choice([1, 3])
    names = random.choices(list(often), list(often.values()), k=random.randint(20, 250))
    setup = draw_setup(random.choice)
    steps = [(name, random.randint(0, 1000)) for name in names]
    return setup, steps


def run_history(
    setup: Setup, steps: list[tuple[str, int]], observer: Observer | None = None
) -> World:
    """The world after these steps, of which the observer hears."""
    world, policy = setup.build()
    world.observer = observer or world.observer
    roles = cycle(policy.roles(3, 2))
    nodes = cycle([None] if setup.nodes is None else [str(node) for node in range(setup.nodes)])
    for i in range(5):
        world.join(f"{i}", next(roles), next(nodes))
    for number, (step, choice) in enumerate(steps):
        world.pass_time(0.03)  # units take some time
        if step in STEPS:
            STEPS[step](world, choice)
        elif step == "join":
            if len(world.roles) < INSTANCES:
                world.join(f"joined-{number}", next(roles), next(nodes))
        elif step == "leave":
            if world.roles:
                world.leave(_one_of(sorted(world.roles), choice))
        elif step == "report":
            if world.unreported:
                world.report(_one_of(sorted(world.unreported), choice))
        elif busy := sorted(world.running | world.verifying):
            instance = _one_of(busy, choice)
            verifying = instance in world.verifying
            if step == "fail":
                world.fail(instance)
            elif step == "busy":
                world.fail(instance, 0.1 if verifying else choice / 500 + 0.01)
            elif verifying:
                world.verify(instance, right=step == "finish", answer=int(step == "end"))
            elif step == "finish":
                world.finish(instance)
            else:
                world.end(instance)
    if isinstance(policy, Adaptive):
        assert world.spent <= setup.options["differ"] * (world.arrived + FIRST) + 1e-9
    return world


def observed_history(seed: int, observer: Observer) -> tuple[World, int]:
    """A random history with an observer, and how many queries a group has."""
    setup, steps = history(Random(seed))
    return run_history(setup, steps, observer), setup.code.k


def check_nothing_is_left(world: World, k: int) -> None:
    """Every query ends once, and little is remembered, when instances finish and time passes."""
    for instance in sorted(world.unreported):
        world.report(instance)
    for _ in range(2):
        for _ in range(3000):
            if world.verifying:
                world.verify(min(world.verifying))
            elif world.running:
                world.finish(min(world.running))
            else:
                break
        for instance in sorted(world.recycled):
            world.leave(instance)
        world.pass_time(100.0)
    assert world.answers.keys() | world.failures.keys() == set(range(world.arrived))
    assert all(
        fail.reason is not Reason.INTERNAL or fail.detail == "no memory"
        for fail in world.failures.values()
    )
    scheduler = world.scheduler
    assert scheduler.pending == 0
    assert not any(scheduler.dispatch.depths.values())
    assert not world.running
    assert not world.verifying
    assert scheduler.running() == dict.fromkeys(world.roles)
    # What stays is padding: at most 2k - 2 answered queries and an open group, for those who may
    # share one.
    kept = len(set(KINDS)) * len(set(TENANTS)) * (3 * k - 3)
    if scheduler.config.sample_every:
        kept += MAX_AGREED + MAX_ASKED
    assert scheduler.size() <= kept
    assert len(world.inputs) <= kept
    assert world.predictions <= world.inputs
    assert not world.members
    assert not world.parity_outputs
    assert {state for _, state in scheduler.instances()} <= {State.UP, State.SUSPECTED}
    if any(DEPLOYED in roles for roles in world.roles.values()):
        (last,) = world.arrive(1)
        while last not in world.answers or world.running:
            if world.verifying:
                world.verify(min(world.verifying))
            else:
                world.finish(min(world.running))

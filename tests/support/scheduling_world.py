"""A driver for tests of the scheduler: carries out actions against imagined instances.

It knows what a real driver would know (tensors at hand, instances up, the clock) and checks
every action against it, so that any history run through it is a test of the invariants.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from parity_models.codes import Code, CodeSpec
from parity_models.roles import BACKUP, DEPLOYED, Source, parity_role, source_of
from parity_models.scheduling.actions import (
    Action,
    Answer,
    Audit,
    Cancel,
    Compare,
    Decode,
    Encode,
    Fail,
    ForgetGroup,
    ForgetQueries,
    Recycle,
    RecycleReason,
    Run,
    Verify,
    WakeAt,
)
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.policies import NoRedundancy, Policy
from parity_models.scheduling.work import SchedulerConfig
from parity_models.serving.frontend import Observer

ORIGINALS = frozenset({DEPLOYED})
PARITIES = frozenset({parity_role(0)})
BOTH = ORIGINALS | PARITIES
"""Roles of an instance."""


class _Raise(logging.Handler):
    """Lets a test fail for what the scheduler would only log."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            raise record.exc_info[1]


STRICT = _Raise()
LOG = logging.getLogger("parity_models.scheduling")
LOG.addHandler(STRICT)


def code(k: int = 2, r: int = 1, decoder: str = "separate") -> Code:
    encoder = "stack" if decoder == "separate" else "sum"
    return Code(CodeSpec(encoder, decoder, k, r), (1,), (1,))


@dataclass
class World:
    """Carries out actions and knows what a real driver would: tensors, instances, the clock."""

    scheduler: Scheduler
    code: Code | None = None
    max_batch: int = 1
    now: float = 0.0
    wake_at: float | None = None
    arrived: int = 0
    inputs: set[int] = field(default_factory=set)
    predictions: set[int] = field(default_factory=set)
    backups: set[int] = field(default_factory=set)
    reconstructed: set[int] = field(default_factory=set)
    members: dict[int, tuple[int, ...]] = field(default_factory=dict)
    parity_outputs: dict[int, set[int]] = field(default_factory=dict)
    roles: dict[str, frozenset[str]] = field(default_factory=dict)
    nodes: dict[str, str | None] = field(default_factory=dict)
    running: dict[str, Run] = field(default_factory=dict)
    verifying: dict[str, Verify] = field(default_factory=dict)
    recycled: dict[str, Recycle] = field(default_factory=dict)
    answers: dict[int, Source] = field(default_factory=dict)
    failures: dict[int, Fail] = field(default_factory=dict)
    exact: set[int] = field(default_factory=set)
    unlike: set[int] = field(default_factory=set)
    """Queries that the scheduler finds to be exact when a stand-in is to see them."""
    tenants: dict[int, str | None] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    compared: set[int] = field(default_factory=set)
    audited: set[int] = field(default_factory=set)
    spent: float = 0.0
    """The doubts of all answers."""
    log: list[Action] = field(default_factory=list)
    unreported: dict[str, Run] = field(default_factory=dict)
    """Units that have ended, which the scheduler does not know yet, by instance."""
    over: set[int] = field(default_factory=set)
    """Units of which the end was reported."""
    wrong: tuple[int, ...] = ()
    """The slots whose reconstructions cannot be right."""
    refuses: Callable[[int, Source], bool] = lambda query, source: False
    """Returns whether the stand-in with this source may not answer this query."""
    doubt: Callable[[int, Source], float] = lambda query, source: 0.0
    """Returns the probability that this stand-in's output for this query is wrong."""
    observer: Observer = field(default_factory=Observer)
    """Is told what a driver would tell it."""

    def __post_init__(self) -> None:
        self.scheduler.is_unlike = self.unlike.__contains__

    def arrive(
        self,
        count: int,
        kind: str = "image",
        deadline: float | None = None,
        tenant: str | None = None,
        *,
        exact: bool = False,
        unlike: bool = False,
    ) -> list[int]:
        ids = list(range(self.arrived, self.arrived + count))
        self.arrived += count
        self.inputs.update(ids)
        if exact or unlike:
            self.exact.update(ids)
        if unlike:
            self.unlike.update(ids)
        self.tenants.update(dict.fromkeys(ids, tenant))
        self.kinds.update(dict.fromkeys(ids, kind))
        event = self.scheduler.queries_arrived
        only = ids if exact else ()
        self.do(event(self.now, ids, kind, deadline, tenant=tenant, exact=only))
        return ids

    def abandon(self, *queries: int) -> None:
        self.do(self.scheduler.queries_abandoned(self.now, queries))

    def join(self, instance: str, roles: frozenset[str], node: str | None = None) -> None:
        self.observer.instance_joined(self.now, instance, roles, node)
        self.roles[instance], self.nodes[instance] = roles, node
        self.do(self.scheduler.instance_joined(self.now, instance, roles, node))

    def leave(self, instance: str) -> None:
        if instance in {**self.running, **self.unreported, **self.verifying}:
            self._tell(instance, finished=False)
        self.observer.instance_left(self.now, instance, "is gone")
        del self.roles[instance]
        self.running.pop(instance, None)
        self.unreported.pop(instance, None)
        self.verifying.pop(instance, None)
        self.recycled.pop(instance, None)
        self.do(self.scheduler.instance_left(self.now, instance))

    def finish(self, instance: str) -> None:
        self.end(instance)
        self.report(instance)

    def finish_running(self) -> None:
        """Finish all units that run now."""
        for instance in sorted(self.running):
            self.finish(instance)

    def finish_all(self) -> None:
        """Finish running units until none runs."""
        while self.running:
            self.finish(min(self.running))

    def end(self, instance: str) -> None:
        """The instance has run its unit; the scheduler is not told yet."""
        self.unreported[instance] = self.running.pop(instance)

    def report(self, instance: str) -> None:
        """Report the unit that the instance has run."""
        self._tell(instance, finished=True)
        run = self.unreported.pop(instance)
        for subject in run.subjects:
            if run.role == DEPLOYED:
                self.predictions.update({subject} & self.inputs)
            elif run.role == BACKUP:
                self.backups.update({subject} & self.inputs)
            elif subject in self.members:
                self.parity_outputs[subject].add(int(run.role.removeprefix("parity-")))
        self.over.add(run.unit)
        source, is_backup = source_of(run.role), run.role == BACKUP
        refused = [q for q in run.subjects if is_backup and self.refuses(q, source)]
        doubts = {query: self.doubt(query, source) for query in run.subjects if is_backup}
        self.do(self.scheduler.unit_finished(self.now, run.unit, refused, doubts=doubts))

    def fail(self, instance: str, busy: float = 0.0) -> None:
        """Its unit or golden query fails, or it turns that away as it is busy for so long."""
        self._tell(instance, finished=False)
        if instance in self.verifying:
            unit = self.verifying.pop(instance).unit
        else:
            unit = self.running.pop(instance).unit
            self.over.update([] if busy else [unit])
        why = "is busy" if busy else "the model raised"
        self.do(self.scheduler.unit_failed(self.now, unit, why, busy=busy))

    def verify(self, instance: str, *, right: bool = True, answer: int = 0) -> None:
        """It answers a golden query, rightly or not, or a client's with this answer."""
        self._tell(instance, finished=True)
        unit = self.verifying.pop(instance).unit
        self.do(self.scheduler.unit_verified(self.now, unit, right, answer))

    def _tell(self, instance: str, *, finished: bool) -> None:
        """Say that the instance's unit, or golden query, has ended."""
        units: dict[str, Run | Verify] = {**self.verifying, **self.unreported, **self.running}
        self.observer.unit_ended(self.now, units[instance], finished=finished)

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.wake_at is not None and self.wake_at <= end:
            self.now, self.wake_at = max(self.now, self.wake_at), None
            self.do(self.scheduler.time_passed(self.now))
        self.now = end

    def stall(self, seconds: float) -> None:
        """Time passes, and the driver is too busy to notice: timers that become due are late."""
        self.now += seconds

    def do(self, actions: list[Action]) -> None:
        self.observer.acted(self.now, actions)
        at_once = {action.unit for action in actions if isinstance(action, Compare)}
        for action in actions:
            if isinstance(action, Run) and action.unit not in at_once:
                assert not self._ended(action), "answered queries run only to be compared"
            self.log.append(action)
            getattr(self, f"_{type(action).__name__.lower()}")(action)
        for action in actions:
            if isinstance(action, Decode):
                refused = [
                    slot
                    for slot in action.slots
                    if self.refuses(action.members[slot], Source.RECONSTRUCTION)
                ]
                wrong = {*self.wrong, *refused}
                doubts = {
                    slot: self.doubt(action.members[slot], Source.RECONSTRUCTION)
                    for slot in action.slots
                }
                self.do(self.scheduler.decoded(self.now, action.group, wrong, doubts))

    def _run(self, run: Run) -> None:
        busy = self.running.keys() | self.unreported.keys()
        assert run.instance not in busy, "an instance runs one unit at a time"
        assert run.instance not in self.verifying, "an instance that is verified runs nothing else"
        recycled = self.recycled.get(run.instance)
        lied = recycled is not None and recycled.reason is RecycleReason.QUARANTINED
        assert not lied, "an instance that has lied runs nothing more"
        assert run.role in self.roles[run.instance]
        assert len(run.subjects) <= self.max_batch
        assert len(set(run.subjects)) == len(run.subjects), "no batch holds copies of one query"
        assert run.role != BACKUP or not self.exact & set(run.subjects), "exact queries have none"
        if run.role in (DEPLOYED, BACKUP):
            assert self.inputs.issuperset(run.subjects)
            assert len({self.kinds[query] for query in run.subjects}) == 1, "a batch is of one kind"
            for members in self.members.values():
                self._check_apart(run, members)
        else:
            assert self.members.keys() >= set(run.subjects), "parity is encoded before it runs"
        self.running[run.instance] = run

    def _ended(self, run: Run) -> bool:
        answers = [self.answers[query] for query in run.subjects if query in self.answers]
        if run.role == DEPLOYED:  # the answers of stand-ins are audited
            return Source.MODEL in answers
        return run.role == BACKUP and bool(answers)

    def _check_apart(self, run: Run, members: tuple[int, ...]) -> None:
        shared = set(run.subjects) & set(members)
        assert len(shared) <= 1, "no batch holds two members of one group"

    def _encode(self, encode: Encode) -> None:
        assert self.code is not None
        assert len(set(encode.members)) == self.code.k
        assert self.inputs.issuperset(encode.members)
        assert encode.group not in self.members, "a group is encoded once"
        assert encode.group_wait >= 0
        assert not self.exact & set(encode.members), "exact queries are not encoded"
        (tenant,) = {self.tenants[query] for query in encode.members}  # tenants share no code
        assert len({self.kinds[query] for query in encode.members}) == 1, "nor do kinds"
        assert tenant is not None or self.scheduler.config.share_groups
        for run in self.running.values():
            if run.role == DEPLOYED:
                unknown = set(encode.members) - self.predictions
                self._check_apart(run, tuple(unknown))
        self.members[encode.group] = encode.members
        self.parity_outputs[encode.group] = set()

    def _decode(self, decode: Decode) -> None:
        assert self.code is not None
        assert decode.members == self.members[decode.group]
        for query, here in zip(decode.members, decode.available, strict=True):
            assert not here or query in self.predictions, "claimed predictions are really here"
        for j, here in enumerate(decode.parities):
            assert not here or j in self.parity_outputs[decode.group]
        decodable = self.code.decodable(decode.available, decode.parities)
        assert decode.slots
        assert all(decodable[slot] for slot in decode.slots)
        self.reconstructed.update(decode.members[slot] for slot in decode.slots)

    def _answer(self, answer: Answer) -> None:
        assert answer.query not in self.answers, "answered once"
        assert answer.query not in self.failures, "not answered after it failed"
        outputs = {
            Source.MODEL: self.predictions,
            Source.RECONSTRUCTION: self.reconstructed,
            Source.BACKUP: self.backups,
        }
        assert answer.query in outputs[answer.source]
        refused = answer.source.stands_in and self.refuses(answer.query, answer.source)
        assert not refused, "refused answers are not given"
        assert answer.doubt == self.doubt(answer.query, answer.source) * answer.source.stands_in
        self.answers[answer.query] = answer.source
        self.spent += answer.doubt

    def _audit(self, audit: Audit) -> None:
        if audit.answered:
            assert self.answers[audit.query].stands_in
        else:
            assert audit.query not in self.answers
            assert audit.query in self.backups
        assert audit.query in self.inputs & self.predictions, "what is compared is at hand"
        assert audit.query not in self.audited, "audited once"
        self.audited.add(audit.query)

    def _fail(self, fail: Fail) -> None:
        assert fail.query not in self.answers, "not failed after it was answered"
        assert fail.query not in self.failures, "failed once"
        self.failures[fail.query] = fail

    def _cancel(self, cancel: Cancel) -> None:
        run = self.running.get(cancel.instance) or self.unreported[cancel.instance]
        assert run.unit == cancel.unit, "no unit is cancelled whose end is being reported"
        assert cancel.unit not in self.cancelled
        self.cancelled.add(cancel.unit)

    def _compare(self, compare: Compare) -> None:
        run = self.running.get(compare.instance) or self.unreported[compare.instance]
        assert run.unit == compare.unit, "no unit is compared whose end is being reported"
        assert run.role != DEPLOYED
        assert compare.unit not in self.cancelled
        running = {each.unit for each in (*self.running.values(), *self.unreported.values())}
        assert not self.compared & running, "one at a time"
        self.compared.add(compare.unit)

    def _verify(self, verify: Verify) -> None:
        assert verify.instance not in self.running | self.verifying
        assert verify.role in self.roles[verify.instance]
        if verify.query is not None:
            assert verify.role == DEPLOYED
            assert verify.query in self.predictions, "what is asked again is at hand"
        self.verifying[verify.instance] = verify

    def _recycle(self, recycle: Recycle) -> None:
        assert recycle.instance in self.roles
        self.recycled[recycle.instance] = recycle

    def _forgetqueries(self, forget: ForgetQueries) -> None:
        for query in forget.queries:
            assert query in self.answers or query in self.failures
            self.inputs.remove(query)
            self.predictions.discard(query)
            self.backups.discard(query)

    def _forgetgroup(self, forget: ForgetGroup) -> None:
        del self.members[forget.group]
        del self.parity_outputs[forget.group]

    def _wakeat(self, wake: WakeAt) -> None:
        self.wake_at = wake.time


def world_of(
    instances: Iterable[str] | Mapping[str, frozenset[str]],
    policy: Policy | None = None,
    *,
    code: Code | None = None,
    dispatch: Dispatch | None = None,
    nodes: Mapping[str, str | None] | None = None,
    audited: int = 0,
    **config: Any,
) -> World:
    """A world with these instances, in the given roles or those of the policy; `config` is the
    scheduler's. Of answers of stand-ins, so many were `audited`: the first ones always are."""
    policy = policy or NoRedundancy()
    scheduler = Scheduler(policy, SchedulerConfig(**config), dispatch)
    scheduler._audits._drawn = audited
    world = World(scheduler, code, config.get("max_batch", 1))
    if not isinstance(instances, Mapping):
        names = list(instances)
        instances = dict(zip(names, policy.roles(len(names), 0), strict=True))
    for instance, roles in instances.items():
        world.join(instance, roles, (nodes or {}).get(instance))
    return world


def numbered(roles: Iterable[frozenset[str]]) -> dict[str, frozenset[str]]:
    """Instances with these roles."""
    return {str(number): each for number, each in enumerate(roles)}

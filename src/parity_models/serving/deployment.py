"""A deployment: a bundle's models on the instances of an engine, and the frontend over them."""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from parity_models.bundle.bundle import Bundle
from parity_models.bundle.onnx_model import PinnedModel
from parity_models.errors import UserError, spell
from parity_models.roles import BACKUP, DEPLOYED, parity_role
from parity_models.scheduling.choice import PolicyChoice, extra_instances
from parity_models.scheduling.policies import Adaptive, NoRedundancy, Policy, Requires, StandIns
from parity_models.scheduling.work import SchedulerConfig
from parity_models.serving.engine import Parts
from parity_models.serving.frontend import Frontend, Golden
from parity_models.serving.local.thread_engine import THREADS, WithStandIns
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import VERSION, ServedModel, ServedVersion
from parity_models.serving.options import EngineChoice, ServeOptions
from parity_models.serving.page.watch import Watch
from parity_models.serving.request_log import request_id
from parity_models.serving.stand_ins import StandInOutputs
from parity_models.simulation.emulation import FaultPlan
from parity_models.simulation.journal import Journal
from parity_models.trust.gates import OutputGate, choose_gates, closed, doubtful
from parity_models.trust.golden import golden

if TYPE_CHECKING:
    from parity_models.serving.tracing import Tracing

_log = logging.getLogger(__name__)

SHORT_UNIT = 1.0
"""Milliseconds of a query up to which messages about units cost more than units."""


def default_policy(bundle: Bundle, engine: EngineChoice | None = None) -> str:
    """Return the default policy of a bundle: adaptive, if a stand-in runs."""
    return Adaptive.name if stand_ins_of(bundle, engine) else NoRedundancy.name


def chosen_policy(bundle: Bundle, options: ServeOptions) -> PolicyChoice:
    """Return the policy of the options, by default the bundle's, with their budget.

    Raises:
        UserError: The policy in the options has no budget, or has one of its own.

    """
    choice, differ = options.policy, options.differ
    if choice is None:
        choice = PolicyChoice(default_policy(bundle, options.engine))
        if not choice.has_budget:
            return choice  # no answer differs
    return choice.within(differ)


def stand_ins_of(bundle: Bundle, engine: EngineChoice | None = None) -> StandIns:
    """Return a bundle's stand-ins; if the engine has fixed roles, only those that run."""
    code, backup = bundle.code(), bundle.manifest.backup is not None
    fixed = None if engine is None else engine.kind.fixed_roles(engine.settings, bundle)
    if fixed is None:
        return StandIns(code, backup)
    assert engine is not None
    runs = engine.kind.own_roles(engine.settings, bundle).union(*fixed)
    return StandIns(code if parity_role(0) in runs else None, backup and BACKUP in runs)


class Deployment(ServedVersion):
    """A bundle in one version, with a frontend, an engine and metrics of its own.

    The parts are made at once and checked; instances start with `start`.

    Args:
        bundle: The bundle; a model that has changed since it was opened is refused.
        options: How to serve it.
        version: Its version in a repository; None for a bundle on its own.
        starts_at_once: As in Parts.
        tracing: Makes spans of its queries.

    Raises:
        UserError: The options do not fit the bundle.

    """

    def __init__(
        self,
        bundle: Bundle,
        options: ServeOptions,
        version: str | None = None,
        *,
        starts_at_once: int | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        engine = options.engine
        self.choice = choice = chosen_policy(bundle, options)
        """The policy with its options."""
        requires = choice.policy.requires
        # A policy for which either stand-in will do uses those that the engine runs.
        stand_ins = stand_ins_of(bundle, engine if requires is Requires.EITHER else None)
        policy, dispatch = choice.build(stand_ins)
        fixed = engine.kind.fixed_roles(engine.settings, bundle)
        own = frozenset[str]()
        if fixed is not None or (policy.differ is not None and options.faults is None):
            own = engine.kind.own_roles(engine.settings, bundle).intersection(
                chain.from_iterable(policy.roles(1, 1))
            )
        roles = _roles(choice, policy, bundle, options, fixed, own)
        self.roles = [*roles, *[own] * (THREADS if own else 0)]
        """The roles of each instance; those of this process are the last."""
        used = frozenset[str]().union(*self.roles)
        budgeted = policy.differ is not None
        gates = choose_gates(bundle.gates, used, options.agreement, budgeted=budgeted)
        envelope = bundle.envelope()
        notes = [*closed(gates), *doubtful(gates, bundle.path, policy.differ or 0.0)]
        if envelope is None and parity_role(0) in used and not bundle.isolated:
            notes.append(
                "the bundle does not say which inputs its parity model learned from, so one "
                "client's query can spoil the reconstruction of another's; make it again with parm "
                f"parity, or serve it with {spell('policy', 'none')}"
            )
        code = bundle.code() if stand_ins.used(requires).code is not None else None
        share_groups = options.share_groups or code is None or code.isolated
        if not share_groups and parity_role(0) in used and options.tenant_header is None:
            notes.append(
                "the code does not isolate the slots of a group, so only queries of one tenant are "
                f"encoded together; name tenants with {spell('tenant_header')}, or, if all "
                f"clients trust one another, serve with {spell('share_groups', True)}"
            )
        self.notes = tuple(notes)
        # The bundle's times say nothing about upstreams, or about times that a fault plan sets.
        times = bundle.manifest.inference_times if fixed is None and not options.faults else None
        self.max_batch = options.max_batch or (1 if times is None else times.batch)
        """The most queries in a unit."""
        self._bundle = bundle
        self._faults = options.faults or FaultPlan()
        self._models = {role: bundle.pinned(file) for role, file in bundle.manifest.models.items()}
        metrics = Metrics(bundle.digest)
        parts = Parts(
            bundle=bundle,
            models=self._models,
            metrics=metrics,
            max_batch=self.max_batch,
            unit_timeout=options.unit_timeout,
            placements=options.placements,
            starts_at_once=starts_at_once,
            own=own,
        )
        self.engine = engine.kind(engine.settings, parts)
        if own:
            self.engine = WithStandIns(self.engine, parts)
        signature = bundle.manifest.deployed.signature
        config = SchedulerConfig(
            max_batch=self.max_batch,
            max_queue=options.max_queue,
            deadline=options.deadline,
            verify_every=options.verify_every,
            sample_every=options.verify_every,
            compare=options.compare,
            grace=engine.kind.grace,
            spread=times is None or times.deployed > SHORT_UNIT,
            share_groups=share_groups,
            seed=secrets.randbits(32),
        )
        self.frontend = frontend = Frontend(
            self.engine,
            policy,
            config,
            signature,
            code,
            metrics,
            StandInOutputs(
                code,
                OutputGate(gates, envelope),
                metrics,
                differ=policy.differ,
                faults=self._faults,
                one_in=config.compare_one_in,
                store=None if used == {DEPLOYED} else bundle.gates.evidence(options.state),
            ),
            imitated=bundle.manifest.imitated if len(signature.outputs) > 1 else None,
            dispatch=dispatch,
        )
        imitated = bundle.manifest.imitated_output if used != {DEPLOYED} else None
        model = ServedModel.of(
            bundle,
            options.name,
            gates,
            max_rows=options.max_queue,
            tenant_header=options.tenant_header,
            stood_in=frozenset() if imitated is None else frozenset({imitated.name}),
            version=version or VERSION,
        )
        super().__init__(frontend, model, metrics)
        if tracing is not None:
            tracing.observe(frontend, model)
        self._journal: Journal | None = None
        if options.journal is not None:
            self._journal = Journal(options.journal, choice, frontend.scheduler, request_id)
        self.instances = len(self.roles)
        alike = Counter(" + ".join(sorted(roles)) for roles in self.roles)
        instances = ", ".join(f"{count} of {roles}" for roles, count in alike.items())
        self.description = f"policy {choice.name}; instances: {instances}"
        self._watch: Watch | None = None
        if options.ui:
            self._watch = Watch(frontend, choice.name, time.monotonic())
            frontend.observers.append(self._watch)

    async def start(self) -> None:
        """Start all instances; return when they are warm and verified.

        Raises:
            ServingError: An instance does not start. Nothing is left running.

        """
        golden = await asyncio.to_thread(golden_of, self._bundle, self._models, self.roles)
        await self.frontend.start(self.roles, golden)

    async def stop(self) -> None:
        await super().stop()
        if self._journal is not None:
            self._journal.close()

    def frame(self) -> bytes:
        return b"" if self._watch is None else self._watch.encoded_frame(time.monotonic())

    def switch_redundancy(self, on: bool) -> None:
        self.frontend.switch_redundancy(on)

    def change_budget(self, differ: float) -> None:
        if self.frontend.differ is None:
            super().change_budget(differ)
        self.frontend.change_budget(differ)

    def begin_faults(self) -> None:
        if self._faults != FaultPlan():
            self.engine.inject_faults(self._faults)


def golden_of(
    bundle: Bundle, models: Mapping[str, PinnedModel], roles: Sequence[frozenset[str]]
) -> dict[str, Golden]:
    """Return golden queries, by role, of the models that instances run, if they have any. Only one
    model is loaded at a time.

    Raises:
        ModelError: A model was changed since it was checked.
        BundleError: Likewise.

    """
    queries = bundle.manifest.deployed.signature.smallest.input
    found: dict[str, Golden] = {}
    for role in sorted(frozenset[str]().union(*roles)):
        if role == DEPLOYED and bundle.manifest.deployed.elsewhere:
            continue
        model = models[role].load()
        known = golden(bundle.code(), queries, bundle.envelope(), {role: model})
        if role in known:
            (inputs, outputs), kind = known[role], model.signature.smallest
            found[role] = (kind.input.join(inputs), kind.output.join(outputs))
        else:
            _log.warning(
                "the role %s has no output to compare; its instances are not verified", role
            )
    return found


def _roles(
    choice: PolicyChoice,
    policy: Policy,
    bundle: Bundle,
    options: ServeOptions,
    fixed: Sequence[frozenset[str]] | None,
    own: frozenset[str],
) -> Sequence[frozenset[str]]:
    """Return the roles of each instance of the engine: not its `own`. Raises UserError if the
    options do not fit them."""
    if fixed is None:
        given, instances = options.extra_instances, options.workers
        extra = extra_instances(choice, policy, instances, given, bundle.code())
        if given and not extra:
            raise UserError(
                f"the policy {choice.name} has no instances that run stand-ins only; leave "
                f"{spell('extra_instances')} out"
            )
        roles = [each - own for each in policy.roles(instances - extra, extra)]
    else:
        roles = [*fixed]
        missing = frozenset[str]().union(*policy.roles(1, 1)) - own.union(*fixed)
        if missing:
            raise UserError(
                f"the policy {choice.name} needs instances that run {', '.join(sorted(missing))}, "
                f"and the engine {options.engine.name} has none; add some, or serve with "
                "another policy"
            )
    if options.faults is not None:
        options.faults.check(len(roles))
    if options.placements and len(options.placements) != len(roles):
        raise UserError(
            f"there are {len(options.placements)} placements for {len(roles)} instances"
        )
    return roles

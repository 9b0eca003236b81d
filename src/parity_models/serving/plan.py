"""What follows from a bundle and the options it is served with: the plan of a server."""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.faults import FaultPlan
from parity_models.models.bundle import Bundle, ModelFile
from parity_models.models.signature import Signature
from parity_models.scheduling import (
    DEPLOYED,
    Policy,
    SchedulerConfig,
    Source,
    parity_role,
)
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Adaptive, NoRedundancy, StandIns
from parity_models.serving.engine import Engine
from parity_models.serving.engines import EngineChoice
from parity_models.serving.frontend import Frontend
from parity_models.serving.golden import Golden
from parity_models.serving.metrics import Metrics
from parity_models.serving.options import ServeOptions
from parity_models.serving.protocol import GateMetadata
from parity_models.serving.served_model import VERSION, ServedModel
from parity_models.trust.gates import ChosenGate, OutputGate, choose_gates, ungated


def default_policy(bundle: Bundle, engine: EngineChoice | None = None) -> str:
    """The policy of a bundle that is served without a word on it: adaptive, if a stand-in runs."""
    return Adaptive.name if stand_ins_of(bundle, engine) else NoRedundancy.name


def default_batch(bundle: Bundle) -> int:
    """How many queries run as one batch, if nobody says a word on it: as was measured when the
    bundle was made, else 1."""
    times = bundle.manifest.inference_times
    return 1 if times is None else times.batch


_UNSCREENED = (
    "the bundle does not say which inputs its parity model learned from, so that one client's "
    "query can spoil the reconstruction of another's; make it again with parm parity, or serve it "
    "with --policy none"
)


def stand_ins_of(bundle: Bundle, engine: EngineChoice | None = None) -> StandIns:
    """The stand-ins of a bundle, those that run somewhere if the engine has fixed roles."""
    code, backups = bundle.code(), tuple(bundle.manifest.backup_roles)
    fixed = None if engine is None else engine.kind.fixed_roles(engine.settings, bundle)
    if fixed is None:
        return StandIns(code, backups)
    runs = frozenset[str]().union(*fixed)
    return StandIns(
        code if parity_role(0) in runs else None, tuple(role for role in backups if role in runs)
    )


class Plan:
    """How a bundle is served: policy, code, instances and limits, each made once and checked.

    `choice` is the policy with its options, `roles` what each instance runs, and `model` the
    deployed model as clients see it, in this `version`. A unit has up to `max_batch` queries.
    `notes` say what a user may not expect: stand-ins that answer without a gate, or without an
    envelope, where nobody asked for that. What it reads of the bundle's folder is what was checked
    when the bundle was opened. Raises UserError for options that do not fit the bundle.
    """

    def __init__(self, bundle: Bundle, options: ServeOptions, version: str = VERSION) -> None:
        self.choice = options.policy or PolicyChoice(default_policy(bundle, options.engine))
        _check_policy(self.choice, bundle)
        code = bundle.code()
        needs = self.choice.policy
        # Of the stand-ins that it could do without, a policy asks those that the engine runs.
        stand_ins = stand_ins_of(bundle, options.engine if needs.needs_stand_in else None)
        self._policy, self._dispatch = self.choice.build(stand_ins)
        self.roles = _roles(self.choice, self._policy, bundle, options)
        engine = options.engine
        self._is_fixed = engine.kind.fixed_roles(engine.settings, bundle) is not None
        used = frozenset[str]().union(*self.roles)
        self._gates = choose_gates(bundle, used, options.agreement)
        self.model = _served_model(bundle, options, self._gates, used, version)
        # What was measured here says nothing of upstreams, nor of times that a fault plan gives.
        measured = not self._is_fixed and options.faults is None
        self.max_batch = options.max_batch or (default_batch(bundle) if measured else 1)
        self._options = options
        self._code = code if needs.needs_code or (needs.needs_stand_in and stand_ins.code) else None
        self._default = _default(options, self.model.signature)
        envelope = bundle.envelope()
        self._gate = OutputGate(self._gates, envelope)
        self.notes = tuple(ungated(bundle, used, options.agreement))
        if envelope is None and parity_role(0) in used and not bundle.isolated:
            self.notes += (_UNSCREENED,)
        several = len(self.model.signature.outputs) > 1
        self._imitated = bundle.manifest.imitated if several else None

    def frontend(
        self, engine: Engine, metrics: Metrics, golden: Mapping[str, Golden] | None = None
    ) -> Frontend:
        """The frontend over this engine; the policy is its own, so there is one of a plan.

        `golden` has the queries by which instances are verified, by role; it may be filled until
        the frontend is started.
        """
        options = self._options
        return Frontend(
            engine,
            self._policy,
            SchedulerConfig(
                max_batch=self.max_batch,
                max_queue=options.max_queue,
                deadline=options.deadline,
                default_prediction=options.default_prediction is not None,
                verify_every=options.verify_every,
                compare_every=options.compare_every,
                fleet=tuple(self.roles) if self._is_fixed else (),
            ),
            self.model.signature,
            self._code,
            metrics,
            imitated=self._imitated,
            dispatch=self._dispatch,
            default=self._default,
            gate=self._gate,
            golden=golden,
            min_ready=options.min_ready,
            refuses=_refuses(options),
        )


def _refuses(options: ServeOptions) -> Callable[[int, Source], bool]:
    """Which queries a stand-in may not answer, by their ids, as the fault plan has it drawn."""
    plan = FaultPlan() if options.faults is None else options.faults
    # Ids begin with 1, a plan's numbers with 0.
    return lambda query, source: plan.refuses(query - 1, source)


def model_files(bundle: Bundle) -> dict[str, ModelFile]:
    """The bundle's model files, by the work of running them."""
    manifest = bundle.manifest
    files = {DEPLOYED: manifest.deployed}
    files |= {parity_role(j): model for j, model in enumerate(manifest.parity)}
    return files | manifest.backup_roles


def _roles(
    choice: PolicyChoice, policy: Policy, bundle: Bundle, options: ServeOptions
) -> Sequence[frozenset[str]]:
    """What each instance runs."""
    engine = options.engine
    fixed = engine.kind.fixed_roles(engine.settings, bundle)
    if fixed is None:
        dedicated = any(DEPLOYED not in roles for roles in policy.roles(1, 1))
        if dedicated and options.parity_instances == 0:
            raise UserError(
                f"the policy {choice.name} needs one parity instance or more, for models that run "
                "on instances of their own; got 0"
            )
        return policy.roles(options.instances, _parity_instances(options, bundle))
    missing = frozenset[str]().union(*policy.roles(1, 1)) - frozenset[str]().union(*fixed)
    if missing:
        raise UserError(
            f"the policy {choice.name} needs instances that run {', '.join(sorted(missing))}, and "
            f"the engine {engine.name} has none; give it such, or serve with another policy"
        )
    return fixed


def _served_model(
    bundle: Bundle,
    options: ServeOptions,
    gates: Mapping[Source, ChosenGate],
    roles: Collection[str],
    version: str,
) -> ServedModel:
    """The model as clients see it, where instances run these roles."""
    deployed, imitated = bundle.manifest.deployed, bundle.manifest.imitated_output
    stood_in = imitated is not None and any(role != DEPLOYED for role in roles)
    name = options.name or bundle.manifest.name
    return ServedModel(
        name,
        deployed.signature,
        options.max_queue,
        options.tenant_header,
        bundle.digest,
        deployed.sha256,
        {
            source: GateMetadata(gate.level.level, gate.level.coverage)
            for source, gate in gates.items()
        },
        frozenset({imitated.name}) if imitated is not None and stood_in else frozenset(),
        version,
    )


def _check_policy(choice: PolicyChoice, bundle: Bundle) -> None:
    """The bundle has the models for the policy."""
    if choice.policy.needs_code and bundle.manifest.code is None:
        raise UserError(
            f"{bundle.path} has no parity model for the policy {choice.name}; make one with "
            f"`parm parity --from {bundle.path} --out BUNDLE`, or serve with another policy"
        )
    if choice.policy.needs_backup and not bundle.manifest.backups:
        raise UserError(
            f"{bundle.path} has no backup model for the policy {choice.name}; make one with `parm "
            f"backup --from {bundle.path} --network linear --out BUNDLE`, or serve with another "
            "policy"
        )
    if choice.policy.needs_stand_in and not stand_ins_of(bundle):
        raise UserError(
            f"{bundle.path} has no stand-in for the policy {choice.name}; make one with `parm "
            f"backup --from {bundle.path} --network linear --out BUNDLE` or `parm parity --from "
            f"{bundle.path} --out BUNDLE`, or serve with another policy"
        )


def _default(options: ServeOptions, signature: Signature) -> NDArray[Any] | None:
    """The row that answers queries at their deadline: (*output shape), or None."""
    values = options.default_prediction
    if values is None:
        return None
    output = None if len(signature.outputs) > 1 else signature.outputs[0].fixed
    if output is None:
        raise UserError(
            "a default prediction is one of one output of fixed shape; the model has the outputs "
            f"{', '.join(map(str, signature.outputs))}"
        )
    if len(values) not in (1, prod(output.shape)):
        raise UserError(
            f"the default prediction has {len(values)} values; an output {output} has "
            f"{prod(output.shape)}: give all of them, or one for all"
        )
    wanted = np.broadcast_to(np.array(values), prod(output.shape)).reshape(output.shape)
    with np.errstate(all="ignore"):
        row = wanted.astype(output.dtype)
    if not np.allclose(row.astype(np.float64), wanted, rtol=1e-2):
        raise UserError(f"the default prediction has values that {output.datatype} cannot hold")
    return row


def _parity_instances(options: ServeOptions, bundle: Bundle) -> int:
    if options.parity_instances is not None:
        return options.parity_instances
    # Without a code the extra instances are as many as for the smallest one.
    code = bundle.manifest.code
    k, r = (code.k, code.r) if code else (2, 1)
    return ceil(options.instances * r / k)

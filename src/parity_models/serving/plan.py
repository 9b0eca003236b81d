"""What follows from a bundle and the options it is served with: the plan of a server."""

from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.errors import UserError
from parity_models.models.bundle import Bundle, ModelFile
from parity_models.models.tensor import TensorSpec
from parity_models.scheduling import BACKUP, DEPLOYED, Policy, SchedulerConfig, parity_work
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import AdaptiveParity, ApproximateBackup, NoRedundancy
from parity_models.serving.engine import Engine
from parity_models.serving.frontend import Frontend
from parity_models.serving.golden import Golden
from parity_models.serving.metrics import Metrics
from parity_models.serving.options import ServeOptions
from parity_models.serving.remote.upstream import Fleet
from parity_models.serving.screen import Screen
from parity_models.serving.served_model import ServedModel


def default_policy(bundle: Bundle, fleet: Fleet | None = None) -> str:
    """The policy of a bundle that is served without a word on it: adaptive parity if its parity
    models run somewhere, and over a fleet that has a backup instead, approximate backup."""
    runs = frozenset[str]() if fleet is None else frozenset[str]().union(*fleet.works)
    if bundle.manifest.code is not None and (fleet is None or parity_work(0) in runs):
        return AdaptiveParity.name
    return ApproximateBackup.name if BACKUP in runs else NoRedundancy.name


class Plan:
    """How a bundle is served: policy, code, instances and limits, each made once and checked.

    `choice` is the policy with its options, `works` what each instance runs, and `model` the
    deployed model as clients see it. What it reads of the bundle's folder is what was checked when
    the bundle was opened. Raises UserError for options that do not fit the bundle.
    """

    def __init__(self, bundle: Bundle, options: ServeOptions) -> None:
        self.choice = options.policy or PolicyChoice(default_policy(bundle, options.fleet))
        _check_policy(self.choice, bundle)
        code = bundle.code()
        self._policy, self._dispatch = self.choice.build(code)
        self.works = _works(self.choice, self._policy, code, options)
        self.model = _served_model(bundle, options)
        self._options = options
        self._code = code if self.choice.policy.needs_code else None
        self._default = _default(options, self.model.output)
        self._screen = Screen(bundle.envelope())

    def frontend(
        self, engine: Engine, metrics: Metrics, golden: Mapping[str, Golden] | None = None
    ) -> Frontend:
        """The frontend over this engine; the policy is its own, so there is one of a plan.

        `golden` has the queries by which instances are verified, by work; it may be filled until
        the frontend is started.
        """
        options = self._options
        return Frontend(
            engine,
            self._policy,
            SchedulerConfig(
                max_batch=options.max_batch,
                max_queue=options.max_queue,
                deadline=options.deadline,
                default_prediction=options.default_prediction is not None,
                verify_every=options.verify_every,
            ),
            self.model.output,
            self._code,
            metrics,
            dispatch=self._dispatch,
            default=self._default,
            screen=self._screen,
            golden=golden,
            min_ready=options.min_ready,
        )


def model_files(bundle: Bundle) -> dict[str, ModelFile]:
    """The bundle's model files, by the work of running them."""
    manifest = bundle.manifest
    files = {DEPLOYED: manifest.deployed}
    files |= {parity_work(j): model for j, model in enumerate(manifest.parity)}
    if manifest.backup is not None:
        files[BACKUP] = manifest.backup
    return files


def _works(
    choice: PolicyChoice, policy: Policy, code: Code | None, options: ServeOptions
) -> Sequence[frozenset[str]]:
    """What each instance runs."""
    if options.fleet is None:
        dedicated = any(DEPLOYED not in works for works in policy.works(1, 1))
        if dedicated and options.parity_instances == 0:
            raise UserError(
                f"the policy {choice.name} needs one parity instance or more, for models that run "
                "on instances of their own; got 0"
            )
        return policy.works(options.instances, _parity_instances(options, code))
    _check_fleet(choice, policy, options.fleet)
    return options.fleet.works


def _served_model(bundle: Bundle, options: ServeOptions) -> ServedModel:
    """The model as clients see it."""
    deployed = bundle.manifest.deployed
    name = options.name or bundle.manifest.name
    return ServedModel(
        name,
        deployed.input,
        deployed.output,
        options.max_queue,
        options.tenant_header,
        bundle.digest,
        deployed.sha256,
    )


def _check_policy(choice: PolicyChoice, bundle: Bundle) -> None:
    """The bundle has the models for the policy."""
    if choice.policy.needs_code and bundle.manifest.code is None:
        raise UserError(
            f"{bundle.path} has no parity model for the policy {choice.name}; make one with "
            f"`parm parity --from {bundle.path} --out BUNDLE`, or serve with another policy"
        )
    if choice.policy.needs_backup and bundle.manifest.backup is None:
        raise UserError(
            f"{bundle.path} has no backup model for the policy {choice.name}; make one with `parm "
            f"backup --from {bundle.path} --network linear --out BUNDLE`, or serve with another "
            "policy"
        )


def _check_fleet(choice: PolicyChoice, policy: Policy, fleet: Fleet) -> None:
    """The fleet runs what the policy sends."""
    needed = frozenset[str]().union(*policy.works(1, 1))
    missing = needed - frozenset().union(*fleet.works)
    if missing:
        raise UserError(
            f"the policy {choice.name} needs upstreams that run {', '.join(sorted(missing))}; give "
            "them with --deployed, --parity or --backup, or serve with another policy"
        )


def _default(options: ServeOptions, output: TensorSpec) -> NDArray[Any] | None:
    """The row that answers queries at their deadline: (*output shape), or None."""
    values = options.default_prediction
    if values is None:
        return None
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


def _parity_instances(options: ServeOptions, code: Code | None) -> int:
    if options.parity_instances is not None:
        return options.parity_instances
    # Without a code the extra instances are as many as for the smallest one.
    k, r = (code.k, code.r) if code else (2, 1)
    return ceil(options.instances * r / k)

"""The Serve application: `parity_models.serving.ray.app:build`, for `serve run`, `build` and
`deploy`, and so for KubeRay; and `application`, for `parm serve --engine ray`.

    deployment     replicas                what it is
    Frontends      as many as asked for    the ingress; each forms its own coding groups
    Roster         1                       says which instance serves which frontend
    deployed, …    what the policy needs   an instance each; a deployment for each set of roles
"""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from pydantic import ConfigDict, create_model
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from parity_models.errors import OptionError, UserError
from parity_models.faults import FaultPlan, load_fault_plan
from parity_models.models.bundle import Bundle, ModelFile, open_bundle
from parity_models.options import Amounts, OptionField, declared_in
from parity_models.scheduling import BACKUP, DEPLOYED
from parity_models.scheduling.choice import PolicyChoice, choose, declared_options
from parity_models.serving.limits import Limits
from parity_models.serving.options import ServeOptions
from parity_models.serving.plan import Plan, default_policy, model_files
from parity_models.serving.ray.cluster_options import ClusterOptions
from parity_models.serving.ray.deployments import (
    STOP_PATIENCE,
    Frontends,
    Instances,
    RosterDeployment,
)
from parity_models.serving.ray.ray_engine import RayEngine
from parity_models.serving.ray.scaling import Utilisation
from parity_models.serving.ray.store import BundleFiles, put_bundle
from parity_models.serving.worker.socket_key import SocketKey

_DEPLOYMENT: dict[str, Any] = {
    "health_check_period_s": 1,
    "health_check_timeout_s": 10,
    "graceful_shutdown_wait_loop_s": 0.1,
    "max_constructor_retry_count": 3,
    "logging_config": {"enable_access_log": False},
}
"""For all deployments: Ray is to see soon that a replica has ended or hangs, to stop an idle one at
once, to give up models that do not load, and to log no line for each of many requests."""


@dataclass(frozen=True)
class InstancePool:
    """Instances that run the same roles, between `least` and `most` of them: a deployment."""

    name: str
    roles: frozenset[str]
    least: int
    most: int


_ELSEWHERE = {
    "engine": "an application on Ray runs on the engine ray",
    "host": "it is in http_options of Serve's config file",
    "port": "it is in http_options of Serve's config file",
    "grpc_port": "it is in grpc_options of Serve's config file",
    "min_ready": "Serve says when an application is ready",
    "shutdown_delay": "Serve says how an application ends",
}
"""Options of `parm serve` that are no arguments of an application, and why not."""

_SERVE = [field for field in declared_in(ServeOptions) if field.name not in _ELSEWHERE]
"""The options of ServeOptions that an application has."""

_LIMITS = [field for field in declared_in(Limits) if field.name == "max_body"]
_CLUSTER = [field for field in declared_in(RayEngine.Options) if field.name != "address"]


def _type_of(field: OptionField) -> Any:
    """What an argument may be: of a time a number, or a text with a unit."""
    return float | str if field.is_time else Amounts if field.kind is dict else field.kind


_FIELDS: dict[str, Any] = {
    field.name: (_type_of(field) | None, None) for field in (*_SERVE, *_LIMITS, *_CLUSTER)
}
_Declared: Any = create_model("_Declared", **_FIELDS)


# mypy takes no base class that is made at run time, as pydantic's of fields known only then is.
class AppArgs(_Declared):  # type: ignore[misc]
    """The arguments of `build`: the options of `parm serve`, with the same names and units.

    `bundle` is a folder where the application is built, which for `serve deploy` is on the
    cluster. `allow_code` are encoders and decoders of your own that it may name. `traces` has
    frontends send spans, as the variables OTEL_... say where the application is built or, without
    any there, where frontends run. All further arguments are options of the policy and the dispatch
    rule.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    bundle: str
    allow_code: tuple[str, ...] = ()
    policy: str | None = None
    dispatch: str | None = None
    default_prediction: tuple[float, ...] | None = None
    faults: str | None = None
    traces: bool = False

    def serve_options(self, bundle: Bundle) -> ServeOptions:
        return ServeOptions(
            **self._given(_SERVE),
            policy=self._choice(self.policy or default_policy(bundle)),
            limits=Limits(**self._given(_LIMITS)),
            default_prediction=self.default_prediction,
            faults=None if self.faults is None else load_fault_plan(self.faults),
        )

    def cluster_options(self) -> ClusterOptions:
        return ClusterOptions(**self._given(_CLUSTER))

    def _choice(self, policy: str) -> PolicyChoice:
        further = self.model_extra or {}
        for name in further.keys() & _ELSEWHERE.keys():
            raise UserError(f"leave {name} out: {_ELSEWHERE[name]}")
        declared = {each.name: each for each in declared_options(policy, self.dispatch)}
        given = {
            name: _typed(declared[name], value) if name in declared else value
            for name, value in further.items()
            if value is not None
        }
        return choose(policy, given | {"dispatch": self.dispatch})

    def _given(self, declared: Sequence[OptionField]) -> dict[str, Any]:
        """What was given of these options, in their own units."""
        given = {each: getattr(self, each.name) for each in declared}
        return {
            each.name: each.from_typed(value, str)
            for each, value in given.items()
            if value is not None
        }


def _typed(field: OptionField, value: Any) -> Any:
    """The value in the option's own unit; what follows `serve run` comes as text."""
    is_text = isinstance(value, str) and not field.is_time
    return field.from_typed(field.read(value) if is_text else value, str)


def build(args: AppArgs) -> Application:
    """The application, for Serve's own commands. Raises UserError for what cannot be served."""
    bundle = open_bundle(args.bundle, args.allow_code)
    options, cluster = args.serve_options(bundle), args.cluster_options()
    return application(bundle, options, cluster, traces=args.traces)


def application(
    bundle: Bundle, options: ServeOptions, cluster: ClusterOptions, *, traces: bool = False
) -> Application:
    """The application that serves a bundle; with `traces`, frontends send spans of requests.

    Where Ray runs, the bundle's files are put where replicas get them; where it does not, as under
    `serve build`, the application can be described but not run. Raises UserError for options that
    do not fit the bundle.
    """
    pools = pools_of(bundle, options, cluster)
    files = put_bundle(bundle) if ray.is_initialized() else BundleFiles("")
    # New with every deployment: it travels in the arguments of replicas, and nowhere else.
    key = SocketKey.new()
    roster = roster_app(files)
    stored = model_files(bundle)
    instances = []
    first = 0
    for pool in pools:
        models = {role: stored[role] for role in sorted(pool.roles)}
        instances.append(
            instances_app(roster, files, models, pool, cluster, key, options.faults, first)
        )
        first += pool.least
    # A frontend's own queue says when there is too much, with an error that tells clients so. As
    # many wait at each of Ray's proxies, should a frontend hang or be lost: then those refuse.
    most = 2 * options.max_queue + 100
    frontends = serve.deployment(
        name="Frontends",
        num_replicas=cluster.frontends,
        max_ongoing_requests=most,
        max_queued_requests=most,
        ray_actor_options={
            "num_cpus": cluster.cpus_per_frontend,
            "resources": cluster.resources_per_frontend or {},
            **(_where_spans_go() if traces else {}),
        },
        graceful_shutdown_timeout_s=options.deadline + 5,
        **_DEPLOYMENT,
    )(serve.ingress()(Frontends))
    roles = [pool.roles for pool in pools for _ in range(pool.least)]
    return frontends.bind(roster, instances, files, key, options, roles, cluster.frontends, traces)


def _where_spans_go() -> dict[str, Any]:
    """The variables of OpenTelemetry that are set here, for frontends elsewhere."""
    here = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
    return {"runtime_env": {"env_vars": here}} if here else {}


def roster_app(files: BundleFiles) -> Application:
    """The roster of the bundle with these files."""
    deployment = serve.deployment(
        name="Roster",
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
        **_DEPLOYMENT,
    )
    return deployment(RosterDeployment).bind(files)


def instances_app(
    roster: Application,
    files: BundleFiles,
    models: Mapping[str, ModelFile],
    pool: InstancePool,
    cluster: ClusterOptions,
    key: SocketKey,
    faults: FaultPlan | None = None,
    first: int = 0,
    beside: Sequence[Application] = (),
) -> Application:
    """A pool of instances of `models`, by role; see Instances for the rest."""
    deployment = serve.deployment(
        name=pool.name,
        ray_actor_options={
            "num_cpus": cluster.cpus_per_instance,
            "resources": cluster.resources_per_instance or {},
        },
        graceful_shutdown_timeout_s=STOP_PATIENCE + 5,
        **_replicas(pool, cluster),
        **_DEPLOYMENT,
    )
    return deployment(Instances).bind(roster, files, models, key, faults, first, list(beside))


def pools_of(bundle: Bundle, options: ServeOptions, cluster: ClusterOptions) -> list[InstancePool]:
    """The instances that serve a bundle. Raises UserError for options that do not fit it."""
    least = Counter(Plan(bundle, options).roles)
    most = least
    if cluster.max_instances is not None:
        if cluster.max_instances < options.instances:
            raise OptionError(
                lambda spell: (
                    f"{spell('max_instances')} must be {options.instances} or more, as there are "
                    f"that many instances to begin with; got {cluster.max_instances}"
                )
            )
        extra = cluster.max_parity_instances
        if extra is None and options.parity_instances is not None:
            growth = cluster.max_instances / options.instances
            extra = math.ceil(options.parity_instances * growth)
        grown = replace(options, instances=cluster.max_instances, parity_instances=extra)
        most = Counter(Plan(bundle, grown).roles)
    pools = pools_for(least, most)
    for pool in pools:
        if pool.most < pool.least:
            raise OptionError(
                lambda spell: (
                    f"{spell('max_parity_instances')} must be as many as there are to begin with, "
                    f"got {cluster.max_parity_instances}"
                )
            )
        if DEPLOYED in pool.roles and pool.least < cluster.frontends:
            raise UserError(
                f"{cluster.frontends} frontends need as many instances of the deployed model, and "
                f"there are {pool.least}; give more instances"
            )
    if options.faults is not None:
        options.faults.check(least.total())
        if options.faults.kills or options.faults.random_kills:
            raise UserError("a fault plan's kills are for local workers; on Ray, leave them out")
    return pools


def pools_for(
    least: Mapping[frozenset[str], int], most: Mapping[frozenset[str], int] | None = None
) -> list[InstancePool]:
    """A pool for each set of roles, of `least` to `most` instances; by default always `least`."""
    return [
        InstancePool(_name(roles), roles, count, (most or least)[roles])
        for roles, count in least.items()
    ]


def _name(roles: frozenset[str]) -> str:
    if DEPLOYED in roles:
        return "deployed" if len(roles) == 1 else "shared"
    return "backup" if BACKUP in roles else "parity"


def _replicas(pool: InstancePool, cluster: ClusterOptions) -> dict[str, Any]:
    if pool.least == pool.most:
        return {"num_replicas": pool.least}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=pool.least,
            max_replicas=pool.most,
            upscale_delay_s=cluster.upscale_delay,
            downscale_delay_s=cluster.downscale_delay,
            look_back_period_s=max(2.0, cluster.upscale_delay),
            metrics_interval_s=1.0,
            policy=AutoscalingPolicy(
                policy_function=f"{Utilisation.__module__}:{Utilisation.__name__}",
                policy_kwargs={"target": cluster.target_utilisation},
            ),
        )
    }

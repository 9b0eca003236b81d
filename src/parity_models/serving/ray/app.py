"""The Serve application: `parity_models.serving.ray.app:build`, for `serve run`, `build` and
`deploy`, and so for KubeRay; and `application`, for `parm serve --engine ray`.

    deployment     replicas                what it is
    Frontends      as many as asked for    the ingress; each forms its own coding groups
    Roster         1                       says which instance serves which frontend
    deployed, …    what the policy needs   an instance each; a deployment for each set of works
"""

import math
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, fields, replace
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from parity_models.errors import UserError
from parity_models.faults import FaultPlan, load_fault_plan
from parity_models.models.bundle import Bundle, ModelFile, open_bundle
from parity_models.options import SECONDS
from parity_models.scheduling import BACKUP, DEPLOYED
from parity_models.scheduling.choice import PolicyChoice, choose, declared_options
from parity_models.serving.limits import Limits
from parity_models.serving.options import ServeOptions
from parity_models.serving.plan import Plan, default_policy, model_files
from parity_models.serving.ray.deployments import (
    STOP_PATIENCE,
    Frontends,
    Instances,
    RosterDeployment,
)
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


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """What of a cluster an application takes.

    With `max_instances`, the deployed model's instances are scaled between their number in
    ServeOptions and that, the extra ones between theirs and `max_parity_instances` (None: in the
    same proportion), so that instances are busy for `target_utilisation` of the time; it is looked
    at for `upscale_delay` or `downscale_delay` seconds. Ray reserves CPUs and resources, which
    nodes have under names that users choose, for each instance and frontend. Raises UserError for
    values out of range.
    """

    frontends: int = 1
    max_instances: int | None = None
    max_parity_instances: int | None = None
    target_utilisation: float = 0.7
    upscale_delay: float = 10.0
    downscale_delay: float = 300.0
    cpus_per_instance: float = 1.0
    cpus_per_frontend: float = 1.0
    resources_per_instance: Mapping[str, float] = field(default_factory=dict)
    resources_per_frontend: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frontends < 1:
            raise UserError(f"frontends must be 1 or more, got {self.frontends}")
        for name in ("upscale_delay", "downscale_delay", "cpus_per_instance", "cpus_per_frontend"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.target_utilisation <= 1:
            raise UserError(
                f"target_utilisation must be above 0 and at most 1, got {self.target_utilisation}"
            )
        if self.max_parity_instances is not None and self.max_instances is None:
            raise UserError("max_parity_instances needs max_instances beside it")


@dataclass(frozen=True)
class InstancePool:
    """Instances that run the same works, between `least` and `most` of them: a deployment."""

    name: str
    works: frozenset[str]
    least: int
    most: int


class AppArgs(BaseModel):
    """The arguments of `build`: the options of `parm serve`, with the same names and units.

    `bundle` is a folder where the application is built, which for `serve deploy` is on the
    cluster. `max_body` is in MiB. All further arguments are options of the policy and the dispatch
    rule, whose times are in milliseconds; others are in seconds.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    bundle: str

    frontends: int = ClusterOptions.frontends
    max_instances: int | None = None
    max_parity_instances: int | None = None
    target_utilisation: float = ClusterOptions.target_utilisation
    upscale_delay: float = ClusterOptions.upscale_delay
    downscale_delay: float = ClusterOptions.downscale_delay
    cpus_per_instance: float = ClusterOptions.cpus_per_instance
    cpus_per_frontend: float = ClusterOptions.cpus_per_frontend
    resources_per_instance: dict[str, float] = {}
    resources_per_frontend: dict[str, float] = {}

    instances: int = ServeOptions.instances
    parity_instances: int | None = None
    name: str | None = None
    max_batch: int = ServeOptions.max_batch
    max_queue: int = ServeOptions.max_queue
    deadline: float = ServeOptions.deadline
    max_body: float = Limits.max_body / 2**20
    default_prediction: tuple[float, ...] | None = None
    tenant_header: str | None = None
    faults: str | None = None

    policy: str | None = None
    dispatch: str | None = None

    def serve_options(self, bundle: Bundle) -> ServeOptions:
        return ServeOptions(
            **self._given(ServeOptions, besides={"policy", "limits", "faults"}),
            policy=self._choice(self.policy or default_policy(bundle)),
            limits=Limits(max_body=int(self.max_body * 2**20)),
            faults=None if self.faults is None else load_fault_plan(self.faults),
        )

    def cluster_options(self) -> ClusterOptions:
        return ClusterOptions(**self._given(ClusterOptions))

    def _choice(self, policy: str) -> PolicyChoice:
        extra = self.model_extra or {}
        given = {name: value for name, value in extra.items() if value is not None}
        declared = declared_options(policy, self.dispatch)
        times = {each.name for each in declared if each.option.unit == SECONDS}
        for name in times & given.keys():
            if isinstance(given[name], int | float):
                given[name] = given[name] / 1e3
        return choose(policy, given | {"dispatch": self.dispatch})

    def _given(self, kind: type, besides: Set[str] = frozenset()) -> dict[str, Any]:
        """What was given of the fields of a dataclass."""
        names = {field.name for field in fields(kind)} - besides
        return self.model_dump(include=names, exclude_none=True)


def build(args: AppArgs) -> Application:
    """The application, for Serve's own commands. Raises UserError for what cannot be served."""
    bundle = open_bundle(args.bundle)
    return application(bundle, args.serve_options(bundle), args.cluster_options())


def application(bundle: Bundle, options: ServeOptions, cluster: ClusterOptions) -> Application:
    """The application that serves a bundle.

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
        models = {work: stored[work] for work in sorted(pool.works)}
        instances.append(
            instances_app(roster, files, models, pool, cluster, key, options.faults, first)
        )
        first += pool.least
    frontends = serve.deployment(
        name="Frontends",
        num_replicas=cluster.frontends,
        # A frontend's own queue says when there is too much, with an error that tells clients so.
        max_ongoing_requests=2 * options.max_queue + 100,
        ray_actor_options={
            "num_cpus": cluster.cpus_per_frontend,
            "resources": dict(cluster.resources_per_frontend),
        },
        graceful_shutdown_timeout_s=options.deadline + 5,
        **_DEPLOYMENT,
    )(serve.ingress()(Frontends))
    works = [pool.works for pool in pools for _ in range(pool.least)]
    return frontends.bind(roster, instances, files, key, options, works, cluster.frontends)


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
) -> Application:
    """A pool of instances of `models`, by work; see Instances for the rest."""
    deployment = serve.deployment(
        name=pool.name,
        ray_actor_options={
            "num_cpus": cluster.cpus_per_instance,
            "resources": dict(cluster.resources_per_instance),
        },
        graceful_shutdown_timeout_s=STOP_PATIENCE + 5,
        **_replicas(pool, cluster),
        **_DEPLOYMENT,
    )
    return deployment(Instances).bind(roster, files, models, key, faults, first)


def pools_of(bundle: Bundle, options: ServeOptions, cluster: ClusterOptions) -> list[InstancePool]:
    """The instances that serve a bundle. Raises UserError for options that do not fit it."""
    least = Counter(Plan(bundle, options).works)
    most = least
    if cluster.max_instances is not None:
        if cluster.max_instances < options.instances:
            raise UserError(
                f"max_instances must be {options.instances} or more, as there are that many "
                f"instances to begin with; got {cluster.max_instances}"
            )
        extra = cluster.max_parity_instances
        if extra is None and options.parity_instances is not None:
            growth = cluster.max_instances / options.instances
            extra = math.ceil(options.parity_instances * growth)
        grown = replace(options, instances=cluster.max_instances, parity_instances=extra)
        most = Counter(Plan(bundle, grown).works)
    pools = [InstancePool(_name(works), works, least[works], most[works]) for works in least]
    for pool in pools:
        if pool.most < pool.least:
            raise UserError(
                f"max_parity_instances must be as many as there are to begin with, got "
                f"{cluster.max_parity_instances}"
            )
        if DEPLOYED in pool.works and pool.least < cluster.frontends:
            raise UserError(
                f"{cluster.frontends} frontends need as many instances of the deployed model, and "
                f"there are {pool.least}; give more instances"
            )
    if options.faults is not None:
        options.faults.check(least.total())
        if options.faults.kills or options.faults.random_kills:
            raise UserError("a fault plan's kills are for local workers; on Ray, leave them out")
    return pools


def _name(works: frozenset[str]) -> str:
    if DEPLOYED in works:
        return "deployed" if len(works) == 1 else "shared"
    return "backup" if BACKUP in works else "parity"


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

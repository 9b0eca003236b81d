"""parm serve: a bundle behind the Open Inference Protocol."""

import asyncio
import logging
import signal
from collections import Counter
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from parity_models.cli.duration import Duration
from parity_models.cli.policy import (
    DispatchName,
    PolicyCommand,
    PolicyName,
    choose_policy,
    given_options,
)
from parity_models.errors import UserError
from parity_models.faults import load_fault_plan
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.serving.garbage import search_seldom
from parity_models.serving.limits import Limits
from parity_models.serving.plan import default_policy
from parity_models.serving.remote.upstream import Fleet, Upstream, parse_upstreams
from parity_models.serving.server import ServeOptions, Server


class EngineName(StrEnum):
    LOCAL = "local"
    REMOTE = "remote"
    RAY = "ray"


COMMAND = PolicyCommand


def serve(
    context: typer.Context,
    bundle: Annotated[
        Path | None,
        typer.Argument(help="The bundle's folder.", metavar="BUNDLE", show_default=False),
    ] = None,
    bundle_option: Annotated[
        Path | None,
        typer.Option(
            "--bundle", help="The bundle's folder, as an option.", metavar="BUNDLE", hidden=True
        ),
    ] = None,
    engine: Annotated[
        EngineName | None,
        typer.Option(
            help="What runs the models: worker processes of this machine (local), servers that run "
            "already (remote, the default with --deployed), or a Ray cluster (ray).",
            show_default=False,
        ),
    ] = None,
    deployed: Annotated[
        str | None,
        typer.Option(
            help="Servers of the Open Inference Protocol that run the deployed model, separated "
            "by commas: http://HOST:PORT, https, grpc or grpcs, and /MODEL after it where the "
            "model has another name there than here.",
            metavar="URLS",
        ),
    ] = None,
    parity: Annotated[
        str | None,
        typer.Option(
            help="Likewise, of the parity model; it is called NAME-parity-0 where no MODEL is "
            "given.",
            metavar="URLS",
        ),
    ] = None,
    backup: Annotated[
        str | None,
        typer.Option(
            help="Likewise, of the approximate backup, which is called NAME-backup.",
            metavar="URLS",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="With --deployed: units at a time on each server whose URL does not say it, as "
            f"http://HOST:PORT?concurrency=4 does; by default {Upstream.concurrency}.",
            show_default=False,
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            help="With --deployed: the certificates to trust over https and grpcs, a PEM file; by "
            "default the system's.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="With --engine ray: the cluster, as HOST:PORT of its head node, or auto on a node "
            "of it; by default one is started on this machine.",
            show_default=False,
        ),
    ] = None,
    frontends: Annotated[
        int | None,
        typer.Option(
            help="With --engine ray: frontends, each with coding groups and instances of its own; "
            "by default 1.",
            show_default=False,
        ),
    ] = None,
    max_instances: Annotated[
        int | None,
        typer.Option(
            help="With --engine ray: as many as this when instances are busy for more than 70 % of "
            "the time, and fewer again when not; by default always --instances.",
            show_default=False,
        ),
    ] = None,
    cpus_per_instance: Annotated[
        float | None,
        typer.Option(
            help="With --engine ray: CPUs that Ray reserves for an instance; by default 1.",
            show_default=False,
        ),
    ] = None,
    cpus_per_frontend: Annotated[
        float | None,
        typer.Option(help="Likewise, for a frontend.", show_default=False),
    ] = None,
    policy: PolicyName = None,
    dispatch: DispatchName = None,
    instances: Annotated[
        int | None,
        typer.Option(
            help="Without --deployed: worker processes for the deployed model; by default "
            f"{ServeOptions.instances}.",
            show_default=False,
        ),
    ] = None,
    parity_instances: Annotated[
        int | None,
        typer.Option(
            help="Further worker processes, which all policies but none have. By default "
            "instances x r / k, rounded up; half as many as instances without a code.",
            show_default=False,
        ),
    ] = ServeOptions.parity_instances,
    name: Annotated[
        str | None,
        typer.Option(help="The model's name; by default the bundle's.", show_default=False),
    ] = ServeOptions.name,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 for every network.")
    ] = ServeOptions.host,
    port: Annotated[
        int, typer.Option(help="The port to listen on; 0 takes any that is free.")
    ] = ServeOptions.port,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            help="Speak gRPC too, on this port (Triton's is 8001); 0 takes any that is free. By "
            "default HTTP only.",
            show_default=False,
        ),
    ] = ServeOptions.grpc_port,
    max_batch: Annotated[
        int, typer.Option(help="Queries that an instance runs at once, as one batch.")
    ] = ServeOptions.max_batch,
    max_queue: Annotated[
        int,
        typer.Option(help="Queries that may wait for an instance; more are refused (503)."),
    ] = ServeOptions.max_queue,
    deadline: Annotated[
        float,
        typer.Option(
            help="How long until a query fails (504); a request's timeout can shorten it.",
            parser=Duration("s"),
            metavar="SECONDS",
        ),
    ] = ServeOptions.deadline,
    max_body: Annotated[
        float, typer.Option(help="MiB that a request's body may have; more is refused.")
    ] = Limits.max_body / 2**20,
    max_in_flight: Annotated[
        float,
        typer.Option(
            help="MiB that the bodies of all requests under way may have together; more are "
            "refused (503)."
        ),
    ] = Limits.max_in_flight / 2**20,
    max_connections: Annotated[
        int, typer.Option(help="HTTP connections at a time; further ones are refused (503).")
    ] = Limits.max_connections,
    max_rpcs: Annotated[
        int, typer.Option(help="gRPC calls for predictions at a time; more are refused.")
    ] = Limits.max_rpcs,
    head_timeout: Annotated[
        float,
        typer.Option(
            help="In what time a request's headers have to come.",
            parser=Duration("s"),
            metavar="SECONDS",
        ),
    ] = Limits.head_timeout,
    body_timeout: Annotated[
        float,
        typer.Option(
            help="In what time the body has to come after them.",
            parser=Duration("s"),
            metavar="SECONDS",
        ),
    ] = Limits.body_timeout,
    write_timeout: Annotated[
        float,
        typer.Option(
            help="How long a client may leave an answer unread.",
            parser=Duration("s"),
            metavar="SECONDS",
        ),
    ] = Limits.write_timeout,
    idle_timeout: Annotated[
        float,
        typer.Option(
            help="How long an idle connection is kept for another request.",
            parser=Duration("s"),
            metavar="SECONDS",
        ),
    ] = Limits.idle_timeout,
    default_prediction: Annotated[
        str | None,
        typer.Option(
            help="Answer queries with this at their deadline, instead of failing them: the "
            "values of an output row, separated by commas, or one value for all of it.",
            metavar="VALUES",
        ),
    ] = None,
    tenant_header: Annotated[
        str | None,
        typer.Option(
            help="The header, or gRPC metadata key, that says whose a request is: requests of "
            "different tenants never share a coding group; without it a request is served exact.",
            metavar="NAME",
            show_default=False,
        ),
    ] = ServeOptions.tenant_header,
    min_ready: Annotated[
        int,
        typer.Option(
            help="Instances of the deployed model without which GET /v2/health/ready says no."
        ),
    ] = ServeOptions.min_ready,
    verify_every: Annotated[
        int,
        typer.Option(
            help="Queries after which an instance answers one whose answer is known, as it does "
            "when it joins; one that answers wrongly is replaced. 0: never."
        ),
    ] = ServeOptions.verify_every,
    shutdown_delay: Annotated[
        float,
        typer.Option(
            help="For how long after SIGTERM requests are still taken, though ready says no: as "
            "long as load balancers need to notice.",
            parser=Duration("s"),
            metavar="SECONDS",
        ),
    ] = ServeOptions.shutdown_delay,
    faults: Annotated[
        str | None,
        typer.Option(
            help="Slow, pause and kill workers on purpose, by this plan, from when "
            "the server is ready (docs/reference/faults.md).",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Serve a bundle over the Open Inference Protocol, with worker processes on this machine, on
    a Ray cluster, or in front of servers that run its models already.

    Ready when GET /v2/health/ready says so and the URL is printed. Metrics for Prometheus are at
    /metrics. SIGTERM or Ctrl-C: ready says no, after --shutdown-delay no more requests are taken,
    those in flight are answered, and everything stops; a second one does not wait for that.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    opened = open_bundle(_one(bundle, bundle_option))
    limits = Limits(
        max_connections=max_connections,
        max_rpcs=max_rpcs,
        max_body=_bytes("--max-body", max_body),
        max_in_flight=_bytes("--max-in-flight", max_in_flight),
        head_timeout=head_timeout,
        body_timeout=body_timeout,
        write_timeout=write_timeout,
        idle_timeout=idle_timeout,
    )
    fleet = _fleet(opened, engine, deployed, parity, backup, concurrency, ca_file)
    if fleet is not None and (instances is not None or parity_instances is not None):
        raise UserError(
            "--instances and --parity-instances are of worker processes; leave them out with "
            "--deployed, where --concurrency says how many units a server gets at a time"
        )
    chosen = policy or default_policy(opened, fleet)
    options = ServeOptions(
        policy=choose_policy(chosen, given_options(context), dispatch),
        instances=ServeOptions.instances if instances is None else instances,
        parity_instances=parity_instances,
        name=name,
        host=host,
        port=port,
        grpc_port=grpc_port,
        max_batch=max_batch,
        max_queue=max_queue,
        deadline=deadline,
        limits=limits,
        default_prediction=_numbers(default_prediction),
        tenant_header=tenant_header,
        faults=load_fault_plan(faults) if faults is not None else None,
        fleet=fleet,
        min_ready=min_ready,
        verify_every=verify_every,
        shutdown_delay=shutdown_delay,
    )
    cluster = {
        "frontends": frontends,
        "max_instances": max_instances,
        "cpus_per_instance": cpus_per_instance,
        "cpus_per_frontend": cpus_per_frontend,
    }
    given = {option: value for option, value in cluster.items() if value is not None}
    if engine is EngineName.RAY:
        if min_ready != ServeOptions.min_ready or shutdown_delay != ServeOptions.shutdown_delay:
            raise UserError(
                "--min-ready and --shutdown-delay are not for --engine ray: Ray Serve checks "
                "replicas and drains them itself"
            )
        _serve_on_ray(opened, options, given, address)
        return
    if given or address is not None:
        raise UserError(
            "--address, --frontends, --max-instances and --cpus-per-… are for --engine ray"
        )
    server = Server(opened, options)
    try:
        uvloop.run(_serve(server))
    except asyncio.CancelledError:
        raise typer.Exit(130) from None


def _serve_on_ray(
    bundle: Bundle, options: ServeOptions, cluster: dict[str, Any], address: str | None
) -> None:
    # Only now: whoever does not use Ray need not have it.
    from parity_models.cli.on_ray import serve_on_ray
    from parity_models.serving.ray.app import ClusterOptions

    serve_on_ray(bundle, options, ClusterOptions(**cluster), address)


async def _serve(server: Server) -> None:
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    this = asyncio.current_task()
    assert this is not None

    def on_signal() -> None:
        if asked_to_stop.is_set():
            this.cancel()
        asked_to_stop.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, on_signal)
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(asked_to_stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
        return
    await starting
    search_seldom()
    try:
        typer.echo(
            f"serving {server.model.name} at {_urls(server)} (policy {server.policy}; instances: "
            f"{_instances(server)})"
        )
        server.begin_faults()
        await stopping
    finally:
        await server.stop()


def _urls(server: Server) -> str:
    return server.url if server.grpc_url is None else f"{server.url} and {server.grpc_url}"


def _instances(server: Server) -> str:
    alike = Counter(" + ".join(sorted(works)) for works in server.works)
    return ", ".join(f"{count} of {works}" for works, count in alike.items())


def _one(bundle: Path | None, option: Path | None) -> Path:
    given = [each for each in (bundle, option) if each is not None]
    if len(given) != 1:
        raise UserError("give one BUNDLE, the folder that parm parity or parm train wrote")
    return given[0]


def _fleet(
    bundle: Bundle,
    engine: EngineName | None,
    deployed: str | None,
    parity: str | None,
    backup: str | None,
    concurrency: int | None,
    ca_file: Path | None,
) -> Fleet | None:
    remote = engine is EngineName.REMOTE or (engine is None and deployed is not None)
    if remote == (deployed is None):
        raise UserError("--engine remote and --deployed URLS belong together; give both")
    if deployed is None:
        if parity is not None or backup is not None:
            raise UserError("--parity and --backup take servers that go with those of --deployed")
        if concurrency is not None or ca_file is not None:
            raise UserError("--concurrency and --ca-file need --deployed beside them")
        return None
    code = bundle.manifest.code
    if parity is not None and code is None:
        raise UserError(
            f"{bundle.path} has no parity model for the servers of --parity; make one with `parm "
            f"parity --from {bundle.path} --out BUNDLE`"
        )
    if backup is not None and bundle.manifest.backup is None:
        raise UserError(
            f"{bundle.path} has no backup model for the servers of --backup; make one with `parm "
            f"backup --from {bundle.path} --network linear --out BUNDLE`"
        )
    upstreams = parse_upstreams(
        bundle.manifest.name,
        code.r if code is not None else 0,
        deployed=deployed.split(","),
        parity=parity.split(",") if parity is not None else (),
        backup=backup.split(",") if backup is not None else (),
        concurrency=Upstream.concurrency if concurrency is None else concurrency,
    )
    return Fleet(upstreams, ca_file)


def _bytes(option: str, mebibytes: float) -> int:
    if not mebibytes < inf:
        raise UserError(f"{option} is a number of MiB, not {mebibytes}")
    return int(mebibytes * 2**20)


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(map(float, text.split(",")))
    except ValueError:
        raise UserError(
            f"--default-prediction takes numbers separated by commas, not {text!r}"
        ) from None

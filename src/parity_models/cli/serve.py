"""parm serve: a bundle behind the Open Inference Protocol."""

import asyncio
import logging
import signal
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from parity_models.faults import load_fault_plan
from parity_models.models.bundle import open_bundle
from parity_models.scheduling import DEPLOYED
from parity_models.scheduling.policies import AnswerRule, Pool
from parity_models.serving.server import PolicyName, ServeOptions, Server


def serve(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    policy: Annotated[
        PolicyName | None,
        typer.Option(
            help="What is sent besides the originals; by default parity if the bundle has parity "
            "models, else none.",
            show_default=False,
        ),
    ] = None,
    pool: Annotated[
        Pool,
        typer.Option(
            help="Where parity models run: on every instance, at lower priority than originals, "
            "or on instances of their own.",
        ),
    ] = ServeOptions.pool,
    instances: Annotated[
        int, typer.Option(help="Worker processes for the deployed model.")
    ] = ServeOptions.instances,
    parity_instances: Annotated[
        int | None,
        typer.Option(
            help="Further worker processes, for parity models; with equal-resources, for the "
            "deployed model too. By default instances x r / k, rounded up.",
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
            help="Seconds after which a query fails (504); a request's timeout can shorten it."
        ),
    ] = ServeOptions.deadline,
    max_body: Annotated[
        float, typer.Option(help="MiB that a request's body may have; more is refused (413).")
    ] = ServeOptions.max_body / 2**20,
    max_group_wait: Annotated[
        float,
        typer.Option(
            help="Milliseconds after which a coding group that is not full is filled up with "
            "queries answered before."
        ),
    ] = ServeOptions.max_group_wait * 1e3,
    parity_delay: Annotated[
        float,
        typer.Option(
            help="Milliseconds that a full group waits before its parity queries are sent; they "
            "are not if all its predictions are there by then."
        ),
    ] = ServeOptions.parity_delay * 1e3,
    answer: Annotated[
        AnswerRule,
        typer.Option(
            help="When a reconstruction is the answer: if it is ready first, or only once the "
            "query has waited for --answer-after."
        ),
    ] = ServeOptions.answer,
    answer_after: Annotated[
        float, typer.Option(help="Milliseconds; with --answer deadline.")
    ] = ServeOptions.answer_after * 1e3,
    faults: Annotated[
        str | None,
        typer.Option(
            help="Slow, pause and kill workers on purpose, by this plan (docs/faults.md), from "
            "when the server is ready.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Serve a bundle over the Open Inference Protocol, with worker processes on this machine.

    Ready when GET /v2/health/ready says so and the URL is printed. Metrics for Prometheus are at
    /metrics. SIGTERM or Ctrl-C: requests in flight are answered, then everything stops; a second
    one does not wait for them.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    options = ServeOptions(
        policy=policy,
        pool=pool,
        instances=instances,
        parity_instances=parity_instances,
        name=name,
        host=host,
        port=port,
        max_batch=max_batch,
        max_group_wait=max_group_wait / 1e3,
        parity_delay=parity_delay / 1e3,
        max_queue=max_queue,
        deadline=deadline,
        max_body=int(max_body * 2**20),
        answer=answer,
        answer_after=answer_after / 1e3,
        faults=load_fault_plan(faults) if faults is not None else None,
    )
    server = Server(open_bundle(bundle), options)
    try:
        uvloop.run(_serve(server))
    except asyncio.CancelledError:
        raise typer.Exit(130) from None


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
    try:
        typer.echo(f"serving {server.model.name} at {server.url} ({_instances(server)})")
        server.begin_faults()
        await stopping
    finally:
        await server.stop()


def _instances(server: Server) -> str:
    deployed = sum(DEPLOYED in works for works in server.works)
    both = sum(DEPLOYED in works and len(works) > 1 for works in server.works)
    only = f"policy {server.policy}: {deployed} instances of the deployed model"
    if both:
        return f"{only}, which run parity models too"
    dedicated = len(server.works) - deployed
    return f"{only}, {dedicated} of parity models" if dedicated else only

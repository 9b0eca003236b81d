"""parm serve: a bundle behind the Open Inference Protocol."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import click
import uvloop

from parity_models.bundle.bundle import Bundle, open_bundle
from parity_models.cli.common import OWN, AllowCode, stop_on_signals
from parity_models.cli.flags import ConfigPath, Without
from parity_models.cli.policies import DispatchName, PolicyName
from parity_models.errors import UserError, spell
from parity_models.options import option
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.access import Access
from parity_models.serving.deployment import default_policy
from parity_models.serving.engine import FIXED
from parity_models.serving.garbage import freeze_modules
from parity_models.serving.limits import Limits
from parity_models.serving.logs import Logging, set_up
from parity_models.serving.models import ServedVersion
from parity_models.serving.options import ENGINES, EngineChoice, ServeOptions
from parity_models.serving.remote.remote_engine import UpstreamOptions
from parity_models.serving.server import Server
from parity_models.simulation.emulation import load_fault_plan


def serve(
    bundle: Path | None = option(None, "The bundle's folder.", argument=True),
    *,
    repository: Path | None = option(
        None,
        "Serve a folder of bundles instead, NAME/VERSION, which clients can load and unload.",
        metavar="DIR",
    ),
    engine: str | None = option(
        None,
        "The engine that runs the models: local (the default), remote (the default with "
        f"--deployed), ray, as ray@address=auto, {OWN}.",
        metavar="ENGINE",
    ),
    policy: PolicyName = None,
    dispatch: DispatchName = None,
    options: ServeOptions,
    limits: Limits,
    access: Access,
    logging: Logging,
    upstreams: Annotated[UpstreamOptions, Without("upstream_token")],
    faults: str | None = option(
        None,
        "A fault plan, which slows, pauses or kills workers once the server is ready.",
        metavar="FILE",
    ),
    allow_code: AllowCode = None,
    config: ConfigPath = None,
) -> None:
    """Serve a bundle, or a folder of them, over the Open Inference Protocol.

    Models run in worker processes on this machine, on a Ray cluster, or on servers that run them
    already. The server is ready when GET /v2/health/ready says so and the URL is printed. Metrics
    for Prometheus are at /metrics. On SIGTERM or Ctrl-C, it reports not ready, takes requests for
    another --shutdown-delay, answers those in flight, and ends. A second signal ends it at once.
    """
    set_up(logging)
    if (bundle is None) == (repository is None):
        raise UserError(
            "give one BUNDLE, the folder that parm protect or parm bundle wrote, or "
            "--repository DIR"
        )
    opened = None if bundle is None else open_bundle(bundle, allow_code or ())
    chosen = _engine(engine, upstreams)
    _refuse_ineffective(chosen, opened, options, access, logging)
    if options.stand_in_only:
        if opened is None or engine or chosen != EngineChoice() or dispatch:
            raise UserError(
                "with --stand-in-only give a BUNDLE, and no engine or dispatch rule: its backup "
                "runs in threads"
            )
    elif opened is not None and dispatch:
        policy = policy or default_policy(opened, chosen)
    elif policy is None and dispatch is not None:
        raise UserError("--dispatch needs --policy as well, with --repository")
    options = replace(
        options,
        policy=None if policy is None else PolicyChoice.parse(policy, dispatch),
        engine=chosen,
        limits=limits,
        access=access,
        faults=None if faults is None else load_fault_plan(faults),
    )
    tracing = None
    if logging.traces:
        from parity_models.serving.tracing import Tracing, exporting  # an extra of its own

        tracing = Tracing(exporting())
    models = opened or repository
    assert models is not None
    _run(Server(models, options, tracing, allow_code or ()))


def _engine(name: str | None, upstreams: UpstreamOptions) -> EngineChoice:
    """Return the engine, with the options given by --engine and by flags of their own."""
    given = _given(upstreams)
    chosen, options = ENGINES.read(name or ("remote" if "deployed" in given else "local"))
    return EngineChoice(chosen, {**options, **given})


def _given(*options: Any) -> dict[str, Any]:
    """Return the options that are not the defaults, by name."""
    values = ((each, getattr(kind, each.name)) for kind in options for each in fields(kind))
    return {each.name: value for each, value in values if value != each.default}


def _refuse_ineffective(engine: EngineChoice, bundle: Bundle | None, *options: Any) -> None:
    """Raise UserError for options that have no effect with this engine."""
    refused = engine.kind.refuses
    if bundle is not None and engine.kind.fixed_roles(engine.settings, bundle) is not None:
        refused = {**refused, **FIXED}
    for name in _given(*options):
        if name in refused:
            raise UserError(
                f"leave {spell(name)} out with the engine {engine.name}: {refused[name]}"
            )


def _notify_ready() -> None:
    """Notify the service manager that the server is ready, if there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.sendto(b"READY=1", address)


def _run(server: Server) -> None:
    try:
        uvloop.run(_serve(server))
    except asyncio.CancelledError:
        raise click.exceptions.Exit(130) from None


async def _serve(server: Server) -> None:
    """Serve until the first signal; a second one cancels this."""
    with stop_on_signals() as asked_to_stop:
        starting = asyncio.create_task(server.start())
        stopping = asyncio.create_task(asked_to_stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
            return
        await starting
        try:
            _say_ready(server)
            await stopping
        finally:
            await server.stop()


def _say_ready(server: Server) -> None:
    """Print what is served, take signals that switch redundancy, and begin the fault plan."""
    freeze_modules()
    loop = asyncio.get_running_loop()
    for number, on in ((signal.SIGUSR1, False), (signal.SIGUSR2, True)):
        loop.add_signal_handler(number, server.models.switch_redundancy, on)
    for line in _said(server):
        _tell(line)
    _notify_ready()
    for note in _notes(server):
        _tell(f"note: {note}", err=True)
    if server.models.only is not None:
        server.models.only.begin_faults()


def _tell(line: str, *, err: bool = False) -> None:
    """Print a line. Ignore errors: a closed pipe or a full disk must not stop the server."""
    with suppress(OSError):
        click.echo(line, err=err)


def _said(server: Server) -> Iterator[str]:
    """Yield the lines that a server prints when it is ready."""
    only = server.models.only
    if only is None:
        ready = [each.name for each in server.models.index() if each.state == "READY"]
        yield f"serving {', '.join(ready) or 'no model'} at {_urls(server)}"
    else:
        yield f"serving {only.title} at {_urls(server)} ({only.description}{_gates(only)})"
    if server.options.ui:
        asks = "" if server.options.access.tokens is None else " (it asks for a token)"
        yield f"watch it at {server.url}/ui/{asks}"


def _notes(server: Server) -> Iterator[str]:
    """Yield warnings about things that may surprise the user."""
    host, access = server.options.host, server.options.access
    given = {"--tls-cert": access.tls_cert, "--tokens": access.tokens}
    lacks = [option for option, value in given.items() if value is None]
    if lacks and host not in ("localhost", "::1") and not host.startswith("127."):
        yield f"it listens to other machines without {' and '.join(lacks)}"
    if server.models.only is not None:
        yield from server.models.only.notes
        return
    for each in server.models.index():
        if each.state != "READY" and each.reason != "not loaded":
            yield f"{' '.join((each.name, each.version)).strip()} is not served: {each.reason}"


def _urls(server: Server) -> str:
    both = server.url if server.grpc_url is None else f"{server.url} and {server.grpc_url}"
    return both if server.metrics_url is None else f"{both}, metrics at {server.metrics_url}"


def _gates(served: ServedVersion) -> str:
    """Return in words which answers may differ from the model's."""
    differ = served.predictor.differ
    budget = "" if differ is None else f"; {100 * differ:g} % of all answers may differ"
    return budget + "".join(
        f"; {source}: {gate.agreement:g} agree, {gate.coverage:.0%} of queries"
        for source, gate in served.model.gates.items()
    )

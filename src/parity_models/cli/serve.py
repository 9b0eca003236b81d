"""parm serve: a bundle behind the Open Inference Protocol."""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import uvloop

from parity_models.cli.code import AllowCode
from parity_models.cli.config_file import ConfigPath, configured_command_for
from parity_models.cli.extensions import Declared, given_options, spelling_in
from parity_models.cli.policy import KINDS, DispatchName, PolicyName
from parity_models.cli.print_config import config_in_force
from parity_models.cli.serving import (
    DefaultPrediction,
    EngineName,
    Faults,
    chosen_engine,
    options_of_server,
)
from parity_models.cli.signals import on_signals
from parity_models.errors import UserError
from parity_models.models.bundle import open_bundle
from parity_models.serving.access import Access
from parity_models.serving.engines import ENGINES
from parity_models.serving.garbage import freeze_modules
from parity_models.serving.limits import Limits
from parity_models.serving.logs import Logging, set_up
from parity_models.serving.server import ServeOptions, Server

if TYPE_CHECKING:
    from parity_models.serving.repository.repository import RepositoryServer

COMMAND = configured_command_for(
    serve=Declared(ServeOptions),
    limits=Declared(Limits),
    access=Declared(Access),
    logging=Declared(Logging),
    engine=ENGINES,
    **KINDS,
)


BundleArgument = Annotated[
    Path | None,
    typer.Argument(help="The bundle's folder.", metavar="BUNDLE", show_default=False),
]
BundleOption = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        envvar="PARM_BUNDLE",
        help="The bundle's folder, as an option.",
        metavar="BUNDLE",
        hidden=True,
    ),
]
RepositoryOption = Annotated[
    Path | None,
    typer.Option(
        "--repository",
        help="Serve several models instead: a folder of bundles, NAME/VERSION, that can be loaded "
        "and unloaded over the protocol.",
        metavar="DIR",
        show_default=False,
    ),
]
PrintConfig = Annotated[
    bool,
    typer.Option(
        "--print-config",
        help="Print the options in force as such a file, with where each was given, and end.",
    ),
]


def serve(
    context: typer.Context,
    bundle: BundleArgument = None,
    bundle_option: BundleOption = None,
    repository: RepositoryOption = None,
    engine: EngineName = None,
    policy: PolicyName = None,
    dispatch: DispatchName = None,
    default_prediction: DefaultPrediction = None,
    faults: Faults = None,
    allow_code: AllowCode = None,
    config: ConfigPath = None,
    print_config: PrintConfig = False,
) -> None:
    """Serve a bundle, or a folder of them, over the Open Inference Protocol, with worker processes
    on this machine, on a Ray cluster, or in front of servers that run its models already.

    Ready when GET /v2/health/ready says so and the URL is printed. Metrics for Prometheus are at
    /metrics. SIGTERM or Ctrl-C: ready says no, after --shutdown-delay no more requests are taken,
    those in flight are answered, and everything stops; a second one does not wait for that.
    """
    logging = Logging(**given_options(context, "logging"))
    set_up(logging)
    folder = _one(context, bundle, bundle_option, repository)
    opened = None if folder is None else open_bundle(folder, allow_code or ())
    options = options_of_server(
        context,
        opened,
        engine=chosen_engine(context, engine),
        policy=policy,
        dispatch=dispatch,
        default_prediction=default_prediction,
        faults=faults,
    )
    server: Server | RepositoryServer | None = None
    if repository is not None:
        server = _of_repository(repository, options, allow_code or (), logging)
    elif opened is not None:
        server = Server(opened, options, _traces(logging))
    if print_config:
        named = {
            "bundle": folder,
            "repository": repository,
            "allow_code": allow_code,
            "engine": engine,
            "policy": policy,
            "dispatch": dispatch,
            "default_prediction": default_prediction,
            "faults": faults,
        }
        typer.echo(config_in_force(context, options, named), nl=False)
    elif server is not None:
        _run(server)


def _run(server: "Server | RepositoryServer") -> None:
    try:
        uvloop.run(_serve(server))
    except asyncio.CancelledError:
        raise typer.Exit(130) from None


def _of_repository(
    folder: Path, options: ServeOptions, allow_code: Collection[str], logging: Logging
) -> "RepositoryServer":
    # Imported here: a server of one bundle does not need it.
    from parity_models.serving.repository.repository import RepositoryServer

    return RepositoryServer(folder, options, allow_code, _traces(logging))


def _traces(logging: Logging) -> Any:
    """Where spans go, if there are to be any."""
    if not logging.traces:
        return None
    # Only now: whoever wants no spans need not have what makes them.
    from parity_models.serving.tracing import exporting

    return exporting()


async def _serve(server: "Server | RepositoryServer") -> None:
    asked_to_stop = asyncio.Event()
    this = asyncio.current_task()
    assert this is not None

    def on_signal() -> None:
        if asked_to_stop.is_set():
            this.cancel()
        asked_to_stop.set()

    with on_signals(on_signal):
        await _serve_until(asked_to_stop, server)


async def _serve_until(asked_to_stop: asyncio.Event, server: "Server | RepositoryServer") -> None:
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(asked_to_stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
        return
    await starting
    freeze_modules()
    try:
        for line in _said(server):
            _tell(line)
        for note in _notes(server):
            _tell(f"note: {note}", err=True)
        if isinstance(server, Server):
            server.begin_faults()
        await stopping
    finally:
        await server.stop()


def _tell(line: str, *, err: bool = False) -> None:
    """Print it, if it can be: that nobody reads, or a disk is full, is no reason not to serve."""
    with suppress(OSError):
        typer.echo(line, err=err)


def _said(server: "Server | RepositoryServer") -> Iterator[str]:
    """What a server that is ready says of itself."""
    if not isinstance(server, Server):
        names = ", ".join(server.repository.names) or "no model"
        yield f"serving {names} at {_urls(server)}"
    else:
        yield (
            f"serving {server.model.name} at {_urls(server)} (policy {server.policy}; instances: "
            f"{_instances(server)}{_gates(server)})"
        )
    if server.watched:
        asks = " (it asks for a token)" if server.takes_tokens else ""
        yield f"watch it at {server.url}/ui/{asks}"


def _notes(server: "Server | RepositoryServer") -> Iterator[str]:
    """What a user may not expect."""
    if isinstance(server, Server):
        yield from server.notes
        return
    for each in server.repository.index():
        if each.state != "READY" and each.reason != "not loaded":
            yield f"{each.name} {each.version} is not served: {each.reason}"


def _urls(server: "Server | RepositoryServer") -> str:
    both = server.url if server.grpc_url is None else f"{server.url} and {server.grpc_url}"
    return both if server.metrics_url is None else f"{both}, metrics at {server.metrics_url}"


def _instances(server: Server) -> str:
    alike = Counter(" + ".join(sorted(roles)) for roles in server.roles)
    return ", ".join(f"{count} of {roles}" for roles, count in alike.items())


def _gates(server: Server) -> str:
    return "".join(
        f"; {source}: {gate.agreement:g} agree, {gate.coverage:.0%} of queries"
        for source, gate in server.model.gates.items()
    )


def _one(
    context: typer.Context, bundle: Path | None, option: Path | None, repository: Path | None
) -> Path | None:
    """The one bundle; the argument goes before a file's and a variable's. None: a repository."""
    if repository is not None:
        if bundle is not None or option is not None:
            raise UserError("give a BUNDLE or --repository, not both")
        return None
    if bundle is not None and spelling_in(context)("bundle_option") != "--bundle-option":
        return bundle
    given = [each for each in (bundle, option) if each is not None]
    if len(given) != 1:
        raise UserError(
            "give one BUNDLE, such as the folder that parm parity wrote, or --repository DIR"
        )
    return given[0]

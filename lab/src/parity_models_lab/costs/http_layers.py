"""What an HTTP layer costs: our own, and our ASGI application on uvicorn and on granian.

One process has one frontend with its workers, and all three listen in front of it, each on a port
of its own and all on one event loop (uvloop; granian's sockets are on a thread of its own, as
always). They are asked in turns, so nothing differs but the way from the socket to the service.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import msgspec

from parity_models.errors import UserError, install
from parity_models.load.child import commands, tell
from parity_models.load.served import ServeSpec, main, served
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import NoRedundancy
from parity_models.serving.garbage import freeze_modules
from parity_models.serving.http.listening import listen
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import OneModel
from parity_models.serving.rest.asgi import AsgiApp, rest_app
from parity_models.serving.server import ServeOptions, Server
from parity_models_lab.costs.asked import Asked, generated_bundle
from parity_models_lab.costs.throughput import (
    ROUNDS,
    SECONDS,
    Throughput,
    measure_throughput,
)

OURS, UVICORN, GRANIAN = LAYERS = "ours", "uvicorn", "granian"
LOCALHOST = "127.0.0.1"


class HttpLayersReport(msgspec.Struct, frozen=True):
    """What each layer carried for each number of clients: `layers` has a name for each item of
    `throughput`. `versions`: of uvicorn and granian."""

    policy: str
    tensor_bytes: int
    versions: dict[str, str]
    layers: tuple[str, ...]
    throughput: tuple[Throughput, ...]


async def measure_http_layers(
    bundle: Bundle | None = None,
    policy: str = NoRedundancy.name,
    *,
    instances: int = 1,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> HttpLayersReport:
    """Serve `bundle`, or a generated MLP, behind all three layers, and ask them in turns, for so
    many `seconds` each.

    Raises UserError where uvicorn or granian is missing, LoadError for a layer that refuses.
    """
    versions = _versions()
    with generated_bundle(bundle) as bundle:
        asked = Asked.of(bundle)
        options = ServeOptions(policy=PolicyChoice(policy), instances=instances, port=0)
        async with served(bundle.path, options, module=__name__) as server:
            urls = dict(zip(server.url.split(), LAYERS, strict=True))
            # Nothing else is due on this event loop, so the measurement may block it.
            throughput = measure_throughput(
                [asked.measured(server, url) for url in urls], rounds=rounds, seconds=seconds
            )
    return HttpLayersReport(
        policy,
        asked.row.nbytes,
        versions,
        tuple(urls[each.url] for each in throughput),
        tuple(throughput),
    )


def _versions() -> dict[str, str]:
    try:
        import granian
        import uvicorn
    except ImportError as error:
        raise UserError(f"{error.name} is missing; {install('bench')}") from error
    return {UVICORN: uvicorn.__version__, GRANIAN: granian.__version__}


@asynccontextmanager
async def _on_uvicorn(app: AsgiApp) -> AsyncIterator[str]:
    """The URL of the application on uvicorn, with its parser in C."""
    import uvicorn

    config = uvicorn.Config(app, http="httptools", lifespan="off", log_level="critical")
    config.access_log = False
    server = uvicorn.Server(config)
    with closing(listen(LOCALHOST, 0)) as bound:
        serving = asyncio.create_task(server.serve([bound]))
        yield f"http://{LOCALHOST}:{bound.getsockname()[1]}"
        server.should_exit = True
        await serving


@asynccontextmanager
async def _on_granian(app: AsgiApp) -> AsyncIterator[str]:
    """The URL of the application on granian, with HTTP/1.1 alone."""
    from granian.constants import HTTPModes, Interfaces
    from granian.server.embed import Server as Granian

    with socket.socket() as probe:  # granian binds for itself, and does not say where
        probe.bind((LOCALHOST, 0))
        port = probe.getsockname()[1]
    server = Granian(
        app,
        port=port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        websockets=False,
        log_enabled=False,
    )
    serving = asyncio.create_task(server.serve())
    yield f"http://{LOCALHOST}:{port}"
    server.stop()  # type: ignore[no-untyped-call]  # granian declares no types
    await serving


async def _serve(spec: ServeSpec) -> None:
    bundle = open_bundle(Path(spec.bundle))
    async with Server(bundle, spec.options) as server:
        app = rest_app(OneModel(server.frontend, server.model), Metrics(bundle.digest))
        async with _on_uvicorn(app) as uvicorn, _on_granian(app) as granian:
            freeze_modules()
            tell(f"{server.url} {uvicorn} {granian}")
            await (await commands()).read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], _serve))

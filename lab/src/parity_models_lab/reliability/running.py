"""A server under test that is up, the clients that ask it, and the load that they offer."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from parity_models_lab.reliability.grpc_client import GrpcClients
from parity_models_lab.reliability.http_client import HttpClients
from parity_models_lab.reliability.ledger import Ledger
from parity_models_lab.reliability.servers import TestedServer, metrics, total
from parity_models_lab.reliability.traffic import Traffic


@dataclass(frozen=True)
class Running:
    """The server, and clients of it; `grpc` is None where it does not speak gRPC."""

    server: TestedServer
    http: HttpClients
    grpc: GrpcClients | None

    def traffic(self, ledger: Ledger, *, rate: float, seed: int) -> Traffic:
        """Load of `rate` requests a second, drawn from `seed`; each is entered in the ledger."""
        server = self.server
        return Traffic(
            server.model,
            self.http,
            self.grpc,
            ledger,
            rate=rate,
            seed=seed,
            deadline=server.deadline,
        )

    async def repairs(self) -> float | None:
        """The server's parm_repairs_total; None if it has none."""
        found = await metrics(self.http)
        known = any(name.startswith("parm_repairs_total") for name in found)
        return total(found, "parm_repairs_total") if known else None


@asynccontextmanager
async def running(server: TestedServer) -> AsyncIterator[Running]:
    """Start the server; it is up, and its instances are honest again in the end, while the context
    lasts. Raises ServingError if it does not start."""
    await server.start()
    # To look for garbage in all that was imported takes a tenth of a second, in which nothing is
    # sent.
    gc.freeze()
    try:
        address = server.front.grpc_address
        clients = Running(
            server, HttpClients(server.url), GrpcClients(address) if address else None
        )
        try:
            yield clients
        finally:
            clients.http.close()
            if clients.grpc is not None:
                await clients.grpc.close()
    finally:
        gc.unfreeze()
        server.end_lies()
        await server.stop()


@asynccontextmanager
async def offered(traffic: Traffic) -> AsyncIterator[None]:
    """Requests are sent while the context lasts; all have ended when it is left."""
    over = asyncio.Event()
    sending = asyncio.create_task(traffic.run(over))
    try:
        yield
    finally:
        over.set()
        await sending
    await traffic.settle()

"""The server of gRPC: a service and its transport.

Two transports bring the same calls. The one over ngh2 costs a sixth of the other, and runs where
ngh2 is installed (the extra `grpc`). The one over grpcio, which Google keeps, takes its place where
only grpcio is (the extra `grpcio`).
"""

from parity_models.errors import needs
from parity_models.serving.access import Certificate, Clients
from parity_models.serving.grpc.service import Service
from parity_models.serving.http import GRACE
from parity_models.serving.inference import Inference
from parity_models.serving.limits import Limits

try:
    from parity_models.serving.grpc.over_ngh2 import Transport
except ModuleNotFoundError:
    with needs("grpc", "gRPC"):
        from parity_models.serving.grpc.over_grpcio import (  # type: ignore[assignment]
            Transport,
        )


class GrpcServer:
    """Serves the models of `inference`, within `limits`.

    Only `clients` may ask for more than the server's health and the protocol's messages. With a
    `certificate`, over TLS; with `reuse_port`, another process may listen on the same port. Make it
    on the event loop that it is to run on; start and stop it once.
    """

    def __init__(
        self,
        inference: Inference,
        limits: Limits,
        *,
        clients: Clients = Clients(),
        certificate: Certificate | None = None,
        reuse_port: bool = False,
    ) -> None:
        self._service = Service(inference, limits, clients)
        self._transport = Transport(self._service, certificate=certificate, reuse_port=reuse_port)

    async def start(self, host: str, port: int) -> str:
        """Listen there (port 0: any that is free); return the URL, as grpc://127.0.0.1:8001, or
        grpcs:// over TLS.

        Raises UserError if that fails.
        """
        return await self._transport.start(host, port)

    async def stop(self, grace: float = GRACE) -> None:
        """Answer the calls in flight, for `grace` seconds, and close."""
        await self._service.stop()
        await self._transport.stop(grace)

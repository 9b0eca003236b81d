"""Clients of upstreams, by their protocols and the schemes of their URLs, and whom they trust."""

import ssl
from pathlib import Path

import grpc

from parity_models.errors import UserError
from parity_models.serving.remote.grpc import GrpcClient
from parity_models.serving.remote.rest import RestClient
from parity_models.serving.remote.upstream import (
    Connect,
    PredictionProtocol,
    Upstream,
    UpstreamClient,
)
from parity_models.serving.remote.v1 import V1Client


def trust(ca_file: Path | None) -> tuple[ssl.SSLContext, grpc.ChannelCredentials]:
    """What https and grpcs take to know a server by; None: the system's certificates.

    Raises UserError for a file that has no certificates.
    """
    try:
        tls = ssl.create_default_context(cafile=ca_file)
        certificates = None if ca_file is None else ca_file.read_bytes()
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"cannot read certificates from {ca_file}: {error}; give a PEM file"
        ) from error
    return tls, grpc.ssl_channel_credentials(certificates)


def connecting(ca_file: Path | None) -> Connect:
    """What makes connections to upstreams, trusting as `trust` says, whose errors it raises."""
    tls, credentials = trust(ca_file)
    return lambda upstream, max_answer: client_of(upstream, tls, credentials, max_answer)


def client_of(
    upstream: Upstream, tls: ssl.SSLContext, credentials: grpc.ChannelCredentials, max_answer: int
) -> UpstreamClient:
    """Connections to the upstream, which answers with up to `max_answer` bytes."""
    scheme, address = upstream.url.split("://")
    if upstream.protocol is PredictionProtocol.V1:
        return V1Client(upstream.url, tls)
    if scheme in ("http", "https"):
        return RestClient(upstream.url, tls)
    return GrpcClient(address, credentials if scheme == "grpcs" else None, max_answer)

"""Fixtures of the tests of gRPC."""

import pytest

import grpc_served
from parity_models.serving.grpc import over_grpcio, over_ngh2

TRANSPORTS = {"ngh2": over_ngh2.GrpcServer, "grpcio": over_grpcio.GrpcServer}


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Servers of this process have each transport in turn; returns its name."""
    monkeypatch.setattr(grpc_served, "GrpcServer", TRANSPORTS[request.param])
    return str(request.param)

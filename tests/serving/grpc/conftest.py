"""Fixtures of the tests of gRPC."""

import pytest

from parity_models.serving.grpc import grpc_server, over_grpcio, over_ngh2

TRANSPORTS = {"ngh2": over_ngh2.Transport, "grpcio": over_grpcio.Transport}


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Servers of this process have each transport in turn; returns its name."""
    monkeypatch.setattr(grpc_server, "Transport", TRANSPORTS[request.param])
    return str(request.param)

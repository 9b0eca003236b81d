"""The server of gRPC, with one of two transports, which behave alike.

The one over ngh2 costs a fraction of the other, and runs where ngh2 is installed (the extra
`grpc`). grpcio, which Google keeps, takes its place where only grpcio is (the extra `grpcio`).
"""

from parity_models.errors import needs

try:
    from parity_models.serving.grpc.over_ngh2 import GrpcServer
except ModuleNotFoundError:
    with needs("grpc", "gRPC"):
        # Either is a Service with the same methods, which mypy takes for two types of one name.
        from parity_models.serving.grpc.over_grpcio import (  # type: ignore[assignment]
            GrpcServer,
        )

__all__ = ["GrpcServer"]

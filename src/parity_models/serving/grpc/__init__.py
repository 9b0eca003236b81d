"""The Open Inference Protocol over gRPC."""

import os
from importlib import import_module

from parity_models.errors import needs

# Workers are other programs, so no forked process needs gRPC: without this it would write
# a line to stderr for each that starts. grpcio reads it when it is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

with needs("grpc", "gRPC"):
    for _module in ("google.protobuf", "google.rpc"):
        import_module(_module)

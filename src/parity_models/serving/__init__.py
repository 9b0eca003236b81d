"""Serving: the frontend, engines, and the servers of the protocol."""

import os

# Workers are forks of this process, for a moment. gRPC's fork handlers, meant for children that use
# gRPC, end one in ten of them with a segmentation fault. gRPC reads this when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

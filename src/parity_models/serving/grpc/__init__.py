"""The Open Inference Protocol over gRPC."""

import os

# Workers are other programs, so nobody needs gRPC in a forked process: without this it would write
# a line to stderr for each that starts. gRPC reads it when it is imported first.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

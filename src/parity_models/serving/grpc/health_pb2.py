"""The messages of health.proto, by their names (see health_pb2.pyi)."""

from parity_models.serving.grpc.protos import messages_of

globals().update(messages_of("health.proto"))

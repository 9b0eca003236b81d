"""The messages of reflection.proto, by their names (see reflection_pb2.pyi)."""

from parity_models.serving.grpc.protos import messages_of

globals().update(messages_of("reflection.proto"))

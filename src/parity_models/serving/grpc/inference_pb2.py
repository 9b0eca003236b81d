"""The messages of inference.proto, by their names (see inference_pb2.pyi)."""

from parity_models.serving.grpc.protos import messages_of

globals().update(messages_of("inference.proto"))

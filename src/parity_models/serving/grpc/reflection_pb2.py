"""The messages of reflection.proto, by their names (see reflection_pb2.pyi)."""

from google.protobuf.message_factory import GetMessageClass

from parity_models.serving.grpc import inference_pb2

DESCRIPTOR = inference_pb2.DESCRIPTOR.pool.FindFileByName("reflection.proto")

globals().update(
    {name: GetMessageClass(message) for name, message in DESCRIPTOR.message_types_by_name.items()}
)

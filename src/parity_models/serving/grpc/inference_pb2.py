"""The messages of inference.proto, by their names (see inference_pb2.pyi).

They live, with those of the other .proto files here, in a descriptor pool of their own: clients
bring the same protocols under the same names to protobuf's default pool, which holds a name once a
process.
"""

from importlib.resources import files

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_pool = DescriptorPool()
for _file in FileDescriptorSet.FromString(
    (files(__package__) / "inference.binpb").read_bytes()
).file:
    _pool.Add(_file)

DESCRIPTOR = _pool.FindFileByName("inference.proto")

globals().update(
    {name: GetMessageClass(message) for name, message in DESCRIPTOR.message_types_by_name.items()}
)

"""The messages of the .proto files of this folder, from their descriptors.

They live in a descriptor pool of their own: clients bring the same protocols under the same names
to protobuf's default pool, which holds a name once a process.
"""

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

POOL = DescriptorPool()
"""The descriptors of all files."""

for _file in FileDescriptorSet.FromString(
    (files(__package__) / "inference.binpb").read_bytes()
).file:
    POOL.Add(_file)


def messages_of(name: str) -> dict[str, Any]:
    """Return the messages of a file, by their names, and its DESCRIPTOR."""
    file = POOL.FindFileByName(name)
    messages = {each: GetMessageClass(of) for each, of in file.message_types_by_name.items()}
    return {"DESCRIPTOR": file, **messages}

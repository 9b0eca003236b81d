"""The messages of the .proto files here, by their names, which `make protos` compiles.

They live in a descriptor pool of their own: clients bring the same protocols under the same names
to protobuf's default pool, which holds a name once a process.
"""

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

POOL = DescriptorPool()
for _file in FileDescriptorSet.FromString((files(__package__) / "protos.binpb").read_bytes()).file:
    POOL.Add(_file)
    for _name, _message in POOL.FindFileByName(_file.name).message_types_by_name.items():
        globals()[_name] = GetMessageClass(_message)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

"""The Open Inference Protocol's messages in JSON, for those who write and those who read them.

https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md, and
Triton's docs/protocol/extension_binary_data.md.
"""

from typing import Annotated, Any

from msgspec import Meta, Raw, Struct

HEADER_LENGTH = "inference-header-content-length"
"""The header with the length of a JSON object that binary data follows."""

SOFTWARE = "parity-models"
"""What servers of this software call themselves."""

BINARY = "binary_tensor_data"
"""What servers call the extension that tensors are sent by as binary data."""


NO_DATA = Raw()
"""The data of a tensor that has none in the JSON."""


class ServerMetadata(Struct, frozen=True, omit_defaults=True):
    """What a server says of itself; this software's ones also, which bundle they serve, and which
    instances were found to answer wrongly, the latest last."""

    name: str | None = None
    version: str | None = None
    extensions: tuple[str, ...] = ()
    bundle_digest: str | None = None
    model_sha256: str | None = None
    quarantined_instances: tuple[str, ...] | None = None


class TensorMetadata(Struct, frozen=True):
    """A tensor of a model: `shape` with a first axis of -1, for any number of rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class GateMetadata(Struct, frozen=True):
    """How often a stand-in's answers should say what the model says, and the share of queries that
    it may answer, by calibration."""

    agreement: float
    coverage: float


class ModelMetadata(Struct, frozen=True, omit_defaults=True):
    """What a server says of a model; KServe's own servers name no versions.

    `bundle_digest` and `model_sha256`, the digest of the bundle's manifest and the hash of the
    model's file, are told by this software's servers, and so are the `gates` of stand-ins, by the
    source of answers, the `exact_outputs`, which no stand-in gives, and the instances that were
    found to answer wrongly, the latest last.
    """

    name: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    versions: tuple[str, ...] | None = None
    platform: str | None = None
    bundle_digest: str | None = None
    model_sha256: str | None = None
    gates: dict[str, GateMetadata] = {}
    exact_outputs: tuple[str, ...] = ()
    quarantined_instances: tuple[str, ...] = ()


class TensorParameters(Struct, omit_defaults=True):
    """Where a tensor's values are, if not in the JSON."""

    binary_data_size: int | None = None
    shared_memory_region: str | None = None


class TensorMessage(Struct, omit_defaults=True):
    """A tensor of a request or of a response; `data` is JSON, flat or nested, row-major."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: TensorParameters | None = None
    data: Raw = NO_DATA


class OutputParameters(Struct, omit_defaults=True):
    """How an output is to be written."""

    binary_data: bool | None = None
    shared_memory_region: str | None = None
    classification: int | None = None


class RequestedOutput(Struct, omit_defaults=True):
    """An output that a request asks for."""

    name: str
    parameters: OutputParameters | None = None


class RequestParameters(Struct, omit_defaults=True):
    """What else a request asks for; `timeout` in microseconds, as Triton has it."""

    timeout: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    binary_data_output: bool | None = None
    redundancy: Raw = NO_DATA
    tenant: Raw = NO_DATA


class RequestMessage(Struct, omit_defaults=True):
    """An infer request's JSON object."""

    inputs: tuple[TensorMessage, ...]
    id: str | None = None
    parameters: RequestParameters | None = None
    outputs: tuple[RequestedOutput, ...] | None = None


class ResponseMessage(Struct, omit_defaults=True, kw_only=True):
    """An infer response's JSON object."""

    model_name: str | None = None
    model_version: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: tuple[TensorMessage, ...]
    id: str | None = None

"""gRPC clients of the Open Inference Protocol work unchanged, with REST's errors."""

import os
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.descriptor_pool import DescriptorPool
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from parity_models import __version__
from parity_models.bundle.bundle import open_bundle
from served import INPUTS, OUTPUTS, ServerProcess, predictions, queries
from triton_requests import code_of, grpc_input

pytestmark = pytest.mark.slow

SERVICE = "inference.GRPCInferenceService"


@pytest.fixture(scope="module", params=["ngh2", "grpcio"])
def server(
    request: pytest.FixtureRequest, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server with each transport in turn: the second where ngh2 is not installed."""
    arguments = ("--grpc-port", "0", "--max-body", "2", "--max-queue", "300")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "grpcio":
            hidden = tmp_path_factory.mktemp("hidden")
            (hidden / "ngh2.py").write_text("raise ModuleNotFoundError(name='ngh2')\n")
            patch.setenv("PYTHONPATH", os.pathsep.join([str(hidden), *sys.path]))
        process = ServerProcess(str(bundle), *arguments)
    with process:
        yield process
        assert process.process.poll() is None
        assert process.metric("parm_instance_restarts_total") == 0


@pytest.fixture
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_address) as client:
        yield client


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield channel


# What clients ask


def test_tritonclient_sees_a_live_and_ready_model(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("model")
    assert client.is_model_ready("model", "1")
    for name, version in [("other", ""), ("model", "2")]:
        with pytest.raises(InferenceServerException, match=r"this server has|it has version"):
            client.is_model_ready(name, version)


def test_tritonclient_reads_the_metadata(client: triton.InferenceServerClient) -> None:
    assert client.get_server_metadata().version == __version__
    for version in ("", "1"):
        about = client.get_model_metadata("model", version, as_json=True)
        assert about == {
            "name": "model",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "input", "datatype": "FP32", "shape": ["-1", str(INPUTS)]}],
            "outputs": [{"name": "output", "datatype": "FP32", "shape": ["-1", str(OUTPUTS)]}],
        }


def bytes_method(channel: grpc.Channel, name: str) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
    return channel.unary_unary(f"/{SERVICE}/{name}")


def test_metadata_names_the_bundle_and_the_model_s_file(
    channel: grpc.Channel, bundle: Path
) -> None:
    request = service_pb2.ModelMetadataRequest(name="model").SerializeToString()
    for method, message in (("ModelMetadata", request), ("ServerMetadata", b"")):
        _, call = bytes_method(channel, method).with_call(message)
        said = dict(call.trailing_metadata())
        assert said["bundle-digest"] == open_bundle(bundle).digest
        deployed = (bundle / "deployed.onnx").read_bytes()
        assert said["model-sha256"] == sha256(deployed).hexdigest()
        assert "quarantined-instances" not in said


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("outputs", [None, [triton.InferRequestedOutput("output")]])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient_infers(
    client: triton.InferenceServerClient, rows: int, outputs: Any, compression: str | None
) -> None:
    batch = queries(rows)
    result = client.infer(
        "model",
        [grpc_input(batch)],
        outputs=outputs,
        request_id="request 7",
        compression_algorithm=compression,
        sequence_id=5,
        priority=2,
        timeout=5_000_000,
        parameters={"anything": 1},
    )
    output = result.as_numpy("output")
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, predictions(batch), rtol=1e-4, atol=1e-6)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("request 7", "model", "1")
    sources = response.parameters["source"].string_param.split(",")
    assert len(sources) == rows
    assert set(sources) <= {"model", "reconstruction"}


def test_typed_contents_are_answered_with_typed_contents(channel: grpc.Channel) -> None:
    batch = queries(2)
    request = service_pb2.ModelInferRequest(model_name="model")
    tensor = request.inputs.add(name="input", datatype="FP32", shape=batch.shape)
    tensor.contents.fp32_contents.extend(batch.ravel().tolist())
    request.parameters["redundancy"].string_param = "exact"
    infer = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        service_pb2.ModelInferRequest.SerializeToString,
        service_pb2.ModelInferResponse.FromString,
    )
    response, call = infer.with_call(request)
    assert not response.raw_output_contents
    said = dict(call.trailing_metadata())
    assert (said["x-parm-source"], said["x-parm-agreement"]) == ("model", "1")
    values = np.array(response.outputs[0].contents.fp32_contents).reshape(2, OUTPUTS)
    np.testing.assert_allclose(values, predictions(batch), rtol=1e-4, atol=1e-6)


# The standard services


def test_health_and_reflection_are_what_grpc_tools_expect(channel: grpc.Channel) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs name no method
    for service in ("", SERVICE):
        request = health_pb2.HealthCheckRequest(service=service)
        assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
    other = health_pb2.HealthCheckRequest(service="other")
    with pytest.raises(grpc.RpcError) as error:
        health.Check(other)
    assert error.value.code() is StatusCode.NOT_FOUND

    reflected = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(reflected.get_services())
    described = DescriptorPool(reflected).FindServiceByName(SERVICE)
    fields = described.FindMethodByName("ModelInfer").input_type.fields_by_name
    assert "raw_input_contents" in fields


# What is wrong


@pytest.mark.parametrize(
    ("model", "tensor", "code", "reason"),
    [
        ("resnet", grpc_input(queries(1)), "NOT_FOUND", "no model is called 'resnet'"),
        ("r" * 10_000, grpc_input(queries(1)), "NOT_FOUND", "no model is called 'rrr"),
        ("model", grpc_input(queries(1)[:, :5]), "INVALID_ARGUMENT", r"got \[1, 5\]"),
        ("model", grpc_input(queries(301)[:, :784]), "RESOURCE_EXHAUSTED", "301 rows"),
        ("model", grpc_input(np.zeros((300, 1000), np.float32)), "RESOURCE_EXHAUSTED", "larger"),
    ],
)
def test_tritonclient_tells_the_code_and_the_reason(
    client: triton.InferenceServerClient,
    model: str,
    tensor: triton.InferInput,
    code: str,
    reason: str,
) -> None:
    with pytest.raises(InferenceServerException, match=reason) as error:
        client.infer(model, [tensor])
    assert code_of(error) == code


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_message_over_the_limit_is_refused(
    channel: grpc.Channel, algorithm: grpc.Compression
) -> None:
    with pytest.raises(grpc.RpcError) as error:
        bytes_method(channel, "ModelInfer")(bytes(100 * 2**20), compression=algorithm)
    assert error.value.code() is StatusCode.RESOURCE_EXHAUSTED

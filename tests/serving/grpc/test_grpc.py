"""gRPC clients of the Open Inference Protocol work unchanged, with REST's errors."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.descriptor_pool import DescriptorPool
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from parity_models import __version__
from parity_models.errors import UserError
from parity_models.models.bundle import open_bundle
from parity_models.serving.server import ServeOptions, Server
from served import (
    INPUTS,
    OUTPUTS,
    ServerProcess,
    nothing_left_of,
    predictions,
    queries,
    until,
    write_linear_bundle,
)

SERVICE = "inference.GRPCInferenceService"
SLOW = json.dumps({"service_time": {"type": "constant", "seconds": 0.5}})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[ServerProcess]:
    arguments = ("--grpc-port", "0", "--max-body", "1", "--max-queue", "300")
    with ServerProcess(str(bundle), *arguments) as process:
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


def triton_input(rows: NDArray[np.float32]) -> triton.InferInput:
    return triton.InferInput("input", list(rows.shape), "FP32").set_data_from_numpy(rows)


def infer(address: str, seed: int, rows: int = 1, **more: Any) -> triton.InferResult:
    with triton.InferenceServerClient(address) as client:
        return client.infer("model", [triton_input(queries(rows, seed))], **more)


def code_of(error: pytest.ExceptionInfo[InferenceServerException]) -> str:
    return str(error.value.status()).removeprefix("StatusCode.")


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


def test_metadata_names_the_bundle(channel: grpc.Channel, bundle: Path) -> None:
    digest = open_bundle(bundle).digest
    for method in ("ServerMetadata", "ModelMetadata"):
        ask = bytes_method(channel, method)
        request = service_pb2.ModelMetadataRequest(name="model").SerializeToString()
        _, call = ask.with_call(request if method == "ModelMetadata" else b"")
        assert dict(call.trailing_metadata())["bundle-digest"] == digest


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("outputs", [None, [triton.InferRequestedOutput("output")]])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient_infers(
    client: triton.InferenceServerClient, rows: int, outputs: Any, compression: str | None
) -> None:
    batch = queries(rows)
    result = client.infer(
        "model",
        [triton_input(batch)],
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
    infer = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        service_pb2.ModelInferRequest.SerializeToString,
        service_pb2.ModelInferResponse.FromString,
    )
    response = infer(request)
    assert not response.raw_output_contents
    values = np.array(response.outputs[0].contents.fp32_contents).reshape(2, OUTPUTS)
    np.testing.assert_allclose(values, predictions(batch), rtol=1e-4, atol=1e-6)


def test_rest_and_grpc_give_the_same_answer(
    server: ServerProcess, client: triton.InferenceServerClient
) -> None:
    batch = queries(5)
    over_grpc = client.infer("model", [triton_input(batch)]).as_numpy("output")
    tensor = {
        "name": "input",
        "shape": batch.shape,
        "datatype": "FP32",
        "data": batch.ravel().tolist(),
    }
    answer = httpx.post(f"{server.url}/v2/models/model/infer", json={"inputs": [tensor]}).json()
    np.testing.assert_allclose(
        over_grpc.ravel(), answer["outputs"][0]["data"], rtol=1e-4, atol=1e-6
    )


def test_requests_over_grpc_count_by_the_status_that_rest_would_give(
    server: ServerProcess, client: triton.InferenceServerClient
) -> None:
    def count(status: int) -> float:
        return server.metric(rf'parm_requests_total\{{code="{status}"\}}')

    before = count(200), count(404)
    client.infer("model", [triton_input(queries(1))])
    with pytest.raises(InferenceServerException):
        client.infer("other", [triton_input(queries(1))])
    assert (count(200), count(404)) == (before[0] + 1, before[1] + 1)


# The standard services


def test_health_and_reflection_are_what_grpc_tools_expect(channel: grpc.Channel) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs name no method
    for service in ("", SERVICE):
        request = health_pb2.HealthCheckRequest(service=service)
        assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(request)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
    other = health_pb2.HealthCheckRequest(service="other")
    with pytest.raises(grpc.RpcError) as error:
        health.Check(other)
    assert error.value.code() is StatusCode.NOT_FOUND
    assert next(health.Watch(other)).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

    reflected = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(reflected.get_services())
    described = DescriptorPool(reflected).FindServiceByName(SERVICE)
    fields = described.FindMethodByName("ModelInfer").input_type.fields_by_name
    assert "raw_input_contents" in fields


# What is wrong


@pytest.mark.parametrize(
    ("model", "tensor", "code", "reason"),
    [
        ("resnet", triton_input(queries(1)), "NOT_FOUND", "no model is called 'resnet'"),
        ("r" * 10_000, triton_input(queries(1)), "NOT_FOUND", "no model is called 'rrr"),
        ("r" * 100_000, triton_input(queries(1)), "RESOURCE_EXHAUSTED", "more than 65536 bytes"),
        ("model", triton_input(queries(1)[:, :5]), "INVALID_ARGUMENT", r"got \[1, 5\]"),
        ("model", triton_input(queries(301)[:, :784]), "RESOURCE_EXHAUSTED", "301 rows"),
        ("model", triton_input(np.zeros((300, 1000), np.float32)), "RESOURCE_EXHAUSTED", "larger"),
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
def test_what_decompresses_beyond_the_limit_is_refused(
    channel: grpc.Channel, algorithm: grpc.Compression
) -> None:
    with pytest.raises(grpc.RpcError) as error:
        bytes_method(channel, "ModelInfer")(bytes(100 * 2**20), compression=algorithm)
    assert error.value.code() is StatusCode.RESOURCE_EXHAUSTED


def test_what_cannot_be_read_is_refused(channel: grpc.Channel) -> None:
    for method, code in [
        ("ModelInfer", StatusCode.INVALID_ARGUMENT),
        ("ModelReady", StatusCode.INVALID_ARGUMENT),
        ("ModelStreamInfer", StatusCode.UNIMPLEMENTED),
    ]:
        with pytest.raises(grpc.RpcError) as error:
            bytes_method(channel, method)(b"\xff\xfe not protobuf")
        assert error.value.code() is code


def test_overload_and_deadlines_have_their_codes(bundle: Path) -> None:
    limits = ("--policy", "none", "--instances", "1", "--max-queue", "8", "--faults", SLOW)
    with (
        ServerProcess(str(bundle), "--grpc-port", "0", *limits) as server,
        ThreadPoolExecutor() as pool,
    ):
        eight = pool.submit(infer, server.grpc_address, 0, rows=8)
        until(lambda: server.metric("parm_units_in_flight") == 1, "nothing runs")
        with pytest.raises(
            InferenceServerException, match="queries wait, and at most 8 may"
        ) as error:
            infer(server.grpc_address, 1, rows=8)
        assert code_of(error) == "RESOURCE_EXHAUSTED"
        eight.result()
        with pytest.raises(InferenceServerException, match=r"no answer within 0\.00") as error:
            infer(server.grpc_address, 3, timeout=1000)
        assert code_of(error) == "DEADLINE_EXCEEDED"
        until(lambda: server.metric("parm_units_in_flight") == 0, "the instance is busy still")
        # The client's own deadline is the query's too.
        with pytest.raises(InferenceServerException) as error:
            infer(server.grpc_address, 4, client_timeout=0.1)
        assert code_of(error) == "DEADLINE_EXCEEDED"
        # Whether the deadline or the client is noticed first is up to chance.
        gone = r'parm_query_failures_total\{reason="(?:deadline exceeded|abandoned)"\}'
        until(lambda: server.metric(gone) == 2, "the query waits on")
        until(lambda: server.metric("parm_units_in_flight") == 0, "the instance is busy still")
        infer(server.grpc_address, 5)


def test_a_killed_worker_fails_no_request(bundle: Path) -> None:
    with (
        ServerProcess(str(bundle), "--grpc-port", "0", "--instances", "2") as server,
        ThreadPoolExecutor(4) as pool,
    ):
        requests = [pool.submit(infer, server.grpc_address, seed) for seed in range(50)]
        os.kill(server.workers()[0], signal.SIGKILL)
        for seed, request in enumerate(requests):
            output = request.result().as_numpy("output")
            np.testing.assert_allclose(output, predictions(queries(1, seed)), rtol=1e-3, atol=1e-5)
        until(lambda: server.metric("parm_instance_restarts_total") == 1, "nothing came back")


def test_a_signal_lets_requests_end_and_refuses_new_ones(bundle: Path) -> None:
    arguments = ("--grpc-port", "0", "--instances", "1", "--policy", "none", "--faults", SLOW)
    with ServerProcess(str(bundle), *arguments) as server, ThreadPoolExecutor() as pool:
        requests = [pool.submit(infer, server.grpc_address, seed) for seed in range(3)]
        names = ("parm_queue_depth", "parm_units_in_flight", "parm_query_latency_seconds_count")
        until(lambda: sum(map(server.metric, names)) == 3, "requests do not arrive")
        with nothing_left_of(server), triton.InferenceServerClient(server.grpc_address) as client:
            server.signal(signal.SIGTERM)
            until(lambda: not client.is_server_ready(), "still ready")
            assert client.is_server_live()
            with pytest.raises(InferenceServerException, match="stopping") as error:
                client.infer("model", [triton_input(queries(1))])
            assert code_of(error) == "UNAVAILABLE"
            for request in requests:
                assert request.result().as_numpy("output").shape == (1, OUTPUTS)
            assert server.wait() == 0


def test_nothing_is_said_where_a_worker_starts_beside_open_connections(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--grpc-port", "0", "--instances", "1", "--policy", "none")
    with ServerProcess(str(bundle), *arguments) as server:
        infer(server.grpc_address, 0)
        os.kill(server.workers()[0], signal.SIGKILL)
        until(lambda: server.metric("parm_instance_restarts_total") == 1, "nothing came back")
    assert "fork" not in capfd.readouterr().err


async def test_a_port_that_is_taken_is_refused(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(open_bundle(bundle), ServeOptions(port=0, grpc_port=port))
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1 port {port} for gRPC"):
            await server.start()
    with pytest.raises(UserError, match="grpc_port must be from 0"):
        ServeOptions(grpc_port=70_000)


async def test_health_is_watched_from_the_start_to_the_end(bundle: Path) -> None:
    status = health_pb2.HealthCheckResponse
    seen: list[int] = []
    async with Server(open_bundle(bundle), ServeOptions(port=0, grpc_port=0)) as server:
        assert server.grpc_url is not None
        channel = grpc.aio.insecure_channel(server.grpc_url.removeprefix("grpc://"))
        health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs name no method
        watch = health.Watch(health_pb2.HealthCheckRequest())
        seen.append((await anext(aiter(watch))).status)
    seen += [each.status async for each in watch]  # which ends, and not with an error
    await channel.close()
    assert seen == [status.SERVING, status.NOT_SERVING]

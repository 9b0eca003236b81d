"""The application on Ray Serve: as its example config deploys it, and as `parm serve` does."""

import os
import re
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
import tritonclient.grpc
import yaml
from ray import serve
from tritonclient.utils import InferenceServerException

from commands import parm
from own_coders import DECODER, ENCODER
from own_policy import POLICY, RULE
from parity_models.codes import CodeSpec
from parity_models.errors import BundleError
from parity_models.serving.ray.app import AppArgs, build
from parity_models.serving.ray.cluster import delete
from ray_cluster import SMALL, Client, eventually, kill_replica, replica_ids
from served import (
    INPUTS,
    ServerProcess,
    predictions,
    queries,
    until,
    write_linear_bundle,
)
from span_collector import collecting

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

EXAMPLES = Path(__file__).parents[3] / "examples" / "ray"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("coded"))


def test_the_example_config_serves_scales_and_survives_what_it_loses(
    bundle: Path, ray_url: str, tmp_path: Path
) -> None:
    config = yaml.safe_load((EXAMPLES / "config.yaml").read_text())
    (app,) = config["applications"]
    app["args"] |= {
        "bundle": str(bundle),
        "cpus_per_instance": SMALL,
        "cpus_per_frontend": SMALL,
        "policy": "parity",  # which sends parity whether anything is slow or not
        "instances": 2,
        "max_instances": 4,
        "upscale_delay": 0.0,
        "downscale_delay": 0.0,
        "target_utilisation": 0.5,
        "deadline": 20.0,
        # Long enough that clients on a busy machine keep instances busy.
        "faults": '{"service_time": {"type": "constant", "seconds": 0.2}}',
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    address = ray.get_runtime_context().gcs_address
    subprocess.run(
        [
            *(Path(sys.executable).with_name("serve"), "run", "--non-blocking"),
            *("--address", address, tmp_path / "config.yaml"),
        ],
        check=True,
        capture_output=True,
    )
    name = app["name"]
    try:
        _serves_scales_and_survives(name, ray_url)
    finally:
        delete(name)


def _serves_scales_and_survives(name: str, url: str) -> None:
    eventually(lambda: serve.status().applications[name].status == "RUNNING", "it does not run")
    client = Client(url)

    def up() -> float:
        return client.metric(r'parm_instances_up\{role="deployed",work="deployed"\}')

    eventually(lambda: up() == 3, "not all instances are there")
    with client.asking(1, pause=0.1):
        client.more()
        # Whoever knows who serves whom is gone, and is back.
        kill_replica("Roster", *replica_ids(name, "Roster"))
        client.more()
        # Six clients keep more than three instances busy.
        with client.asking(6, pause=0):
            eventually(lambda: up() > 3, "there are no more instances")
        eventually(lambda: up() == 3, "there are not fewer instances again")
        client.more()
    assert client.metric("parm_query_failures_total") == 0
    assert client.metric("parm_query_latency_seconds_count") == client.answered
    # What a lost frontend had is the other's, until that is back.
    kill_replica("Frontends", replica_ids(name, "Frontends")[0])
    eventually(lambda: _answers(client), "nobody answers")
    eventually(lambda: len(replica_ids(name, "Frontends")) == 2, "the frontend is not back")
    eventually(lambda: up() == 3, "not all instances are there")


def _answers(client: Client) -> bool:
    """Is whoever asks answered, again and again?"""
    try:
        with httpx.Client(timeout=30) as http:
            for _ in range(10):
                client.ask(http)
    except (AssertionError, httpx.HTTPError):
        return False
    return True


def test_parm_serve_starts_a_cluster_and_leaves_nothing_of_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a cluster that asks for a token.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    on_ray = ["--engine", "ray", "--instances", "2", "--frontends", "2", "--grpc-port", "0"]
    arguments = [*on_ray, "--policy", "parity", "--deadline", "5s"]
    with ServerProcess(str(bundle), *arguments) as server:
        client = Client(server.url)
        with client.asking():
            client.more(50)
        _speak_grpc(server.grpc_address)
        assert client.metric("parm_query_latency_seconds_count") == client.answered + 2
        pids = _descendants(server.process.pid)
        assert len(pids) > 5
        _end_without_frontends(server.url, pids)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "processes are left")


def _end_without_frontends(url: str, pids: list[int]) -> None:
    """Requests end, by Ray's proxy, though nobody is there who could answer them."""
    frontends = [pid for pid in pids if b"Frontends" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(frontends) == 2
    for pid in frontends:
        os.kill(pid, signal.SIGSTOP)
    try:
        answer = httpx.get(f"{url}/v2/health/ready", timeout=60)
    finally:
        for pid in frontends:
            os.kill(pid, signal.SIGCONT)
    assert (answer.status_code, "timed out after 6.0s" in answer.text) == (408, True)


def _speak_grpc(address: str) -> None:
    with tritonclient.grpc.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("model")
        assert client.get_server_metadata().name == "parity-models"
        (tensor,) = client.get_model_metadata("model").inputs
        assert (tensor.name, tensor.datatype, tensor.shape) == ("input", "FP32", [-1, INPUTS])
        rows = queries(2)
        asked = tritonclient.grpc.InferInput("input", list(rows.shape), "FP32")
        asked.set_data_from_numpy(rows)
        answer = client.infer("model", [asked])
        np.testing.assert_allclose(
            answer.as_numpy("output"), predictions(rows), rtol=1e-3, atol=1e-5
        )
        for model, words in {"another": "no model is called 'another'", "model": "missing"}.items():
            with pytest.raises(InferenceServerException, match=words) as error:
                client.infer(model, [])
            assert error.value.status() in ("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT")


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in map(int, children) for each in (child, *_descendants(child))]


def refused(bundle: Path, *arguments: str) -> str:
    done = subprocess.run(
        parm("serve", str(bundle), "--engine", "ray", *arguments),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2, done.stderr
    (error,) = re.findall(r"^error: (.*)$", done.stderr, re.M)
    return str(error)


def test_a_policy_and_a_rule_of_one_s_own_are_served(bundle: Path, ray_url: str) -> None:
    given = {
        "bundle": str(bundle),
        "cpus_per_instance": SMALL,
        "cpus_per_frontend": SMALL,
        "policy": POLICY,
        "again_after": 1,
        "dispatch": RULE,
        "scans": 2,
        "faults": '{"service_time": {"type": "constant", "seconds": 0.02}}',
    }
    try:
        serve.run(build(AppArgs.model_validate(given)), name="own-policy", route_prefix="/again")
        client = Client(f"{ray_url}/again")
        with client.asking():
            client.more()
        eventually(lambda: client.metric("parm_redundant_tasks_total") > 0, "nothing is sent again")
    finally:
        delete("own-policy")


def test_a_code_of_one_s_own_is_served_where_it_is_allowed_and_spans_say_where_time_went(
    ray_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = CodeSpec(ENCODER, DECODER, 2, 1, {"gain": 2.0}, {"divisor": 2.0})
    bundle = str(write_linear_bundle(tmp_path, code=code))
    given: dict[str, Any] = {
        "bundle": bundle,
        "allow_code": (ENCODER, DECODER),
        "cpus_per_instance": SMALL,
        "cpus_per_frontend": SMALL,
        "policy": "parity",
        "traces": True,
        "faults": (
            '{"slowdowns": {"mean_between": 0, "mean_length": 1000, "workers": [0], '
            '"delay": {"type": "constant", "seconds": 0.5}}}'
        ),
    }
    with pytest.raises(BundleError, match="names out of a bundle are not imported"):
        build(AppArgs.model_validate({"bundle": bundle}))
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        try:
            serve.run(build(AppArgs.model_validate(given)), name="own-code", route_prefix="/own")
            client = Client(f"{ray_url}/own")
            with client.asking():
                client.more()
                eventually(lambda: client.sources["reconstruction"] > 0, "nothing is reconstructed")
            with httpx.Client(headers={"traceparent": f"00-{trace}-{parent}-01"}) as http:
                client.ask(http)
            wanted = {"infer", "queue", "run"}
            eventually(lambda: wanted <= collector.of(trace).keys(), "no spans have come")
        finally:
            delete("own-code")
    spans = collector.of(trace)
    assert spans["infer"].parent_span_id.hex() == parent
    assert spans["run"].parent_span_id == spans["infer"].span_id
    assert {"encode", "stand-in", "decode"} <= {span.name for span in collector.spans}


def test_what_a_cluster_cannot_serve_is_refused(bundle: Path, ray_url: str) -> None:
    nobody = "127.0.0.1:1"
    assert f"no Ray cluster can be reached at {nobody}" in refused(bundle, "--address", nobody)
    address = ray.get_runtime_context().gcs_address
    assert "the replicas reserve 31 CPUs and the cluster at" in refused(
        bundle, "--address", address, "--instances", "20"
    )

"""`parm serve` in front of servers that run the models already: real ones, one of them killed."""

import json
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from threading import Event

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from onnx_models import linear_model
from parity_models.cli.main import main
from parity_models.models.bundle import NewModel, write_bundle
from served import (
    INPUTS,
    OUTPUTS,
    ServerProcess,
    predictions,
    queries,
    until,
    write_linear_bundle,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, without a code, for upstreams."""
    return write_linear_bundle(tmp_path_factory.mktemp("alone"), coded=False)


def upstream(bundle: Path, **ports: int) -> ServerProcess:
    port, grpc_port = ports.get("port", 0), ports.get("grpc_port", 0)
    where = ("--port", str(port), "--grpc-port", str(grpc_port))
    return ServerProcess(str(bundle), "--policy", "none", "--instances", "1", *where)


def test_an_upstream_killed_under_load_fails_no_request_and_comes_back(
    bundle: Path, alone: Path
) -> None:
    done = Event()
    answered = count()

    def ask(seed: int) -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{front.port}") as client:
            while not done.is_set():
                rows = queries(2, seed)
                tensor = triton.InferInput("input", list(rows.shape), "FP32")
                result = client.infer("model", [tensor.set_data_from_numpy(rows)])
                np.testing.assert_allclose(
                    result.as_numpy("output"), predictions(rows), rtol=1e-3, atol=1e-5
                )
                assert len(result.get_response()["parameters"]["source"].split(",")) == 2
                next(answered)

    def instances() -> float:
        return front.metric("parm_instances_up")

    with ExitStack() as stack:
        one, two, parity = (stack.enter_context(upstream(alone)) for _ in range(3))
        deployed = f"{one.url},grpc://{two.grpc_address}"
        front = stack.enter_context(
            ServerProcess(
                *("--bundle", str(bundle), "--deployed", deployed),
                *("--parity", f"{parity.url}/model", "--grpc-port", "0"),
            )
        )
        assert instances() == 3
        with ThreadPoolExecutor(4) as pool:
            requests = [pool.submit(ask, seed) for seed in range(4)]
            try:
                for victim in (one, two):
                    before = next(answered)
                    until(lambda before=before: next(answered) > before + 20, "no answers")
                    victim.signal(signal.SIGKILL)
                    victim.wait()
                    until(lambda: instances() == 2, "the upstream is not ejected")
                    before = next(answered)
                    until(lambda before=before: next(answered) > before + 20, "no answers")
                    ports = {
                        "port": victim.port,
                        "grpc_port": int(victim.grpc_address.rsplit(":", 1)[1]),
                    }
                    stack.enter_context(upstream(alone, **ports))
                    until(lambda: instances() == 3, "the upstream is not back")
            finally:
                done.set()
            for request in requests:
                request.result()
        assert front.metric("parm_query_failures_total") == 0
        assert front.metric("parm_upstream_ejections_total") == 2
        assert httpx.get(f"{front.url}/v2/health/ready").status_code == 200
        front.signal(signal.SIGTERM)
        assert front.wait() == 0


def test_what_does_not_fit_is_refused_with_the_difference(
    bundle: Path,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refusal(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["parm", "serve", "--port", "0", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    with upstream(alone) as server:
        for arguments, reason in [
            ((str(bundle), "--engine", "remote"), "belong together"),
            ((str(bundle), "--engine", "local", "--deployed", server.url), "belong together"),
            ((str(bundle), "--parity", server.url), "go with those of --deployed"),
            ((str(bundle), "--backup", server.url), "go with those of --deployed"),
            ((str(bundle), "--deployed", server.url, "--backup", server.url), "no backup model"),
            ((str(bundle), "--concurrency", "2"), "need --deployed"),
            ((str(bundle), "--ca-file", str(tmp_path / "none")), "need --deployed"),
            (
                (str(bundle), "--deployed", server.url, "--instances", "2"),
                "are of worker processes",
            ),
            (
                (str(bundle), "--deployed", server.url, "--parity-instances", "1"),
                "are of worker processes",
            ),
            (("--deployed", server.url), "give one BUNDLE"),
            ((str(bundle), "--bundle", str(bundle)), "give one BUNDLE"),
            ((str(alone), "--deployed", server.url, "--parity", server.url), "no parity model"),
            (
                (str(bundle), "--deployed", server.url, "--policy", "parity"),
                "needs upstreams that run parity-0",
            ),
            (
                (str(bundle), "--deployed", server.url, "--faults", json.dumps({})),
                "for local workers",
            ),
            ((str(bundle), "--deployed", f"{server.url}/other"), "no model is called 'other'"),
            (
                (str(bundle), "--deployed", server.url, "--ca-file", str(tmp_path / "none")),
                "cannot read certificates",
            ),
        ]:
            assert reason in refusal(*arguments)
        linear_model(tmp_path / "other.onnx", (INPUTS,), (OUTPUTS,))
        model = NewModel(tmp_path / "other.onnx", "other")
        other = write_bundle(tmp_path / "other", deployed=model, parity=[], code=None).path
        assert "predicts something else" in refusal(str(other), "--deployed", server.url)

"""`parm serve` in front of servers that run the models already: real ones, one of them killed."""

import json
import signal
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from fake_upstream import BUSY, HUNG, WELL, FakeUpstream
from fleet_servers import Parm, kill_and_mend
from onnx_models import linear_model
from parity_models.cli.main import main
from parity_models.models.bundle import NewModel, open_bundle, write_bundle
from parity_models.scheduling import Source
from parity_models.serving.remote.upstream import Fleet, parse_upstreams
from parity_models.serving.server import ServeOptions, Server
from served import (
    INPUTS,
    OUTPUTS,
    WEIGHTS,
    ServerProcess,
    predictions,
    queries,
    write_linear_bundle,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, without a code, for upstreams."""
    return write_linear_bundle(tmp_path_factory.mktemp("alone"), coded=False)


def test_an_upstream_killed_under_load_fails_no_request_and_comes_back(
    bundle: Path, alone: Path
) -> None:
    with (
        Parm(alone) as one,
        Parm(alone) as two,
        Parm(alone) as parity,
        ServerProcess(
            *("--bundle", str(bundle), "--deployed", f"{one.url},{two.grpc_url}"),
            *("--parity", f"{parity.url}/model", "--policy", "parity", "--grpc-port", "0"),
        ) as front,
    ):
        kill_and_mend(front, [one, two], 2)
        assert httpx.get(f"{front.url}/v2/health/ready").status_code == 200
        front.signal(signal.SIGTERM)
        assert front.wait() == 0


async def test_while_an_upstream_is_busy_the_others_answer_and_it_stays(tmp_path: Path) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path, coded=False))
    async with FakeUpstream("http", WEIGHTS) as one, FakeUpstream("grpc", WEIGHTS) as two:
        upstreams = parse_upstreams("model", 0, deployed=[one.url, two.url], concurrency=2)
        async with Server(bundle, ServeOptions(port=0, fleet=Fleet(upstreams))) as server:
            one.mode, one.retry_after = BUSY, "0.5"
            asked = one.asked
            for number in range(200):
                rows = queries(1, number)
                answers = await server.frontend.infer(rows)
                np.testing.assert_allclose(answers.outputs, predictions(rows), rtol=1e-3, atol=1e-5)
            assert asked < one.asked < asked + 50
            assert server.frontend.instances_up() == {"deployed": 4}
            one.mode = WELL
            while one.asked < asked + 60:
                await server.frontend.infer(queries(1))


async def test_a_backup_is_an_upstream_like_others(tmp_path: Path) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path, coded=False, backed=True))
    async with FakeUpstream("http", WEIGHTS) as model, FakeUpstream("http", 2 * WEIGHTS) as backup:
        upstreams = parse_upstreams(
            "model", 0, deployed=[model.url], backup=[f"{backup.url}/model"]
        )
        async with Server(bundle, ServeOptions(port=0, fleet=Fleet(upstreams))) as server:
            assert server.policy == "approximate-backup"
            model.mode = HUNG
            rows = queries(1)
            answers = await server.frontend.infer(rows)
            assert answers.sources == [Source.BACKUP]
            np.testing.assert_allclose(answers.outputs, 2 * predictions(rows), rtol=1e-3)


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

    with Parm(alone) as server:
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
        for url in (server.url, server.grpc_url):
            assert "has another model 'model': the sha256 of its file" in refusal(
                str(other), "--deployed", url
            )

"""`parm serve` in front of servers that run the models already: real ones, one of them killed."""

import re
import signal
from pathlib import Path

import httpx
import numpy as np
import pytest

from commands import Here, assert_refused
from fake_upstream import BUSY, HUNG, WELL, FakeUpstream
from fleet_servers import PATIENTLY, Parm, kill_and_mend
from onnx_models import linear_model
from parity_models.models.bundle import NewModel, open_bundle, write_bundle
from parity_models.scheduling import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.options import EngineChoice
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

pytestmark = pytest.mark.slow


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
            *(str(bundle), "--deployed", f"{one.url},{two.grpc_url}"),
            *("--parity", f"{parity.url}/model", "--policy", "parity", "--grpc-port", "0"),
            *PATIENTLY,
        ) as front,
    ):
        kill_and_mend(front, [one, two], 2)
        assert httpx.get(f"{front.url}/v2/health/ready").status_code == 200
        front.signal(signal.SIGTERM)
        assert front.wait() == 0


async def test_while_an_upstream_is_busy_the_others_answer_and_it_stays(tmp_path: Path) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path, coded=False))
    async with FakeUpstream("http", WEIGHTS) as one, FakeUpstream("grpc", WEIGHTS) as two:
        urls = f"{one.url}?concurrency=2,{two.url}?concurrency=2"
        engine = EngineChoice("remote", {"deployed": urls})
        options = ServeOptions(port=0, engine=engine)
        async with Server(bundle, options) as server:
            one.mode, one.retry_after = BUSY, "0.5"
            asked = one.asked
            for number in range(200):
                rows = queries(1, number)
                answers = await server.deployment.frontend.infer(rows)
                np.testing.assert_allclose(answers.outputs, predictions(rows), rtol=1e-3, atol=1e-5)
            assert asked < one.asked < asked + 50
            assert server.deployment.frontend.instances_up() == {"deployed": 4}
            one.mode = WELL
            while one.asked < asked + 60:
                await server.deployment.frontend.infer(queries(1))


async def test_a_backup_is_an_upstream_like_others(tmp_path: Path) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path, coded=False, backed=True))
    async with FakeUpstream("http", WEIGHTS) as model, FakeUpstream("http", 2 * WEIGHTS) as backup:
        upstreams = {"deployed": model.url, "backup": f"{backup.url}/model"}
        engine, policy = EngineChoice("remote", upstreams), PolicyChoice("approximate-backup")
        async with Server(bundle, ServeOptions(port=0, engine=engine, policy=policy)) as server:
            model.mode = HUNG
            rows = queries(1)
            answers = await server.deployment.frontend.infer(rows)
            assert answers.sources == [Source.BACKUP]
            np.testing.assert_allclose(answers.outputs, 2 * predictions(rows), rtol=1e-3)


DEPLOYED = "BUNDLE --deployed URL"
REFUSED = [
    ("BUNDLE --engine remote", "give those of the deployed model with --deployed"),
    (
        "BUNDLE --engine local --deployed URL",
        "--deployed is no option of the engine local but of remote",
    ),
    ("BUNDLE --parity URL", "--parity is no option of the engine local"),
    ("BUNDLE --backup URL", "--backup is no option of the engine local"),
    ("BUNDLE --ca-file NOWHERE", "of the engine local but of remote"),
    ("--deployed URL", "give one BUNDLE"),
    ("ALONE --deployed URL --parity URL", "no parity model"),
    ("BUNDLE --deployed URL/other", "no model is called 'other'"),
    (f"{DEPLOYED} --backup URL", "no backup model"),
    (f"{DEPLOYED}?concurrency=0", "must be from 1 to 1000"),
    (f"{DEPLOYED} --instances 3", "leave --instances out with the engine remote"),
    (f"{DEPLOYED} --extra-instances 1", "leave --extra-instances out with the engine remote"),
    (f"{DEPLOYED} --policy parity", "needs instances that run parity-0"),
    (f"{DEPLOYED} --faults {{}}", "faults are not for the engine remote"),
    (f"{DEPLOYED} --ca-file NOWHERE", "cannot read certificates"),
    ("OTHER --deployed URL", "has another model 'model': the sha256 of its file"),
    ("OTHER --deployed GRPC", "has another model 'model': the sha256 of its file"),
]


def test_what_does_not_fit_is_refused_with_the_difference(
    bundle: Path, alone: Path, tmp_path: Path, parm_here: Here
) -> None:
    linear_model(tmp_path / "other.onnx", (INPUTS,), (OUTPUTS,))
    model = NewModel(tmp_path / "other.onnx", "other")
    other = write_bundle(tmp_path / "other", deployed=model, parity=[], code=None).path
    with Parm(alone) as server:
        meant = {
            "BUNDLE": bundle,
            "ALONE": alone,
            "OTHER": other,
            "NOWHERE": tmp_path / "none",
            "URL": server.url,
            "GRPC": server.grpc_url,
        }
        words = re.compile("|".join(meant))
        for arguments, reason in REFUSED:
            spelled = words.sub(lambda word: str(meant[word[0]]), arguments)
            refused = parm_here("serve", "--port", "0", *spelled.split())
            assert_refused(refused, reason)
            assert refused.stderr.count("\n") == 1

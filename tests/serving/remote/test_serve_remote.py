"""`parm serve`, and its remote engine, in front of servers that run the models already: real ones,
one of them killed."""

import asyncio
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from commands import Here, assert_refused
from engine_conformance import EngineConformance, Fleet
from fake_upstream import AWAY, HUNG, WELL, FakeUpstream
from fleet_servers import PATIENCE, PATIENTLY, Parm, kill_and_mend
from linear_bundles import FEATURES, linear_bundle
from local_engines import parts
from onnx_models import linear_model, moody_model
from parity_models import PolicyChoice, ServeOptions, Server, Source
from parity_models.bundle.bundle import NewModel, open_bundle, write_bundle
from parity_models.bundle.onnx_model import PinnedModel
from parity_models.scheduling.race import EXPLORE
from parity_models.serving.engine import Engine
from parity_models.serving.options import EngineChoice
from parity_models.serving.remote.remote_engine import RemoteEngine, UpstreamOptions
from parity_models.serving.remote.upstream import Upstream
from served import (
    INFER,
    INPUTS,
    OUTPUTS,
    WEIGHTS,
    ServerProcess,
    infer_message,
    predictions,
    queries,
    served_here,
    write_linear_bundle,
)
from upstream_engines import WEIGHTS as SMALL

pytestmark = pytest.mark.slow


def test_an_upstream_killed_under_load_fails_no_request(bundle: Path, plain: Path) -> None:
    with (
        Parm(plain) as one,
        Parm(plain) as two,
        Parm(plain) as parity,
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


@pytest.mark.parametrize("name", ["approximate-backup", "adaptive"])
async def test_a_backup_is_an_upstream_like_others(tmp_path: Path, name: str) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path, coded=False, backed=True))
    async with FakeUpstream("http", WEIGHTS) as model, FakeUpstream("http", 2 * WEIGHTS) as backup:
        upstreams = {"deployed": model.url, "backup": f"{backup.url}/model"}
        budget = {"differ": 1.0} if name == "adaptive" else {}
        engine, policy = EngineChoice("remote", upstreams), PolicyChoice(name, budget)
        options = ServeOptions(port=0, engine=engine, policy=policy, agreement=0)
        async with Server(bundle, options) as server:
            model.mode = HUNG
            rows, infer = queries(1), server.deployment.frontend.infer
            # At first, one query in some asks the backup as it arrives.
            asked = [asyncio.ensure_future(infer(rows)) for _ in range(EXPLORE)]
            done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            for each in waiting:
                each.cancel()
            answers = done.pop().result()
            assert answers.sources == [Source.BACKUP]
            np.testing.assert_allclose(answers.outputs, 2 * predictions(rows), rtol=1e-3)


@pytest.mark.parametrize("mode", [AWAY, HUNG])
async def test_without_an_upstream_only_stand_ins_answer(tmp_path: Path, mode: str) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path, coded=False, backed=True))
    async with FakeUpstream("http", WEIGHTS) as model:
        model.mode = mode
        engine = EngineChoice("remote", {"deployed": model.url})
        options: dict[str, Any] = {"engine": engine, "differ": 1.0, "agreement": 0}
        async with served_here(bundle, **options) as (server, client):
            assert (await client.get("/v2/health/ready")).status_code == 200
            rows = queries(1)
            answer = await client.post(INFER, json=infer_message(rows))
            assert answer.is_success, answer.text
            assert answer.headers["x-parm-source"] == "backup"
            assert answer.headers["x-parm-degraded"] == "1"
            assert "parm_degraded 1.0" in (await client.get("/metrics")).text
            exact = infer_message(rows) | {"parameters": {"redundancy": "exact"}}
            refused = await client.post(INFER, json=exact)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert "no instance of the model is up" in refused.text
            model.mode = WELL
            while server.deployment.frontend.scheduler.degraded:
                await asyncio.sleep(0.05)
            answer = await client.post(INFER, json=exact)
            assert answer.headers["x-parm-source"] == "model"
            assert "x-parm-degraded" not in answer.headers
            assert "parm_degraded 0.0" in (await client.get("/metrics")).text


DEPLOYED = "BUNDLE --deployed URL"
REFUSED = [
    ("BUNDLE --engine remote", "give those of the deployed model with --deployed"),
    ("BUNDLE --engine local --deployed URL", "deployed is not an option of the engine local"),
    ("BUNDLE --parity URL", "parity is not an option of the engine local"),
    ("BUNDLE --backup URL", "backup is not an option of the engine local"),
    ("BUNDLE --engine local@upstream-token=NOWHERE", "of the engine local but of remote"),
    ("--deployed URL", "give one BUNDLE"),
    ("ALONE --deployed URL --parity URL", "no parity model"),
    ("BUNDLE --deployed URL/other", "no model is called 'other'"),
    (f"{DEPLOYED} --backup URL", "no backup model"),
    (f"{DEPLOYED}?concurrency=0", "is not an upstream"),
    (f"{DEPLOYED} --instances 3", "leave --instances out with the engine remote"),
    (f"{DEPLOYED} --extra-instances 1", "leave --extra-instances out with the engine remote"),
    (f"{DEPLOYED} --faults {{}}", "faults are not for the engine remote"),
    ("OTHER --deployed URL", "has another model 'model': the sha256 of its file"),
    ("OTHER --deployed GRPC", "has another model 'model': the sha256 of its file"),
]


def test_fleets_that_do_not_fit(bundle: Path, plain: Path, tmp_path: Path, parm_here: Here) -> None:
    linear_model(tmp_path / "other.onnx", (INPUTS,), (OUTPUTS,))
    model = NewModel(tmp_path / "other.onnx", "other")
    other = write_bundle(tmp_path / "other", deployed=model, parity=[], code=None).path
    with Parm(plain) as server:
        meant = {
            "BUNDLE": bundle,
            "ALONE": plain,
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


# Ids and traces

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_an_upstream_gets_the_request_s_id_and_trace(tmp_path: Path, scheme: str) -> None:
    message, heard = infer_message(np.full((1, FEATURES), 0.5)), []
    async with FakeUpstream(scheme, SMALL) as upstream:
        engine = EngineChoice("remote", {"deployed": f"{upstream.url}/model"})
        options: dict[str, Any] = {"policy": PolicyChoice("none"), "engine": engine}
        async with served_here(linear_bundle(tmp_path, SMALL), **options) as (_, client):
            named = {"x-request-id": "mine", "traceparent": SAMPLED, "tracestate": "vendor=x"}
            for headers in (named, {"traceparent": "00-nonsense"}):
                answer = await client.post(INFER, json=message, headers=headers)
                assert answer.is_success, answer.text
                heard.append(upstream.heard[-1])
    first, second = heard
    assert named.items() <= first.items()
    assert "traceparent" not in second
    assert second["x-request-id"] != "mine"


# The engine


class RemoteFleet(Fleet):
    """Two servers of the moody model, the second with the name of a parity model too."""

    failure = "answered with an error"

    def __init__(self, folder: Path, scheme: str) -> None:
        moody_model(folder / "m.onnx")
        self._model = folder / "m.onnx"
        model = NewModel(self._model, "moody")
        bundle = write_bundle(folder / "bundle", deployed=model, parity=[], code=None)
        self._scheme = scheme
        # The machine may be busy.
        patient = ("--deadline", str(PATIENCE))
        self._servers = [Parm(bundle.path, *patient) for _ in range(2)]

    def engine(self) -> RemoteEngine:
        urls = [
            server.grpc_url if self._scheme == "grpc" else server.url for server in self._servers
        ]
        upstreams = (
            Upstream(urls[0], {"deployed": "model"}),
            Upstream(urls[1], {"deployed": "model", "parity-0": "model"}),
        )
        models = dict.fromkeys(("deployed", "parity-0"), PinnedModel.of(self._model))
        return RemoteEngine(UpstreamOptions(), parts(models, unit_timeout=PATIENCE), upstreams)

    def kill(self, engine: Engine, number: int) -> None:
        self._dead = self._servers[number]
        self._dead.kill()

    def mend(self) -> None:
        self._dead.start()

    def close(self) -> None:
        for server in self._servers:
            server.__exit__(None, None, None)


@pytest.fixture(scope="module", params=["http", "grpc"])
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RemoteFleet]:
    fleet = RemoteFleet(tmp_path_factory.mktemp("moody"), request.param)
    yield fleet
    fleet.close()


class TestRemoteEngine(EngineConformance):
    pass

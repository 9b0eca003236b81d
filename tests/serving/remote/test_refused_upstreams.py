"""What is refused of a fleet: other models, strange certificates, URLs that are none."""

from pathlib import Path

import numpy as np
import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer

import fake_upstream as fake
from engine_conformance import DEPLOYED, Events
from fake_upstream import FakeUpstream, server_context
from parity_models.errors import ServingError, UserError
from parity_models.models.onnx_model import PinnedModel
from parity_models.models.signature import Signature, TensorSpec
from parity_models.serving.metrics import Metrics
from parity_models.serving.remote.clients import connect
from parity_models.serving.remote.remote_engine import RemoteEngine
from parity_models.serving.remote.upstream import Fleet as Upstreams
from parity_models.serving.remote.upstream import (
    PredictionProtocol,
    Upstream,
    UpstreamError,
    UpstreamModel,
    parse_upstreams,
)
from ports import free_ports
from upstream_engines import ROW, WEIGHTS, engine_for, using


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_upstreams_that_are_not_what_they_must_be_are_refused(
    model: Path, scheme: str
) -> None:
    (port,) = free_ports(1)

    async def refusal(*upstreams: FakeUpstream | Upstream) -> str:
        each = tuple(
            Upstream(one.url, {"deployed": "model"}) if isinstance(one, FakeUpstream) else one
            for one in upstreams
        )
        models = dict.fromkeys(("deployed", "parity-0"), PinnedModel.of(model))
        engine = RemoteEngine(models, Upstreams(each), Metrics(), max_batch=1)
        with pytest.raises(UpstreamError) as error:
            await engine.start([one.roles for one in each], Events())
        return str(error.value)

    nobody = Upstream(f"{scheme}://127.0.0.1:{port}", {"deployed": "model"})
    text = await refusal(nobody)
    assert "no upstream that runs deployed is there" in text
    assert f"127.0.0.1:{port} cannot be reached" in text
    async with FakeUpstream(scheme, WEIGHTS) as good:
        also = Upstream(nobody.url, {"deployed": "model", "parity-0": "model"})
        assert "no upstream that runs parity-0 is there" in await refusal(good, also)
        assert "nobody" in await refusal(Upstream(good.url, {"deployed": "nobody"}))
        async with FakeUpstream(scheme, WEIGHTS, versions=("2",)) as newer:
            text = await refusal(good, newer)
            assert "has versions ['" in text
            assert good.url in text
            assert newer.url in text
        async with FakeUpstream(scheme, WEIGHTS, input_shape=(2, 3)) as other:
            text = await refusal(good, other)
            assert "'input' FP32 [-1, 2, 3], the bundle's has 'input' FP32 [-1, 6]" in text
        async with FakeUpstream(scheme, -WEIGHTS) as other:
            text = await refusal(other)
            assert "predicts something else with model 'model'" in text
        good.mode = fake.ERROR
        assert "cannot run model 'model'" in await refusal(good)
        good.mode = fake.AWAY
        assert "ready" in await refusal(good)


async def test_works_must_be_the_fleet_s(model: Path) -> None:
    async with FakeUpstream("http", WEIGHTS) as upstream:
        with pytest.raises(ServingError, match="not those that the fleet has"):
            await engine_for(model, upstream).start([DEPLOYED] * 2, Events())


# TLS


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
async def test_tls_to_an_upstream_is_trusted_by_its_authority_alone(
    model: Path, tmp_path: Path, scheme: str
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    chain = certificate.cert_chain_pems[0].bytes()
    tls = (
        server_context(certificate)
        if scheme == "https"
        else (certificate.private_key_pem.bytes(), chain)
    )
    async with FakeUpstream(scheme, WEIGHTS, tls=tls) as upstream:
        async with using(model, upstream, ca_file=tmp_path / "ca.pem") as (engine, events, first):
            engine.run(first, 1, "deployed", [ROW])
            await events.outputs(1)
        for file in (tmp_path / "stranger.pem", None):
            with pytest.raises(UpstreamError, match="cannot be reached"):
                await engine_for(model, upstream, ca_file=file).start([DEPLOYED], Events())
        (tmp_path / "none.pem").write_text("no certificate")
        engine = engine_for(model, upstream, ca_file=tmp_path / "none.pem")
        with pytest.raises(UserError, match="give a PEM file"):
            await engine.start([DEPLOYED], Events())


# URLs


@pytest.mark.parametrize("protocol", PredictionProtocol)
async def test_names_and_versions_are_quoted_in_paths(protocol: PredictionProtocol) -> None:
    heard = []

    async def answer(request: web.Request) -> web.Response:
        heard.append(request.raw_path)
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app, skip_url_asserts=True) as server:
        url = f"http://{server.host}:{server.port}"
        upstream = Upstream(url, {"deployed": "m"}, protocol=protocol)
        client = connect(upstream, None, 1000)
        tensor = TensorSpec("x", "FP32", (2,))
        signature, row = Signature.of(tensor, tensor), np.zeros(2, np.float32)
        await client.check_ready(UpstreamModel("a/b", "1/2?3 #4", signature, row, row, ""))
        await client.close()
    (path,) = heard
    assert path.startswith(f"/{protocol}/models/a%2Fb/versions/1%2F2%3F3%20%234")


def test_urls_name_servers_and_models() -> None:
    both, other, second, third = parse_upstreams(
        "m",
        1,
        deployed=["http://a:8000", "grpc://b:8001/resnet?concurrency=4&version=3"],
        parity=["http://a:8000?concurrency=3", "https://c/my%20parity"],
        backup=["http://a:8000", "http://d?model=n"],
    )
    assert both == Upstream(
        "http://a:8000", {"deployed": "m", "parity-0": "m-parity-0", "backup": "m-backup"}, 3
    )
    assert other == Upstream("grpc://b:8001", {"deployed": "resnet"}, 4, version="3")
    assert second == Upstream("https://c", {"parity-0": "my parity"})
    assert third == Upstream("http://d", {"backup": "n-backup"})
    assert both.models.keys() == {"deployed", "parity-0", "backup"}
    assert Upstreams((other, second)).roles == [frozenset({"deployed"})] * 4 + [
        frozenset({"parity-0"})
    ]
    (_, two) = parse_upstreams("m", 2, deployed=["http://a"], parity=["http://b"])
    assert two.models == {"parity-0": "m-parity-0", "parity-1": "m-parity-1"}
    (_, two) = parse_upstreams("m", 0, 2, deployed=["http://a"], backup=["http://b"])
    assert two.models == {"backup": "m-backup", "backup-2": "m-backup-2"}


@pytest.mark.parametrize(
    ("deployed", "parity", "reason"),
    [
        (["a:8000"], [], "is not an upstream"),
        ([""], [], "is not an upstream"),
        (["ftp://a"], [], "is not an upstream"),
        (["http://a/v2/models"], [], "is not an upstream"),
        (["http://a?x=1"], [], "is not an upstream"),
        (["http://a?concurrency=x"], [], "is not an upstream"),
        (["http://a?concurrency=0"], [], "must be from 1"),
        (["http://a?concurrency=2"], ["http://a?concurrency=3"], "with concurrency 2 and 3"),
        (["http://user@a"], [], "is not an upstream"),
        (["http://a:port"], [], "is not a URL"),
        (["grpc://a"], [], "has no port"),
        (["http://a", "http://a"], [], "given twice"),
        (["http://a"], ["http://b/model"], "there are several for such servers: m-par"),
    ],
)
def test_urls_that_are_none_are_refused(
    deployed: list[str], parity: list[str], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        parse_upstreams("m", 2, deployed=deployed, parity=parity)


def test_fleets_have_bounds() -> None:
    for concurrency in (0, 10_000):
        with pytest.raises(UserError, match="concurrency of http://a must be from 1"):
            Upstream("http://a", {"deployed": "m"}, concurrency)
    with pytest.raises(UserError, match="there is no upstream"):
        Upstreams(())

"""Fleets by their URLs, and what is refused of them: other models, strange certificates."""

import json
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

import fake_upstream as fake
from engine_conformance import DEPLOYED, Events
from fake_upstream import FakeUpstream, server_context
from local_engines import parts
from parity_models.bundle.onnx_model import PinnedModel
from parity_models.errors import UserError
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.protocol import OutputTensor
from parity_models.serving.remote import clients
from parity_models.serving.remote.remote_engine import (
    RemoteEngine,
    UpstreamOptions,
    connect,
    parse_upstreams,
    roles_of,
)
from parity_models.serving.remote.upstream import Upstream, UpstreamError, UpstreamModel
from parity_models.tensors.pairs import Labels
from parity_models.tensors.signature import Signature, TensorSpec
from ports import free_ports
from upstream_engines import ROW, WEIGHTS, engine_for, one, using

VALUES = st.recursive(st.none() | st.floats() | st.text(max_size=3), st.lists)
ANSWERS = st.fixed_dictionaries(
    {"predictions": VALUES | st.lists(st.dictionaries(st.just("y"), VALUES))}
)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_upstreams_that_are_not_as_they_must_be_are_refused(model: Path, scheme: str) -> None:
    (port,) = free_ports(1)

    async def refusal(*upstreams: FakeUpstream | Upstream) -> str:
        each = tuple(
            Upstream(one.url, {"deployed": "model"}) if isinstance(one, FakeUpstream) else one
            for one in upstreams
        )
        models = dict.fromkeys(("deployed", "parity-0"), PinnedModel.of(model))
        engine = RemoteEngine(UpstreamOptions(), parts(models), each)
        with pytest.raises(UpstreamError) as error:
            await engine.start(roles_of(each), Events())
        return str(error.value)

    away = Upstream(f"{scheme}://127.0.0.1:{port}", {"deployed": "model"})
    text = await refusal(away)
    assert "no upstream that runs deployed is available" in text
    assert f"127.0.0.1:{port} cannot be reached" in text
    async with FakeUpstream(scheme, WEIGHTS) as good:
        also = Upstream(away.url, {"deployed": "model", "parity-0": "model"})
        assert "no upstream that runs parity-0 is available" in await refusal(good, also)
        assert "nowhere" in await refusal(Upstream(good.url, {"deployed": "nowhere"}))
        async with FakeUpstream(scheme, WEIGHTS[:, :3]) as other:
            assert " due" in await refusal(other)
        async with FakeUpstream(scheme, -WEIGHTS) as other:
            text = await refusal(other)
            assert "predicts something else with model 'model'" in text
        good.mode = fake.ERROR
        assert "cannot run model 'model'" in await refusal(good)
        good.mode = fake.AWAY
        assert "ready" in await refusal(good)
        good.mode = fake.DENIED
        assert "upstream-token" in await refusal(good)


@pytest.mark.parametrize(
    ("mode", "reason"), [(fake.OTHER, "predicts something else"), (fake.AWAY, "is not ready")]
)
async def test_over_v1_a_model_is_known_by_outputs(model: Path, mode: str, reason: str) -> None:
    async with FakeUpstream("http", WEIGHTS) as upstream:
        async with using(model, upstream, protocol="v1") as (engine, events, instance):
            engine.run(instance, 1, "deployed", [ROW, -ROW])
            expected = np.stack([ROW, -ROW]) @ WEIGHTS
            np.testing.assert_allclose(await events.outputs(1), expected, rtol=1e-5)
            assert upstream.heard[-1]["content-type"] == "application/json"
            assert upstream.heard[-1]["x-request-id"] == "of-1"
        upstream.mode = mode
        with pytest.raises(UpstreamError, match=reason):
            await engine_for(model, upstream, protocol="v1").start([DEPLOYED], Events())


@pytest.mark.slow
@given(st.binary() | st.text().map(str.encode) | ANSWERS.map(json.dumps).map(str.encode))
def test_any_answer_over_v1_is_read_or_refused(answer: bytes) -> None:
    with suppress(InvalidRequestError):
        rows = clients.read_predictions(answer, ["y"])["y"]
        assert OutputTensor("y", "FP32", (2, 2), rows).array().shape == (2, 2)


@pytest.mark.parametrize(
    ("shape", "texts", "refusal"),
    [
        ((2,), b'["a", "other"]', ""),
        ((2, 1), b'[["a"], ["b"]]', ""),
        ((2, 2), b'["a", "b", "b", "a"]', "answered .* was due"),
        ((1, 2), b'["a", "b"]', "answered .* was due"),
        ((2,), b'["a", 7]', "sent an answer that cannot be read"),
    ],
)
async def test_labels_that_are_not_one_for_each_query_are_refused(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], texts: bytes, refusal: str
) -> None:
    async def answer(*of: object) -> list[OutputTensor]:
        return [OutputTensor("label", "BYTES", shape, Raw(texts))]

    signature = Signature.of(TensorSpec("x", "FP32", (4,)), TensorSpec("y", "FP32", (2,)))
    row, names = np.zeros(4, np.float32), Labels.of(("a", "b"))
    model = UpstreamModel("model", None, signature, row, None, "", names)
    client = connect(Upstream("http://127.0.0.1:1", {}), UpstreamOptions(), 0)
    monkeypatch.setattr(client, "_ask", answer)
    with pytest.raises(UpstreamError, match=refusal) if refusal else nullcontext():
        assert (await client.infer(model, [row, row], {}))[0].tolist() == [1, 0]
    await client.close()


async def test_a_fixed_batch_axis_is_filled_up(model: Path) -> None:
    fixed = onnx.load(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(fixed, model)
    async with one(model) as (upstream, engine, events, instance):
        before, rows = upstream.asked, np.array([ROW, -ROW, 2 * ROW])
        engine.run(instance, 1, "deployed", list(rows))
        np.testing.assert_allclose(await events.outputs(1), rows @ WEIGHTS, rtol=1e-5)
        assert upstream.asked == before + 2


async def test_a_node_is_a_host_or_where_all_share_one_an_upstream(model: Path) -> None:
    async with FakeUpstream("http", WEIGHTS) as one, FakeUpstream("http", WEIGHTS) as two:
        for name, nodes in [
            ("127.0.0.1", {one.url, two.url}),
            ("localhost", {"127.0.0.1", "localhost"}),
        ]:
            two.url = two.url.replace("127.0.0.1", name)
            engine, events = engine_for(model, one, two, concurrency=2), Events()
            await engine.start([DEPLOYED] * 4, events)
            joined = [(await events.arrival()).node for _ in range(4)]
            await engine.stop()
            assert set(joined) == nodes


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
async def test_upstreams_and_we_are_known(
    model: Path, tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    files = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "strange")}
    authority.cert_pem.write_to_path(files["ca"])
    stranger.cert_pem.write_to_path(files["strange"])
    token = tmp_path / "token"
    token.write_text("first\n")
    key, chain = server.private_key_pem.bytes(), server.cert_chain_pems[0].bytes()
    tls = server_context(server) if scheme == "https" else (key, chain)
    given: dict[str, Any] = {"upstream_token": str(token)}
    monkeypatch.setenv("PARM_CA_FILE", files["ca"])
    async with FakeUpstream(scheme, WEIGHTS, tls=tls) as upstream:
        async with using(model, upstream, **given) as (engine, events, first):
            for unit, word in enumerate(("first", "second")):
                token.write_text(word)
                while upstream.heard[-1]["authorization"] != f"Bearer {word}":
                    engine.run(first, unit, "deployed", [ROW])
                    await events.outputs(unit)
        (tmp_path / "none").write_text(" ")
        engine = engine_for(model, upstream, upstream_token=str(tmp_path / "none"))
        with pytest.raises(UserError, match="holds no token"):
            await engine.start([DEPLOYED], Events())
        monkeypatch.setenv("PARM_CA_FILE", files["strange"])
        with pytest.raises(UpstreamError, match="cannot be reached"):
            await engine_for(model, upstream, **given).start([DEPLOYED], Events())
        monkeypatch.setenv("PARM_CA_FILE", str(tmp_path / "none"))
        with pytest.raises(UserError, match="give a PEM file"):
            await engine_for(model, upstream, **given).start([DEPLOYED], Events())
        monkeypatch.delenv("PARM_CA_FILE")
        with pytest.raises(UpstreamError, match="cannot be reached"):
            await engine_for(model, upstream, **given).start([DEPLOYED], Events())


@pytest.mark.parametrize("protocol", ["v1", "v2"])
async def test_names_and_versions_are_quoted_in_paths(protocol: str) -> None:
    heard = []

    async def answer(request: web.Request) -> web.Response:
        heard.append(request.raw_path)
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app, skip_url_asserts=True) as server:
        url = f"http://{server.host}:{server.port}"
        upstream = Upstream(url, {"deployed": "m"}, protocol=protocol)
        client = connect(upstream, UpstreamOptions(), 1000)
        tensor = TensorSpec("x", "FP32", (2,))
        signature, row = Signature.of(tensor, tensor), np.zeros(2, np.float32)
        await client.check_ready(UpstreamModel("a/b", "1/2?3 #4", signature, row, row, ""))
        await client.close()
    (path,) = heard
    assert path.startswith(f"/{protocol}/models/a%2Fb/versions/1%2F2%3F3%20%234")


# URLs


def parse(r: int, **urls: str | None) -> tuple[Upstream, ...]:
    return parse_upstreams(UpstreamOptions(**urls), "m", r)


def test_urls_name_servers_and_models() -> None:
    both, other, second, third = parse(
        1,
        deployed="http://a:8000,grpc://b:8001/resnet?concurrency=4&version=3&protocol=v2",
        parity="http://a:8000?concurrency=3&protocol=v1,https://c/my%20parity",
        backup="http://a:8000,http://d/n-backup",
    )
    names = {"deployed": "m", "parity-0": "m-parity-0", "backup": "m-backup"}
    assert both == Upstream("http://a:8000", names, 3, "v1")
    assert other == Upstream("grpc://b:8001", {"deployed": "resnet"}, 4, version="3")
    assert second == Upstream("https://c", {"parity-0": "my parity"})
    assert third == Upstream("http://d", {"backup": "n-backup"})
    roles = [frozenset({"deployed"})] * 4 + [frozenset({"parity-0"})]
    assert roles_of((other, second)) == roles


def test_a_server_runs_all_models_of_a_kind_or_the_one_that_it_names() -> None:
    (_, two) = parse(2, deployed="http://a", parity="http://b")
    assert two.models == {"parity-0": "m-parity-0", "parity-1": "m-parity-1"}
    (both,) = parse(2, deployed="http://a", parity="http://a/m-parity-1,http://a/m-parity-0")
    assert both.models == {"deployed": "m", "parity-1": "m-parity-1", "parity-0": "m-parity-0"}


@pytest.mark.parametrize(
    ("deployed", "parity", "reason"),
    [
        *(
            (url, "", "is not an upstream")
            for url in ("a:8000", "", "ftp://a", "http://a/v2/models", "http://a?x=1")
        ),
        *(
            (f"http://{url}", "", "is not an upstream")
            for url in ("a?concurrency=x", "user@a", "a?protocol=v1&protocol=v1", "a?protocol=v3")
        ),
        *(
            (f"http://a{more}", "", "is not an upstream; .* 1 to 1000")
            for more in (":port", "?concurrency=0", "?concurrency=10000")
        ),
        ("http://a?concurrency=2", "http://a?concurrency=3", "with concurrency 2 and 3"),
        ("grpc://a", "", "gRPC has no usual port"),
        ("grpc://a:1?protocol=v1", "", "protocol over http and https"),
        ("http://a,http://a", "", "http://a is given twice"),
        ("http://a", "http://b,http://b/m-parity-0", "http://b is given twice"),
        ("http://a", "http://b/x", r"'http://b/x' names a model, .* m-parity-0, m-parity-1; "),
        ("http://a", "http://b/m-parity-1", "parity= runs m-parity-0, and a code needs all"),
    ],
)
def test_urls_that_cannot_be_a_fleet_are_refused(deployed: str, parity: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse(2, deployed=deployed, parity=parity or None)

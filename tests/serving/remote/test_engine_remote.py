"""The remote engine runs units on servers of the protocol, and outlives them."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
import trustme

import fake_upstream as fake
from engine_conformance import DEPLOYED, EngineConformance, Events, Failed, Fleet, Left
from fake_upstream import FakeUpstream, server_context
from fleet_servers import Parm
from onnx_models import linear_model, moody_model
from parity_models.errors import ServingError, UserError
from parity_models.models.bundle import NewModel, write_bundle
from parity_models.models.pinned_model import PinnedModel
from parity_models.serving.engine import Engine
from parity_models.serving.metrics import Metrics
from parity_models.serving.remote import engine as remote
from parity_models.serving.remote import link
from parity_models.serving.remote.engine import RemoteEngine
from parity_models.serving.remote.rest import RestClient
from parity_models.serving.remote.upstream import Fleet as Upstreams
from parity_models.serving.remote.upstream import Upstream, UpstreamError, parse_upstreams


class RemoteFleet(Fleet):
    """Two servers of the moody model, the second with the name of a parity model too."""

    failure = "answered with an error"

    def __init__(self, folder: Path, scheme: str) -> None:
        moody_model(folder / "m.onnx")
        self._model = folder / "m.onnx"
        model = NewModel(self._model, "moody")
        bundle = write_bundle(folder / "bundle", deployed=model, parity=[], code=None)
        self._scheme = scheme
        self._servers = [Parm(bundle.path) for _ in range(2)]

    def engine(self) -> RemoteEngine:
        urls = [
            server.grpc_url if self._scheme == "grpc" else server.url for server in self._servers
        ]
        upstreams = (
            Upstream(urls[0], {"deployed": "model"}),
            Upstream(urls[1], {"deployed": "model", "parity-0": "model"}),
        )
        models = dict.fromkeys(("deployed", "parity-0"), PinnedModel.of(self._model))
        # The machine may be busy.
        return RemoteEngine(
            models, Upstreams(upstreams), Metrics(), max_batch=8, unit_timeout=200.0
        )

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


# Upstreams that misbehave

WEIGHTS = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
ROW = np.arange(6, dtype=np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    linear_model(tmp_path / "m.onnx", (6,), (4,), WEIGHTS)
    return tmp_path / "m.onnx"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "HEALTH_INTERVAL", 0.05)


def engine_for(
    model: Path, *upstreams: FakeUpstream, metrics: Metrics | None = None, **options: Any
) -> RemoteEngine:
    unit_timeout = options.pop("unit_timeout", 10.0)
    concurrency = options.pop("concurrency", 1)
    each = tuple(
        Upstream(upstream.url, {"deployed": "model"}, concurrency) for upstream in upstreams
    )
    return RemoteEngine(
        {"deployed": PinnedModel.of(model)},
        Upstreams(each, **options),
        metrics or Metrics(),
        max_batch=1,
        unit_timeout=unit_timeout,
    )


@asynccontextmanager
async def using(
    model: Path, *upstreams: FakeUpstream, **options: Any
) -> AsyncIterator[tuple[RemoteEngine, Events, str]]:
    """An engine, its events, and the first instance of the first upstream."""
    count = len(upstreams) * options.get("concurrency", 1)
    engine, events = engine_for(model, *upstreams, **options), Events()
    await engine.start([DEPLOYED] * count, events)
    try:
        assert "0.0" in {(await events.arrival()).instance for _ in range(count)}
        yield engine, events, "0.0"
    finally:
        await engine.stop()


@asynccontextmanager
async def two(scheme: str) -> AsyncIterator[tuple[FakeUpstream, FakeUpstream]]:
    """Upstreams of which one may be ejected for a doubt."""
    async with FakeUpstream(scheme, WEIGHTS) as one, FakeUpstream(scheme, WEIGHTS) as other:
        yield one, other


@pytest.mark.parametrize(
    ("scheme", "mode", "fault", "reason"),
    [
        ("http", fake.NOISE, "garbage", "what cannot be read"),
        ("http", fake.SHORT, "garbage", "with 15 bytes of data, where 16 were due"),
        ("http", fake.HUGE, "garbage", "more than"),
        ("http", fake.CUT, "unreachable", "cannot be reached"),
        ("http", fake.HUNG, "timeout", "had unit 1 for more than 0.3 s"),
        ("grpc", fake.NOISE, "garbage", "what cannot be read"),
        ("grpc", fake.SHORT, "garbage", "with 15 bytes of data, where 16 were due"),
        ("grpc", fake.HUNG, "timeout", "had unit 1 for more than 0.3 s"),
    ],
)
async def test_an_upstream_that_misbehaves_is_named_and_out_until_it_is_well(
    model: Path,
    scheme: str,
    mode: str,
    fault: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    async with (
        two(scheme) as (upstream, other),
        using(model, upstream, other, metrics=metrics, unit_timeout=0.3) as (
            engine,
            events,
            instance,
        ),
    ):
        upstream.mode = mode
        engine.run(instance, 1, "deployed", [ROW])
        assert reason in await events.departure(instance)
        labels = {"upstream": upstream.url, "fault": fault}
        assert metrics.registry.get_sample_value("parm_upstream_ejections_total", labels) == 1
        assert upstream.url in caplog.text
        assert reason in caplog.text
        if mode == fake.HUNG:
            return  # it has PATIENCE to say that it is well
        asked = upstream.asked
        while upstream.asked < asked + 2:
            await asyncio.sleep(0.01)  # it is tried, and stays out
        assert events.nothing_more()
        upstream.mode = fake.WELL
        joined = await events.arrival()
        assert joined.instance != instance
        engine.run(joined.instance, 2, "deployed", [ROW])
        np.testing.assert_allclose(await events.outputs(2), ROW[np.newaxis] @ WEIGHTS, rtol=1e-5)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_errors_fail_units_and_too_many_in_a_row_eject(
    model: Path, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        two(scheme) as (upstream, other),
        using(model, upstream, other) as (engine, events, instance),
    ):
        upstream.mode = fake.ERROR
        for unit in range(1, remote.MAX_FAILURES):
            engine.run(instance, unit, "deployed", [ROW])
            detail = await events.failure(unit)
            # What it said is for the operator: a client hears it from here.
            assert (
                detail == f"instance {instance} answered with an error, which the server's log has"
            )
        assert f"{upstream.url}, instance {instance}: answered" in caplog.text
        assert "not today" in caplog.text
        upstream.mode = fake.WELL
        engine.run(instance, 10, "deployed", [ROW])
        await events.outputs(10)
        upstream.mode = fake.ERROR
        for unit in range(11, 11 + remote.MAX_FAILURES):
            engine.run(instance, unit, "deployed", [ROW])
            await events.failure(unit)
        assert "cannot run model 'model'" in await events.departure(instance)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_units_that_are_wrong_themselves_eject_nobody(model: Path, scheme: str) -> None:
    async with (
        FakeUpstream(scheme, WEIGHTS) as upstream,
        using(model, upstream) as (engine, events, instance),
    ):
        upstream.mode = fake.PICKY
        for unit in range(1, 3 * remote.MAX_FAILURES + 1):
            engine.run(instance, unit, "deployed", [ROW])
            assert "answered with an error" in await events.failure(unit)
        while upstream.asked < 1 + 3 * remote.MAX_FAILURES + 1:
            await asyncio.sleep(0.01)  # it is checked, and stays in
        engine.run(instance, 20, "deployed", [ROW / 10])
        await events.outputs(20)


async def test_an_answer_over_grpc_that_is_too_large_is_not_taken(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        FakeUpstream("grpc", WEIGHTS) as upstream,
        using(model, upstream) as (engine, events, instance),
    ):
        upstream.mode = fake.HUGE
        engine.run(instance, 1, "deployed", [ROW])
        assert "answered with an error" in await events.failure(1)
        assert "larger than max" in caplog.text


@pytest.mark.parametrize("method", ["infer", "check_ready"])
async def test_what_nobody_foresaw_ejects_the_upstream_until_it_is_over(
    model: Path, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*arguments: Any) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream) as (engine, events, instance),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(RestClient, method, fail)
            if method == "infer":
                engine.run(instance, 1, "deployed", [ROW])
            assert "nobody foresaw this" in await events.departure(instance)
            tries = caplog.text.count("Traceback")
            while caplog.text.count("Traceback") == tries:
                await asyncio.sleep(0.01)  # it is tried, and stays out
            assert events.nothing_more()
            with pytest.raises(UpstreamError, match="nobody foresaw this"):
                await engine_for(model, upstream).start([DEPLOYED], Events())
        await events.arrival()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_an_idle_upstream_that_is_not_ready_is_ejected_by_its_health_check(
    model: Path, scheme: str
) -> None:
    async with (
        two(scheme) as (upstream, other),
        using(model, upstream, other) as (_, events, instance),
    ):
        upstream.mode = fake.AWAY
        assert "ready" in await events.departure(instance)
        upstream.mode = fake.WELL
        await events.arrival()


async def test_other_weights_after_a_restart_are_not_readmitted(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        two("http") as (upstream, other),
        using(model, upstream, other) as (_, events, instance),
    ):
        upstream.mode = fake.AWAY
        await events.departure(instance)
        upstream.mode = fake.OTHER
        while "predicts something else" not in caplog.text:
            await asyncio.sleep(0.01)
        assert events.nothing_more()


async def test_concurrency_is_that_many_instances(model: Path) -> None:
    async with FakeUpstream("http", WEIGHTS) as upstream:
        engine, events = engine_for(model, upstream, concurrency=3), Events()
        await engine.start([DEPLOYED] * 3, events)
        instances = {(await events.arrival()).instance for _ in range(3)}
        assert len(instances) == 3
        upstream.mode = fake.HUNG
        for unit, instance in enumerate(sorted(instances)):
            engine.run(instance, unit, "deployed", [ROW])
        while upstream.asked < 1 + 3:  # one to check it
            await asyncio.sleep(0.01)
        await engine.stop()
        assert events.nothing_more()


async def test_a_server_without_the_extension_for_binary_data_is_talked_to_in_json(
    model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "LOG_INTERVAL", 0.0)
    async with (
        FakeUpstream("http", WEIGHTS, binary=False) as upstream,
        using(model, upstream) as (engine, events, instance),
    ):
        engine.run(instance, 1, "deployed", [ROW, -ROW / 3])
        rows = np.array([ROW, -ROW / 3])
        np.testing.assert_allclose(await events.outputs(1), rows @ WEIGHTS, rtol=1e-6)
        for unit, mode, reason in [(2, fake.SHORT, "has shape"), (3, fake.NULL, "cannot be read")]:
            upstream.mode = mode
            engine.run(instance, unit, "deployed", [ROW, ROW])
            await events.failure(unit)
            assert reason in caplog.text
        upstream.mode = fake.WELL
        engine.run(instance, 4, "deployed", [ROW])
        await events.outputs(4)
        assert events.nothing_more()


async def test_an_upstream_that_is_away_at_the_start_joins_when_it_is_there(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    async with FakeUpstream("http", WEIGHTS) as here, FakeUpstream("grpc", WEIGHTS) as away:
        away.mode = fake.AWAY
        engine, events = engine_for(model, here, away, metrics=metrics), Events()
        await engine.start([DEPLOYED] * 2, events)
        try:
            first = await events.arrival()
            assert f"upstream {away.url} says that model 'model' is not ready" in caplog.text
            labels = {"upstream": away.url, "fault": "not ready"}
            assert metrics.registry.get_sample_value("parm_upstream_ejections_total", labels) == 1
            engine.run(first.instance, 1, "deployed", [ROW])
            await events.outputs(1)
            away.mode = fake.WELL
            second = await events.arrival()
            engine.run(second.instance, 2, "deployed", [ROW])
            await events.outputs(2)
        finally:
            await engine.stop()


async def test_a_node_is_a_host_or_where_there_is_but_one_an_upstream(model: Path) -> None:
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


# Upstreams that are busy, and doubts


@pytest.mark.parametrize(
    ("scheme", "busy", "retry_after", "rest"),
    [
        ("http", 503, None, link.MIN_REST),
        ("http", 503, "1.5", 1.5),
        ("http", 429, "3600", link.MAX_REST),
        ("http", 429, "-1", link.MIN_REST),
        ("http", 503, "Fri, 31 Dec 2999 23:59:59 GMT", link.MAX_REST),
        ("http", 503, "soon", link.MIN_REST),
        ("grpc", grpc.StatusCode.RESOURCE_EXHAUSTED, None, link.MIN_REST),
        ("grpc", grpc.StatusCode.RESOURCE_EXHAUSTED, 1.5, 1.5),
        ("grpc", grpc.StatusCode.UNAVAILABLE, 1.5, 1.5),
        ("grpc", grpc.StatusCode.UNAVAILABLE, None, link.MIN_REST),
    ],
)
async def test_a_busy_upstream_is_left_alone_for_a_while_and_keeps_its_units(
    model: Path, scheme: str, busy: Any, retry_after: Any, rest: float
) -> None:
    metrics = Metrics()
    async with (
        FakeUpstream(scheme, WEIGHTS) as upstream,
        using(model, upstream, metrics=metrics, concurrency=3) as (engine, events, _),
    ):
        upstream.mode = fake.HELD
        engine.run("0.0", 1, "deployed", [ROW])
        while upstream.asked < 2:
            await asyncio.sleep(0.01)
        upstream.mode, upstream.busy, upstream.retry_after = fake.BUSY, busy, retry_after
        engine.run("0.1", 2, "deployed", [ROW])
        first = await events.next()
        assert isinstance(first, Failed)
        assert first.detail == "instance 0.1 is busy"
        assert first.busy == pytest.approx(rest, rel=0.3)
        asked = upstream.asked
        if rest > 1:
            # Its other slots take nothing meanwhile, either, and it is not even asked.
            engine.run("0.2", 3, "deployed", [ROW])
            second = await events.next()
            assert isinstance(second, Failed)
            assert 0 < second.busy <= first.busy
            assert upstream.asked == asked
        upstream.release.set()
        await events.outputs(1)
        assert events.nothing_more()
        assert engine.running() == {"0.0": None, "0.1": None, "0.2": None}
        value = metrics.registry.get_sample_value
        assert (value("parm_upstream_busy_total", {"upstream": upstream.url}) or 0) >= 1
        assert "parm_upstream_ejections_total" not in {
            sample.name for family in metrics.registry.collect() for sample in family.samples
        }


async def test_an_upstream_that_stays_busy_is_asked_less_and_less_often(model: Path) -> None:
    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream) as (engine, events, instance),
    ):
        upstream.mode = fake.BUSY
        rests = []
        for unit in range(4):
            engine.run(instance, unit, "deployed", [ROW])
            event = await events.next()
            assert isinstance(event, Failed)
            rests.append(event.busy)
            await asyncio.sleep(event.busy)
        assert rests == pytest.approx([0.05, 0.1, 0.2, 0.4], rel=0.3)
        upstream.mode = fake.WELL
        engine.run(instance, 5, "deployed", [ROW])
        await events.outputs(5)


@pytest.mark.parametrize("mode", [fake.AWAY, fake.ERROR, fake.HUNG])
async def test_no_more_than_half_are_ejected_for_doubts(
    model: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        FakeUpstream("http", WEIGHTS) as one,
        FakeUpstream("http", WEIGHTS) as two,
        FakeUpstream("http", WEIGHTS) as three,
        using(model, one, two, three, unit_timeout=0.3) as (engine, events, _),
    ):
        for each in (one, two, three):
            each.mode = mode
        gone: set[str] = set()
        for unit in range(30):
            instance = f"{unit % 3}.0"
            if instance not in gone and mode != fake.AWAY:
                engine.run(instance, unit, "deployed", [ROW])
                while isinstance(event := await events.next(), Left):
                    gone.add(event.instance)
                    if event.instance == instance:
                        break
                else:
                    assert isinstance(event, Failed)
        while "stays in use" not in caplog.text:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        while not events.nothing_more():
            event = await events.next()
            assert isinstance(event, Left)
            gone.add(event.instance)
        assert len(gone) == 1
        assert engine.running().keys() == {"0.0", "1.0", "2.0"} - gone


async def test_one_that_is_unreachable_is_out_however_many_are(model: Path) -> None:
    async with FakeUpstream("http", WEIGHTS) as one:
        other = FakeUpstream("http", WEIGHTS)
        await other.__aenter__()
        async with using(model, one, other) as (engine, events, _):
            one.mode = fake.AWAY
            await events.departure("0.0")
            await other.__aexit__(None, None, None)
            await events.departure("1.0")
            assert engine.running() == {}


async def test_what_is_recycled_is_checked_anew(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream, metrics=metrics) as (engine, events, instance),
    ):
        upstream.mode = fake.HUNG
        engine.run(instance, 1, "deployed", [ROW])
        assert engine.running() == {instance: 1}
        upstream.mode = fake.OTHER
        engine.recycle(instance, "it has answered wrongly")
        engine.recycle(instance, "it has answered wrongly")
        assert "it has answered wrongly" in await events.departure(instance)
        labels = {"upstream": upstream.url, "fault": "recycled"}
        assert metrics.registry.get_sample_value("parm_upstream_ejections_total", labels) == 1
        while "predicts something else" not in caplog.text:
            await asyncio.sleep(0.01)
        assert engine.running() == {}
        upstream.mode = fake.WELL
        joined = await events.arrival()
        assert joined.instance != instance
        engine.recycle(instance, "it is gone")
        engine.run(joined.instance, 2, "deployed", [ROW])
        await events.outputs(2)
        assert events.nothing_more()


async def test_out_of_descriptors_no_upstream_is_at_fault(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        key: Any = None
        raise aiohttp.ClientConnectorError(key, OSError(errno.EMFILE, "Too many open files"))

    monkeypatch.setattr(aiohttp.ClientConnectorError, "__str__", lambda self: "no descriptors")
    async with (
        FakeUpstream("http", WEIGHTS) as upstream,
        using(model, upstream) as (engine, events, instance),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(aiohttp.ClientSession, "request", refuse)
            engine.run(instance, 1, "deployed", [ROW])
            event = await events.next()
            assert isinstance(event, Failed)
            assert event.busy > 0
        await asyncio.sleep(event.busy)
        engine.run(instance, 2, "deployed", [ROW])
        await events.outputs(2)


# What is refused at the start


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_upstreams_that_are_not_what_they_must_be_are_refused(
    model: Path, scheme: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    async def refusal(*upstreams: FakeUpstream | Upstream) -> str:
        each = tuple(
            Upstream(one.url, {"deployed": "model"}) if isinstance(one, FakeUpstream) else one
            for one in upstreams
        )
        models = dict.fromkeys(("deployed", "parity-0"), PinnedModel.of(model))
        engine = RemoteEngine(models, Upstreams(each), Metrics(), max_batch=1)
        with pytest.raises(UpstreamError) as error:
            await engine.start([one.works for one in each], Events())
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


def test_urls_name_servers_and_models() -> None:
    both, other, second, third = parse_upstreams(
        "m",
        1,
        deployed=["http://a:8000", "grpc://b:8001/resnet?concurrency=4"],
        parity=["http://a:8000?concurrency=3", "https://c/my%20parity"],
        backup=["http://a:8000", "http://d"],
        concurrency=2,
    )
    assert both == Upstream(
        "http://a:8000", {"deployed": "m", "parity-0": "m-parity-0", "backup": "m-backup"}, 3
    )
    assert other == Upstream("grpc://b:8001", {"deployed": "resnet"}, 4)
    assert second == Upstream("https://c", {"parity-0": "my parity"}, 2)
    assert third == Upstream("http://d", {"backup": "m-backup"}, 2)
    assert both.models.keys() == {"deployed", "parity-0", "backup"}
    assert (
        Upstreams((other, second)).works
        == [frozenset({"deployed"})] * 4 + [frozenset({"parity-0"})] * 2
    )
    (_, two) = parse_upstreams("m", 2, deployed=["http://a"], parity=["http://b"])
    assert two.models == {"parity-0": "m-parity-0", "parity-1": "m-parity-1"}


@pytest.mark.parametrize(
    ("deployed", "parity", "reason"),
    [
        (["a:8000"], [], "is no upstream"),
        ([""], [], "is no upstream"),
        (["ftp://a"], [], "is no upstream"),
        (["http://a/v2/models"], [], "is no upstream"),
        (["http://a?x=1"], [], "is no upstream"),
        (["http://a?concurrency=x"], [], "is no upstream"),
        (["http://a?concurrency=0"], [], "must be from 1"),
        (["http://a?concurrency=2"], ["http://a?concurrency=3"], "with concurrency 2 and 3"),
        (["http://user@a"], [], "is no upstream"),
        (["http://a:port"], [], "is no URL"),
        (["grpc://a"], [], "has no port"),
        (["http://a", "http://a"], [], "given twice"),
        (["http://a"], ["http://b/model"], "has 2 parity models"),
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

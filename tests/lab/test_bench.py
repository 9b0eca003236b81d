"""Benchmarks measure real servers and real encoders, and leave nothing running."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands import Here
from parity_models.errors import LoadError, UserError
from parity_models.faults import Constant, FaultPlan
from parity_models.load import LoadSpec, offer_load
from parity_models.load.served import served
from parity_models.models.bundle import open_bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.server import ServeOptions
from parity_models_lab.comparison import compare
from parity_models_lab.costs.http_layers import LAYERS, measure_http_layers
from parity_models_lab.costs.overhead import measure_overhead
from parity_models_lab.plots import plot_latency
from parity_models_lab.reliability.costs import run_costs
from served import INPUTS, predictions, queries, write_linear_bundle

pytestmark = pytest.mark.slow

EQUAL_RESOURCES = PolicyChoice("equal-resources")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> LoadSpec:
    data = tmp_path_factory.mktemp("data") / "data.npz"
    rows = queries(50)
    np.savez(data, inputs=rows, labels=predictions(rows).argmax(axis=-1))
    return LoadSpec(url="", data=str(data), rate=100, count=40, warm_up=20)


def children() -> set[str]:
    """Ids of this process's children that are not over."""
    files = Path("/proc/self/task").glob("*/children")
    return {pid for file in files for pid in file.read_text().split()}


def bench(lab_here: Here, name: str, json_file: Path, *flags: str) -> dict[str, Any]:
    """What `parm-lab bench NAME --json FILE` writes, after it printed a table."""
    done = lab_here("bench", name, "--json", json_file, *flags)
    assert done.returncode == 0, done.stderr
    assert "µs" in done.stdout or "ms" in done.stdout
    numbers: dict[str, Any] = json.loads(json_file.read_text())
    return numbers


async def test_servers_are_compared_under_the_same_load_and_their_own_faults(
    bundle: Path, load: LoadSpec
) -> None:
    """Faults begin with the counted queries, on the server whose plan they are."""
    before = children()
    slow = FaultPlan(service_time=Constant(0.1))
    told: list[str] = []
    results = await compare(
        bundle,
        {
            "quick": ServeOptions(port=0, policy=EQUAL_RESOURCES),
            "slow": ServeOptions(port=0, policy=EQUAL_RESOURCES, faults=slow),
        },
        load,
        told.append,
    )
    assert told == ["quick", "slow"]
    for result in results.values():
        assert result.answered.all()
        assert (result.score == 1).all()
        np.testing.assert_array_equal(result.scheduled, results["quick"].scheduled)
    # Those sent while the server is told of its faults may escape them.
    assert results["quick"].latency[-10:].min() < 0.1
    assert (results["slow"].latency[-10:] >= 0.1).all()
    assert children() == before


async def test_a_server_that_is_not_wanted_any_more_leaves_nothing(
    bundle: Path,
) -> None:
    before = children()
    up = asyncio.Event()

    async def serve() -> None:
        async with served(bundle, ServeOptions(port=0)):
            up.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await up.wait()
    assert children() != before
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()
    assert children() == before


async def test_what_cannot_be_served_is_refused_with_the_servers_reason(
    tmp_path: Path, bundle: Path
) -> None:
    with pytest.raises(UserError, match="there is no bundle at"):
        async with served(tmp_path / "missing", ServeOptions(port=0)):
            pass
    uncoded = write_linear_bundle(tmp_path, coded=False)
    with pytest.raises(UserError, match="has no parity model"):
        async with served(uncoded, ServeOptions(port=0, policy=PolicyChoice("parity"))):
            pass


async def test_overhead_compares_answers_of_a_bundle_over_http_and_in_process(bundle: Path) -> None:
    policy = PolicyChoice("none")
    async with served(bundle, ServeOptions(policy=policy, instances=1, port=0)) as other:
        report = await measure_overhead(
            open_bundle(bundle), against=(other.url,), rounds=3, seconds=0.1
        )
    assert (report.model, report.tensor_bytes, report.calls) == ("linear", 4 * INPUTS, 300)
    assert min(report.served.p50_ms, report.direct.p50_ms) > 0
    assert report.difference_p50_ms == report.served.p50_ms - report.direct.p50_ms
    assert report.ratio_p50 == report.served.p50_ms / report.direct.p50_ms
    assert [each.clients for each in report.throughput] == [1, 1, 16, 16]
    assert report.throughput[1].url == report.throughput[3].url == other.url
    for each in report.throughput:
        assert each.requests_per_second > 0
        assert each.p50_ms > 0
        assert each.cpu_us is not None
        # A core has a million µs a second.
        assert each.cpu_us < 2e6 * (os.cpu_count() or 1) / each.requests_per_second
    # A process that does something takes some of them; ticks of a clock may miss what is little.
    assert max(each.cpu_us or 0.0 for each in report.throughput) > 10


async def test_http_layers_carry_the_same_service_of_one_process(bundle: Path) -> None:
    before = children()
    report = await measure_http_layers(open_bundle(bundle), rounds=1, seconds=0.3)
    assert report.layers == (*LAYERS, *LAYERS)
    assert len({each.url for each in report.throughput}) == len(LAYERS)
    for each in report.throughput:
        assert each.requests_per_second > 0
        assert each.cpu_us is not None
    assert set(report.versions) == {"uvicorn", "granian"}
    assert children() == before


async def test_what_a_request_costs_is_judged_by_the_numbers_beside_it(bundle: Path) -> None:
    policy = PolicyChoice("none")
    async with served(bundle, ServeOptions(policy=policy, instances=1, port=0)) as other:
        result = await run_costs(open_bundle(bundle), [other.url], rounds=1, seconds=0.3)
    ours = ["parm serve --max-batch 1, the default", "parm serve --max-batch 4"]
    servers = [*ours, other.url]
    rows = {(name, clients): numbers for name, clients, *numbers in result.rows}
    assert list(rows)[:6] == [(server, clients) for clients in ("1", "16") for server in servers]
    assert len(rows) == 6 + 2 * len(LAYERS)
    cpu, rate, share, latency, cpu_of_batches = result.claims
    assert cpu.found == f"{rows[servers[0], '16'][2]} µs"
    assert cpu.met == (float(cpu.found.removesuffix(" µs")) <= 270)
    assert rate.met == (float(rate.found.removesuffix("x")) >= 1.4)
    assert share.met == (float(share.found.removesuffix("x")) <= 270 / 363)
    assert cpu_of_batches.found == f"{rows[servers[1], '16'][2]} µs"
    assert latency.found == f"{rows[servers[0], '1'][1]} and {rows[other.url, '1'][1]} ms"


async def test_throughput_is_of_servers_that_answer(bundle: Path) -> None:
    with pytest.raises(UserError, match="no URL of http"):
        await measure_overhead(open_bundle(bundle), against=("grpc://localhost:1",))
    with pytest.raises(LoadError, match="connection to http://localhost:1 broke"):
        await measure_overhead(open_bundle(bundle), against=("http://localhost:1",), rounds=1)


def test_bench_overhead_generates_a_model_to_measure(lab_here: Here, tmp_path: Path) -> None:
    numbers = bench(lab_here, "overhead", tmp_path / "overhead.json", "--quick")
    assert numbers["model"] == "mlp"
    assert numbers["tensor_bytes"] == 3136
    assert numbers["served"]["p50_ms"] <= numbers["served"]["p99_ms"]


def test_bench_encode_sets_every_code_beside_one_copy(lab_here: Here, tmp_path: Path) -> None:
    numbers = bench(lab_here, "encode", tmp_path / "new folder" / "encode.json")
    assert numbers["query_shape"] == [3, 224, 224]
    codes = {(code["encoder"], code["k"]): code for code in numbers["codes"]}
    assert set(codes) == {(e, k) for e in ("sum", "concatenation", "stack") for k in (2, 3, 4)}
    assert numbers["ratio"] == codes["sum", 2]["ratio"]
    for code in codes.values():
        assert code["ratio"] == pytest.approx(code["encode_us"] / numbers["copy_us"])
        assert code["decode_us"] > 0


async def test_what_a_load_says_is_wrong_ends_the_comparison(
    bundle: Path, load: LoadSpec, tmp_path: Path
) -> None:
    before = children()
    np.savez(tmp_path / "wrong.npz", inputs=np.zeros((2, 3), np.float32), labels=np.zeros(2))
    wrong = LoadSpec(url="", data=str(tmp_path / "wrong.npz"), rate=1, count=1)
    with pytest.raises(UserError, match="the model takes rows of"):
        await compare(bundle, {"one": ServeOptions(port=0)}, wrong, lambda name: None)
    assert children() == before
    with pytest.raises(UserError, match="no server answers"):
        await offer_load(LoadSpec(url="http://127.0.0.1:1", data=load.data, rate=1, count=1), print)


def test_a_latency_picture_is_a_png_of_some_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    curves = {name: rng.exponential(scale, 2000) for name, scale in (("a", 5.0), ("b", 50.0))}
    plot_latency(tmp_path / "latency.png", curves, "title", "note " * 60)
    with Image.open(tmp_path / "latency.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 600

"""One experiment on several engines: the same trials, side by side in a report."""

import asyncio
import time
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from PIL import Image

from commands import Here, assert_refused
from parity_models.errors import UserError
from parity_models.faults import Constant, FaultPlan, Kill
from parity_models.load.served import BEGIN_FAULTS
from parity_models.load.wire import ModelMetadata, RequestWriter, read_answers
from parity_models.models.bundle import open_bundle
from parity_models.serving.engines import EngineChoice
from parity_models_lab.latency.engines import choose_engines
from parity_models_lab.latency.upstreams import emulated_fleet
from served import predictions, queries, write_linear_bundle
from small_experiment import SMALL, train_briefly

pytestmark = pytest.mark.slow


async def test_an_emulated_fleet_predicts_and_takes_its_time(tmp_path: Path) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path))
    roles = [frozenset({"deployed"}), frozenset({"deployed", "parity-0"})]
    faults = FaultPlan(service_time=Constant(0.05))
    deployed = bundle.manifest.deployed
    rows = queries(2)
    async with (
        emulated_fleet(bundle.path, roles, faults) as (fleet, process),
        aiohttp.ClientSession() as session,
    ):
        assert fleet.roles == roles
        assert fleet.upstreams[1].models == {"deployed": "model", "parity-0": "model-parity-0"}

        async def ask(url: str, name: str) -> float:
            model = ModelMetadata.of(name, deployed.input, deployed.output)
            writer = RequestWriter(model)
            began = time.monotonic()
            body, headers = writer.rows(rows)
            async with session.post(url + model.path, data=body, headers=headers) as response:
                assert response.status == 200
                length = response.headers["Inference-Header-Content-Length"]
                answers = read_answers(model, 2, await response.read(), length)
            np.testing.assert_allclose(answers.outputs, predictions(rows), rtol=1e-3, atol=1e-5)
            return time.monotonic() - began

        first, second = (upstream.url for upstream in fleet.upstreams)
        await ask(first, "model")
        process.tell(BEGIN_FAULTS)
        while await ask(first, "model") < 0.05:
            pass  # it has not read that yet
        took = await asyncio.gather(*(ask(second, "model-parity-0") for _ in range(3)))
        assert max(took) >= 0.15  # one unit at a time
        async with session.get(f"{first}/v2/models/model-parity-0") as response:
            assert response.status == 404


async def test_what_emulated_upstreams_cannot_suffer_is_refused(tmp_path: Path) -> None:
    for faults in (FaultPlan(kills=(Kill(0, 1.0),)), FaultPlan(computing=True)):
        with pytest.raises(UserError, match="neither killed nor busy"):
            async with emulated_fleet(tmp_path, [], faults):
                pass


def test_an_experiment_runs_on_several_engines(lab_here: Here, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL.replace("rate = 300", "rate = 50"))
    train_briefly(tmp_path / "work", tmp_path / "small.toml")
    out = tmp_path / "out" / "engines.md"
    done = lab_here(
        *("reproduce", "engines", "--figure", str(tmp_path / "small.toml"), "--out", str(out)),
        *("--engine", "local", "--engine", "remote", "--work", str(tmp_path / "work")),
    )
    assert done.returncode == 0, done.stderr
    report = out.read_text()
    rows = [line.split(" | ") for line in report.splitlines() if line.startswith("| ")][1:]
    assert [(row[1], row[2]) for row in rows] == [
        (engine, policy)
        for engine in ("local", "remote")
        for policy in ("equal resources", "parity, shared pool")
    ]
    for row in rows:
        assert row[10] == "0"  # failed
        assert float(row[11].removesuffix("%")) > 80  # accuracy
    with Image.open(out.with_suffix("") / "latency.png") as picture:
        assert picture.format == "PNG"


def test_without_ray_an_experiment_runs_on_the_other_engines() -> None:
    assert list(choose_engines([], has_ray=True)) == ["local", "remote", "ray"]
    assert list(choose_engines([], has_ray=False)) == ["local", "remote"]
    with pytest.raises(UserError, match="there is no Ray here"):
        choose_engines([EngineChoice("ray")], has_ray=False)


def test_what_cannot_be_run_is_refused(lab_here: Here) -> None:
    assert_refused(
        lab_here("reproduce", "engines", "--out", "folder"), "--out is the report's file"
    )

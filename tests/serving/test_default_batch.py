"""How many queries run as one batch where nobody says a word on it."""

import re
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from linear_bundles import CLASSES, linear_bundle
from parity_models.emulation import Constant, FaultPlan
from parity_models.models.bundle import Bundle, InferenceTimes, open_bundle
from parity_models.models.inference_time import measure_models
from parity_models.serving.deployment import Deployment
from parity_models.serving.server import ServeOptions
from served import ServerProcess
from whole_bundle import tamper

FEATURES = 6
WEIGHTS = np.random.default_rng(0).normal(size=(FEATURES, CLASSES)).astype(np.float32)


def timed(folder: Path, one: float, batch: float | None) -> Bundle:
    """A bundle that says how long its model takes."""
    bundle = linear_bundle(folder, WEIGHTS)
    times = msgspec.to_builtins(InferenceTimes(one, None, (), batch))
    tamper(bundle.path, lambda manifest: manifest.update(inference_times=times))
    return open_bundle(bundle.path)


@pytest.mark.parametrize(("batch", "default"), [(1.2, 4), (2.0, 4), (2.1, 1), (4.0, 1), (None, 1)])
def test_batches_are_run_where_four_queries_take_as_long_as_two(
    batch: float | None, default: int, tmp_path: Path
) -> None:
    assert Deployment(timed(tmp_path, 1.0, batch), ServeOptions()).max_batch == default


def test_bundles_of_which_nothing_was_measured_are_served_one_by_one(tmp_path: Path) -> None:
    assert Deployment(linear_bundle(tmp_path, WEIGHTS), ServeOptions()).max_batch == 1


def test_who_says_a_word_on_it_is_heard(tmp_path: Path) -> None:
    bundle = timed(tmp_path, 1.0, 1.0)
    assert [Deployment(bundle, ServeOptions(max_batch=each)).max_batch for each in (1, 3)] == [1, 3]


def test_times_that_a_fault_plan_gives_are_those_of_single_queries(tmp_path: Path) -> None:
    faults = FaultPlan(service_time=Constant(0.01))
    assert Deployment(timed(tmp_path, 1.0, 1.0), ServeOptions(faults=faults)).max_batch == 1


def test_bundles_that_are_made_know_it(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path, WEIGHTS)
    times = measure_models(bundle.stored(bundle.manifest.deployed), [], [])
    assert times.deployed_batch is not None
    assert times.deployed_batch > 0


@pytest.mark.slow
def test_a_server_runs_what_waits_together(tmp_path: Path) -> None:
    bundle = timed(tmp_path, 1.0, 1.0)
    asked = np.random.default_rng(1).normal(size=(40, FEATURES)).astype(np.float32)
    message = {
        "inputs": [
            {
                "name": "input",
                "datatype": "FP32",
                "shape": asked.shape,
                "data": asked.ravel().tolist(),
            }
        ]
    }
    with (
        ServerProcess(str(bundle.path), "--instances", "1") as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        response = client.post("/v2/models/model/infer", json=message).raise_for_status()
        metrics = client.get("/metrics").text
    (output,) = response.json()["outputs"]
    given = np.reshape(output["data"], output["shape"])
    assert np.allclose(given, asked @ WEIGHTS, atol=1e-4)
    assert (
        sum(map(float, re.findall(r"^parm_unit_run_seconds_count.* (\S+)$", metrics, re.M))) == 10
    )

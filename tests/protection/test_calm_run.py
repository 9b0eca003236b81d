"""What a model takes where it is served, and what simulations make of it."""

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest

from parity_models.models.bundle import open_bundle
from parity_models.models.signature import Sizes
from parity_models.protection.advice import Simulations
from parity_models.protection.calm_run import (
    SERVING,
    ServingOverheads,
    calm_rate,
    measure_serving,
)
from parity_models.protection.options import Scenario
from served import write_linear_bundle
from text_models import write_text_bundle

CORES = len(os.sched_getaffinity(0))
RUN = {1: 10.0}


def simulated(served: ServingOverheads | None) -> Simulations:
    return Simulations(Scenario(instances=4, load=0.3), 0.1, RUN, 0.1, 1, overheads=served)


def test_the_load_is_the_share_of_the_instances_here_and_no_contention() -> None:
    assert calm_rate(50.0, 1, 0.001) == (50.0, 1)
    rate, here = calm_rate(100.0, 20 * CORES, 0.001)
    assert (rate, here) == (10.0, 2 * CORES)
    rate, _ = calm_rate(1000.0, 2, 0.1)
    assert rate == pytest.approx(2.5 * CORES, rel=0.05)
    # A model of microseconds takes less than server and clients do.
    rate, _ = calm_rate(10_000.0, 2, 1e-5)
    assert rate < 0.5 * CORES / SERVING


def test_a_run_in_which_queries_queued_or_failed_is_no_calm_one() -> None:
    quick, queued = ((ms, ms) for ms in (2.0, 300.0))
    assert not ServingOverheads(0.76, quick, 300).overloaded(0.24)
    assert ServingOverheads(0.76, quick, 300, failed=1).overloaded(0.24)
    assert ServingOverheads(0.76, queued, 300).overloaded(0.24)


@pytest.mark.slow
def test_a_calm_server_tells_what_it_takes_besides_the_model(tmp_path: Path) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path, coded=False))
    said: list[str] = []
    found = measure_serving(bundle, (), 0.001, 200.0, 2, 2.0, said.append)
    assert found is not None, said
    assert said == []
    assert found.queries >= 200
    assert list(found.outside_ms) == sorted(found.outside_ms)
    assert found.outside_ms[-1] > 0


@pytest.mark.slow
def test_queries_of_several_inputs_are_asked_too_and_beside_a_running_loop(tmp_path: Path) -> None:
    bundle = open_bundle(write_text_bundle(tmp_path))
    sizes: Sizes = tuple(4 for _ in bundle.manifest.deployed.signature.axes)

    async def inside() -> ServingOverheads | None:
        return measure_serving(bundle, sizes, 0.001, 100.0, 2, 2.5, said.append)

    said: list[str] = []
    found = asyncio.run(inside())
    assert found is not None, said
    assert found.queries == 250


def test_too_few_queries_say_nothing_of_a_tail(tmp_path: Path) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path, coded=False))
    said: list[str] = []
    assert measure_serving(bundle, (), 0.001, 10.0, 2, 5.0, said.append) is None
    assert said == []


@pytest.mark.slow
def test_a_model_that_cannot_be_served_here_is_a_sentence(tmp_path: Path) -> None:
    path = write_linear_bundle(tmp_path, coded=False)
    opened = open_bundle(path)
    opened.deployed_path.unlink()
    said: list[str] = []
    assert measure_serving(opened, (), 0.001, 200.0, 2, 1.0, said.append) is None
    assert len(said) == 1
    assert said[0].startswith("the model could not be served here, to measure the overheads:")


@pytest.mark.slow
def test_what_serving_takes_is_part_of_what_is_simulated() -> None:
    alone = simulated(None).without.outcome
    nothing = (0.0, 0.0)
    held = simulated(ServingOverheads(5.0, nothing, 300)).without
    # The queue is longer, too.
    assert held.outcome.p50_ms > alone.p50_ms + 4.5
    assert held.extra_work == 0
    late = np.where(np.linspace(0, 1, 201) > 0.985, 400.0, 1.0)
    outside = simulated(ServingOverheads(0.4, tuple(late.tolist()), 300)).without.outcome
    assert outside.p50_ms == pytest.approx(alone.p50_ms + 1, abs=0.5)
    assert outside.p999_ms > 400


def test_the_rate_is_that_of_the_models_own_time() -> None:
    served = ServingOverheads(5.0, (0.0, 0.0), 300)
    assert simulated(served).scene.rate == simulated(None).scene.rate

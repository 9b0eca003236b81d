"""Work that is emulated by waiting is cancelled as real work is; what holds a worker up is not."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnx_models import linear_model
from parity_models.faults import Constant, FaultPlan, Slowdowns
from parity_models.serving.worker.wire import Cancel, Failed, Finished, InjectFaults, Unit, encode
from worker_bench import ROW, Bench

DELAY = 0.5


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    linear_model(tmp_path / "m.onnx", (4,), (2,))
    made = Bench(tmp_path / "m.onnx", key=None, allows_faults=True)
    made.serve()
    made.own()
    yield made
    made.context.destroy(0)


@pytest.mark.parametrize("computing", [False, True])
def test_a_cancelled_unit_waits_and_computes_no_more(bench: Bench, computing: bool) -> None:
    plan = FaultPlan(
        service_time=Constant(3600.0),
        computing=computing,
        slowdowns=Slowdowns(0.0, 3600.0, Constant(DELAY)),
    )
    bench.units.send(encode(InjectFaults(plan, 0, time.monotonic() - 3601)))
    began = time.monotonic()
    bench.units.send_multipart([encode(Unit("mine", 1, "deployed")), ROW])
    bench.control.send(encode(Cancel("mine", 1)))
    report = bench.until(lambda it: isinstance(it, Finished | Failed))
    assert report == Failed("mine", 1, "cancelled")
    assert time.monotonic() - began >= DELAY, "the delay is a fault, and no work of the unit's"
    bench.units.send(encode(InjectFaults(FaultPlan(), 0, 0.0)))
    bench.runs()

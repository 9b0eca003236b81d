"""The default of how many queries run as one batch."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from linear_bundles import CLASSES, linear_bundle
from parity_models.emulation import Constant, FaultPlan
from parity_models.models.bundle import InferenceTimes, open_bundle
from parity_models.models.inference_time import measure_models
from parity_models.serving.deployment import Deployment
from parity_models.serving.server import ServeOptions
from whole_bundle import tamper

WEIGHTS = np.random.default_rng(0).normal(size=(6, CLASSES)).astype(np.float32)


@pytest.mark.parametrize(("batch", "default"), [(2.0, 4), (2.1, 1), (None, 1)])
def test_batches_are_run_where_they_pay(batch: float | None, default: int, tmp_path: Path) -> None:
    path = linear_bundle(tmp_path, WEIGHTS).path
    times = msgspec.to_builtins(InferenceTimes(1.0, None, None, batch))
    tamper(path, lambda manifest: manifest.update(inference_times=times))
    bundle = open_bundle(path)
    assert Deployment(bundle, ServeOptions()).max_batch == default
    assert Deployment(bundle, ServeOptions(max_batch=3)).max_batch == 3
    faults = FaultPlan(service_time=Constant(0.01))  # in place of the measured times
    assert Deployment(bundle, ServeOptions(faults=faults)).max_batch == 1


def test_bundles_of_which_nothing_was_measured_are_served_one_by_one(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path, WEIGHTS)
    assert Deployment(bundle, ServeOptions()).max_batch == 1
    times = measure_models(bundle.stored(bundle.manifest.deployed), [])
    assert (times.deployed_batch or 0) > 0, "bundles that are made have their times measured"

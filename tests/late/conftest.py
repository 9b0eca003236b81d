"""Shared fixtures of the tests of Late."""

from pathlib import Path

import pytest

from late_targets import BundleOf
from parity_models.bundle.bundle import Bundle, open_bundle, with_measured
from parity_models.trust.evidence import DoubtCurve
from parity_models.trust.gate import Calibration, GateLevel
from served import write_linear_bundle


def bundle_of(
    folder: Path, *, doubt: float = 0.1, threshold: float = -1e9, level: float = 0.9
) -> Bundle:
    """A bundle whose backup predicts twice as much, and whose outputs all have this doubt; its gate
    lets answers above a threshold pass."""
    curve = DoubtCurve((0.0,), (doubt,), 10**6, ((10**6, round(1e6 * doubt), 1e6 * doubt),))
    gate = GateLevel(level, threshold, coverage=0.5, agreement=level)
    calibration = Calibration("classes", 0.0, "scores", 1000, 0.05, (gate,), curve=curve)
    bundle = open_bundle(write_linear_bundle(folder, coded=False, backed=True))
    return with_measured(bundle, calibration={"backup": calibration})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With `differ=0.01`, its backup answers late calls, but none at once."""
    return bundle_of(tmp_path_factory.mktemp("backed"))


@pytest.fixture
def make_bundle(tmp_path: Path) -> BundleOf:
    """Makes a bundle (see bundle_of)."""
    return lambda **options: bundle_of(tmp_path, **options)

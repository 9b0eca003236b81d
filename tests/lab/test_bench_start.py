"""How long a start takes is measured on a real one."""

from pathlib import Path

import pytest

from parity_models.errors import ServingError
from parity_models.models.bundle import open_bundle
from parity_models_lab.costs.start import measure_start
from served import write_linear_bundle

pytestmark = pytest.mark.slow


def test_a_start_is_from_the_process_to_the_answer_that_it_serves(tmp_path: Path) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path, coded=False))
    times = measure_start(bundle, instances=1, starts=1)
    assert times.median == times.seconds[0] > 0


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path, coded=False))
    (bundle.path / "manifest.json").unlink()
    with pytest.raises(ServingError, match="did not start: error: "):
        measure_start(bundle, instances=1, starts=1)

"""What is measured on Ray: real applications, by clients that count only what was answered."""

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from commands import parm_lab
from parity_models_lab.costs.ray_clients import Clients, Effort, rates
from served import write_linear_bundle


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_plain_application_and_ours_and_two_frontends_are_measured_in_turns(
    tmp_path: Path,
) -> None:
    """In a process of its own: it starts a cluster, and a process can be in one alone."""
    bundle, file = write_linear_bundle(tmp_path), tmp_path / "ray.json"
    arguments = ("--bundle", str(bundle), "--instances", "1", "--quick", "--json", str(file))
    done = subprocess.run(parm_lab("bench", "ray", *arguments), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    for carried in (report["plain"], report["coded"]):
        assert 0 < carried["p50_ms"] <= carried["p99_ms"]
        assert carried["requests_per_second"] > 0
    assert report["instances"] == 2
    for ratio in ("ratio_p50", "ratio_requests", "ratio_frontends"):
        assert f"{report[ratio]:.2f}x" in done.stdout


def test_an_application_that_answers_nothing_in_all_rounds_has_more_of_them() -> None:
    class Busy:
        """Answers at once from its fourth request on."""

        def __init__(self) -> None:
            self.asked = 0

        def infer(self, row: object) -> None:
            self.asked += 1
            time.sleep(0.1 if self.asked <= 3 else 0)

        def close(self) -> None:
            pass

    effort = Effort(clients=1, rounds=1, seconds=0.02)
    with Clients(Busy, np.zeros(1), 1) as slow, tqdm(disable=True) as progress:
        (rate,) = rates([slow], effort, progress)
    assert rate > 0

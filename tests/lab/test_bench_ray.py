"""What is measured on Ray: real applications, by clients that count only what was answered."""

import json
import subprocess
from pathlib import Path

import pytest

from commands import parm
from served import write_linear_bundle

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def test_a_plain_application_and_ours_and_two_frontends_are_measured_in_turns(
    tmp_path: Path,
) -> None:
    """In a process of its own: it starts a cluster, and a process can be in one alone."""
    bundle, file = write_linear_bundle(tmp_path), tmp_path / "ray.json"
    arguments = ("--bundle", str(bundle), "--instances", "1", "--quick", "--json", str(file))
    done = subprocess.run(parm("bench", "ray", *arguments), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    for carried in (report["plain"], report["coded"]):
        assert 0 < carried["p50_ms"] <= carried["p99_ms"]
        assert carried["requests_per_second"] > 0
    assert report["instances"] == 2
    for ratio in ("ratio_p50", "ratio_requests", "ratio_frontends"):
        assert f"{report[ratio]:.2f}x" in done.stdout

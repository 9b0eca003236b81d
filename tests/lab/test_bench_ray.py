"""What is measured on Ray: real applications, by clients that count only what was answered."""

import json
from pathlib import Path

import pytest
from tqdm import tqdm

from commands import invoke
from parity_models.lab.costs import ray_serve
from parity_models.lab.costs.ray_serve import Carried, RayReport, beside_plain
from parity_models.models.bundle import open_bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.server import ServeOptions
from served import write_linear_bundle


def test_a_plain_application_and_ours_are_measured_side_by_side(
    ray_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ROUNDS": 1, "CALLS": 3, "SECONDS": 0.3, "CLIENTS": 2}.items():
        monkeypatch.setattr(ray_serve, name, value)
    bundle = open_bundle(write_linear_bundle(tmp_path))
    options = ServeOptions(instances=1, policy=PolicyChoice("parity"))
    with tqdm(disable=True) as progress:
        for carried in beside_plain(ray_url, bundle, options, progress):
            assert 0 < carried.p50_ms <= carried.p99_ms


def test_the_command_shows_ratios_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = RayReport(
        model="mlp",
        policy="parity",
        instances=3,
        clients=16,
        ray="2",
        cores=2,
        plain=Carried(4.0, 9.0, 100.0),
        coded=Carried(3.0, 8.0, 150.0),
        ratio_p50=0.75,
        ratio_requests=1.5,
        service_time_ms=50.0,
        one_frontend_requests_per_second=50.0,
        two_frontends_requests_per_second=95.0,
        ratio_frontends=1.9,
    )
    monkeypatch.setattr(ray_serve, "measure_ray", lambda bundle, instances: report)
    file = tmp_path / "ray.json"
    result = invoke("bench", "ray", "--json", str(file))
    assert result.exit_code == 0, result.output
    for ratio in ("0.75x", "1.50x", "1.90x"):
        assert ratio in result.output
    assert json.loads(file.read_text())["ratio_frontends"] == 1.9

"""Measurements of costs ask real servers and real encoders, and leave nothing running."""

import json
import os
from pathlib import Path

import pytest

from commands import Here
from parity_models.errors import LoadError, UserError
from parity_models.load.served import served
from parity_models.models.bundle import open_bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.server import ServeOptions
from parity_models_lab.overhead import IN_PROCESS, measure_overhead
from served import write_linear_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("bundle"))


async def test_servers_and_calls_in_process_are_measured_in_turns(bundle: Path) -> None:
    policy = PolicyChoice("none")
    async with served(bundle, ServeOptions(policy=policy, instances=1, port=0)) as other:
        rows = await measure_overhead(
            open_bundle(bundle), "none", instances=1, against=(other.url,), quick=True
        )
    direct, *asked = rows
    assert direct["server"] == IN_PROCESS
    assert [row["clients"] for row in asked] == [1, 1, 16, 16]
    assert asked[1]["server"] == asked[3]["server"] == other.url
    for row in asked:
        rate, cpu = float(str(row["requests/s"])), float(str(row["CPU µs/request"]))
        assert rate > 0
        assert float(str(row["p50"])) > float(str(direct["p50"]))
        # A core has a million µs a second; ticks of its clock may miss what is little.
        assert cpu < 2e6 * (os.cpu_count() or 1) / rate
    assert max(float(str(row["CPU µs/request"])) for row in asked) > 10


async def test_servers_that_do_not_answer_are_refused(bundle: Path) -> None:
    opened = open_bundle(bundle)
    with pytest.raises(UserError, match="no URL of http"):
        await measure_overhead(opened, "none", instances=1, against=("grpc://localhost:1",))
    with pytest.raises(LoadError, match="connection to http://localhost:1 broke"):
        await measure_overhead(opened, "none", instances=1, against=("http://localhost:1",))


def test_overhead_generates_a_model_to_measure(lab_here: Here, tmp_path: Path) -> None:
    done = lab_here("overhead", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "requests/s" in done.stdout
    rows = json.loads((tmp_path / "overhead.json").read_text())["rows"]
    assert [row["clients"] for row in rows] == [1, 1, 16]

"""Trials on a slower processor: a quota in real runs, simulated cores, invalid runs."""

import os
import subprocess
import sys

import msgspec
import pytest

from parity_models.emulation import Constant
from parity_models.errors import ContentionError
from parity_models.scheduling.choice import PolicyChoice
from parity_models_lab.contention import processor
from parity_models_lab.contention.processor import ROOT, quota
from parity_models_lab.latency.reproduce_latency import why_invalid
from parity_models_lab.latency.setting import Setting
from parity_models_lab.latency.trial import Mode, Trial, simulate_trial

COMPUTE = """
import time
end = time.perf_counter() + 1
while time.perf_counter() < end:
    pass
print(time.process_time())
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="it needs root")
def test_a_group_gets_its_quota_and_leaves_nothing() -> None:
    with quota(0.2) as group:
        group.begin()
        command = (*group.prefix, sys.executable, "-c", COMPUTE)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert group.group.exists()
    assert 0.1 < float(done.stdout) < 0.4
    assert not group.group.exists()


def test_without_control_groups_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "ROOT", ROOT / "nowhere" / "at all")
    with pytest.raises(ContentionError, match="needs root and cgroup v1"), quota(0.5):
        pass


def trial(speed: float, load: float = 0.5) -> Trial:
    setting = Setting(load=load, shuffles=0, service=Constant(0.025), speed=speed)
    policy = PolicyChoice("equal-resources")
    return Trial(
        mode=Mode.SIMULATED, setting=setting, policy=policy, queries=1500, warm_up=100, seed=1
    )


def test_a_simulated_server_on_a_slower_processor_is_slower() -> None:
    ideal, full, quarter = (simulate_trial(trial(speed)) for speed in (0, 1, 0.25))
    assert ideal.p50_ms < full.p50_ms < quarter.p50_ms
    assert full.p99_ms < quarter.p99_ms
    assert ideal.lag_ms is None
    assert full.lag_ms is not None
    assert not why_invalid(full, trial(1).setting)


def test_runs_whose_server_or_load_generator_was_starved_are_invalid() -> None:
    overloaded = trial(0.25, load=0.9)
    assert why_invalid(simulate_trial(overloaded), overloaded.setting) == (
        "the server was its own bottleneck"
    )
    result = msgspec.structs.replace(simulate_trial(trial(1)), send_delay_p99_ms=1.5)
    assert why_invalid(result, trial(1).setting) == "the load generator was late"

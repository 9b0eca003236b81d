"""Settings: what real and simulated runs meet, whatever the policy."""

from math import exp

import msgspec
import pytest

from parity_models.emulation import LogNormal
from parity_models_lab.latency.setting import Setting


def test_real_and_simulated_runs_meet_the_same_kinds_of_contention() -> None:
    calm = Setting(shuffles=0)
    assert calm.contention(0, links=True) is None
    for changes, outside, drawn in (
        ({"shuffles": 4}, "network", "shuffles"),
        ({"tenants": 3}, "tenant", "neighbours"),
        ({"hogs": 1}, "hogs", "slowdowns"),
        ({"pause_every": 5.0}, "pauses", "pauses"),
    ):
        setting = msgspec.structs.replace(calm, **changes)
        contention = setting.contention(0, links=True)
        assert getattr(contention, outside) is not None
        assert getattr(setting.simulated_faults(0, 60.0), drawn) is not None
        assert getattr(setting.faults(0, 60.0), drawn) is None


def test_another_tenant_is_beside_the_same_workers_in_real_and_simulated_runs() -> None:
    setting = Setting(shuffles=0, tenants=3)
    neighbours = setting.simulated_faults(5, 60.0).neighbours
    contention = setting.contention(5, links=True)
    assert neighbours is not None
    assert contention is not None
    assert list(neighbours.workers) == contention.shared(setting.all_instances)


def test_one_instance_is_killed_every_so_many_seconds() -> None:
    kills = Setting(kill_every=2.0).faults(0, 60.0).kills
    assert [kill.at for kill in kills] == [2.0 * (i + 1) for i in range(30)]
    assert len({kill.worker for kill in kills}) > 5
    assert Setting(kill_every=2.0).faults(0, 60.0).kills == kills


def test_a_load_is_a_share_of_what_instances_carry_on_average() -> None:
    setting = Setting(load=0.5, service=LogNormal(0.02, 1.0))
    assert setting.queries_per_second == pytest.approx(0.5 * 12 / (0.02 * exp(0.5)))
    assert setting.carried == pytest.approx(0.5)

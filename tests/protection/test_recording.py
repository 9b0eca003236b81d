"""A recording is made of metrics, and simulations begin with it."""

from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from parity_models.errors import LoadError, UserError
from parity_models.load.recorder import Seen, metrics_of, recording_of
from parity_models.scheduling import DEPLOYED, Source
from parity_models.serving.metrics import Metrics
from parity_models.simulation.recording import load_contention
from recordings import recording


class Server:
    """The metrics of a server that answers with its model; `unit` seconds a query."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.metrics.read("parm_instances_up", "Instances up.", lambda: {DEPLOYED: 3})

    def answers(self, *seconds: float) -> None:
        for each in seconds:
            self.metrics.latency(Source.MODEL).observe(each)
            self.metrics.unit_run.labels(DEPLOYED, DEPLOYED).observe(each)

    def seen(self, at: float) -> Seen:
        return Seen(generate_latest(self.metrics.registry).decode(), at)


def test_what_happened_between_two_looks_is_recorded_and_nothing_before() -> None:
    server = Server()
    server.answers(*[5.0] * 50)
    looks = [server.seen(10.0)]
    server.answers(*[0.012] * 100)
    looks.append(server.seen(11.0))
    server.answers(*[0.012] * 290, *[0.4] * 10)
    looks.append(server.seen(12.0))
    found = recording_of(looks, "here")
    assert found.ended == (100, 300)
    assert found.rate == 200
    assert found.instances == 3
    runs = found.runs[DEPLOYED]
    assert runs.units == 400
    assert runs.mean == pytest.approx((390 * 0.012 + 10 * 0.4) / 400)
    assert 0.01 <= runs.median <= 0.016
    assert np.mean(runs.quantiles) == pytest.approx(runs.mean)
    assert 0.3 < runs.quantiles[-1] < 0.6
    slowdowns = found.contention.slowdowns
    assert slowdowns is not None
    assert max(slowdowns.delay.draw(Random(seed)) for seed in range(1000)) > 0.25


def test_too_little_and_what_are_no_metrics_of_a_server_is_said() -> None:
    server = Server()
    looks = [server.seen(0.0)]
    server.answers(*[0.01] * 99)
    with pytest.raises(LoadError, match="99 units of its model meanwhile, fewer than 100"):
        recording_of([*looks, server.seen(1.0)], "here")
    for text in ("", "# HELP x y\nother 1\n", "{[<", "parm_instances_up x\n"):
        with pytest.raises(LoadError, match="metrics"):
            Seen(text, 0.0)


@given(st.lists(st.floats(1e-4, 9.0), min_size=100, max_size=300))
@pytest.mark.slow
def test_the_mean_is_exact_and_quantiles_are_in_order(times: list[float]) -> None:
    server = Server()
    first = server.seen(0.0)
    server.answers(*times)
    runs = recording_of([first, server.seen(1.0)], "here").runs[DEPLOYED]
    assert runs.mean == pytest.approx(np.mean(times))
    assert np.mean(runs.quantiles) == pytest.approx(runs.mean, rel=1e-6)
    assert list(runs.quantiles) == sorted(runs.quantiles)


def test_arrivals_are_as_recorded_and_as_many_as_are_wanted() -> None:
    found = recording().arrivals(2000, 0)
    assert len(found) == 2000
    assert list(found) == sorted(found)
    in_first = np.mod(found, 2.0) < 1
    assert in_first.mean() == pytest.approx(0.2, abs=0.02)
    twice = recording().arrivals(2000, 0, rate=200)
    assert len(twice) == 2000
    assert twice[-1] == pytest.approx(found[-1] / 2, rel=0.05)


def test_delays_are_what_is_beyond_the_median_and_kills_are_as_often_as_restarts() -> None:
    plan = recording(restarts=2).contention
    assert plan.slowdowns is not None
    drawn = {plan.slowdowns.delay.draw(Random(seed)) for seed in range(50)}
    assert sorted(drawn) == pytest.approx([0.0, 0.04])
    assert plan.random_kills is not None
    assert plan.random_kills.mean_between == 4.0


def test_a_recording_is_contention_and_so_is_a_fault_plan(tmp_path: Path) -> None:
    file = tmp_path / "recording.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(recording()), indent=2))
    assert load_contention(str(file)) == recording().contention
    file.write_text('{"pauses": {"mean_between": 1, "length": {"type": "constant", "seconds": 1}}}')
    assert load_contention(str(file)).pauses is not None
    for content, said in (
        ("nothing", "is not a fault plan"),
        ('{"format": "parity-models-recording"}', "is not a recording"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=said):
            load_contention(str(file))
    with pytest.raises(UserError, match="cannot read"):
        load_contention(str(tmp_path / "none.json"))


def test_metrics_may_have_an_address_of_their_own() -> None:
    assert metrics_of("http://here:1/") == ("http://here:1", "/metrics")
    assert metrics_of("http://here:1/own/metrics") == ("http://here:1", "/own/metrics")
    for url in ("nonsense", "ftp://here", "http://"):
        with pytest.raises(UserError, match="not a server's address"):
            metrics_of(url)

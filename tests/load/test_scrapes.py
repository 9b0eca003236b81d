"""A server's metrics become frames for `parm top`."""

from prometheus_client import generate_latest

from parity_models.load.scrapes import Scrape, Scrapes, scrape
from parity_models.scheduling import Source
from parity_models.serving.metrics import Metrics
from parity_models.serving.page.frames import GateView


def test_metrics_tell_rates_and_latencies_between_looks_and_agreement() -> None:
    metrics, scrapes = Metrics(), Scrapes("digits")
    metrics.read("parm_instances_up", "Up.", lambda: {"deployed": 3, "backup": 3})
    metrics.read("parm_queue_depth", "Waiting.", lambda: {"deployed": 4, "backup": 1})
    metrics.latency[Source.MODEL].observe(9.0)  # before the first look
    metrics.gate_open.labels("backup").set(0)
    metrics.gate_agreement.labels("backup").set(0.99)
    assert scrapes.add(look(metrics, 10.0), ready=True) is None
    for _ in range(98):
        metrics.latency[Source.MODEL].observe(0.015)
    for _ in range(2):
        metrics.latency[Source.BACKUP].observe(0.25)
    metrics.failures.labels("deadline").inc(10)
    metrics.compared_answers.labels("backup").inc(50)
    metrics.disagreed_answers.labels("backup").inc(10)
    told = scrapes.add(look(metrics, 12.0), ready=True)
    assert told is not None
    assert (told.model, told.ready) == ("digits", True)
    assert (told.asked, told.failed) == (55, 5)
    assert (told.answers["model"], told.answers["backup"]) == (49, 1)
    assert told.further_instances == 3
    assert told.queued == {"deployed": 4, "backup": 1}
    assert told.answered.now is not None
    assert 10 <= told.answered.now.p50 <= 20
    assert 200 <= told.answered.now.p99 <= 300
    assert told.gates == (GateView("backup", 0.99, 1.0, False, 50, 40, 50, 40),)


def test_a_server_that_was_started_anew_is_looked_at_anew() -> None:
    metrics, scrapes = Metrics(), Scrapes("digits")
    scrapes.add(look(metrics, 9.0), ready=True)
    metrics.latency[Source.MODEL].observe(0.015)
    assert scrapes.add(look(metrics, 10.0), ready=True) is not None
    assert scrapes.add(look(Metrics(), 11.0), ready=True) is None


def look(metrics: Metrics, at: float) -> Scrape:
    return scrape(generate_latest(metrics.registry).decode(), at)

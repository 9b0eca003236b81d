"""What a server's metrics tell, as frames: less than its page does, but of any server."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from prometheus_client.parser import text_string_to_metric_families

from parity_models.load.recorder import quantiles_between
from parity_models.scheduling import DEPLOYED
from parity_models.serving.page.frames import GateView, PageFrame, Percentiles, Point, Tail
from parity_models.serving.page.latencies import MINUTES, NOW

Labelled = dict[str, Counter[str]]
"""The values of a metric by one of its labels, summed over the others."""


@dataclass(frozen=True)
class Scrape:
    """What was counted up to the time `at`, in seconds since 1970.

    `values` are by metric, then by its source or role; `latencies` are the answers in up to so
    many seconds.
    """

    at: float
    values: Labelled
    latencies: Counter[float]

    @property
    def answers(self) -> Counter[str]:
        return self.of("parm_query_latency_seconds_count")

    def of(self, metric: str) -> Counter[str]:
        return self.values.get(metric, Counter())

    def total(self, metric: str) -> float:
        return float(self.of(metric).total())


def scrape(text: str, at: float) -> Scrape:
    """What the metrics in `text`, in Prometheus's format, say. Raises ValueError for other text."""
    values: Labelled = {}
    latencies: Counter[float] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "parm_query_latency_seconds_bucket":
                latencies[float(sample.labels["le"])] += int(sample.value)
            by = sample.labels.get("source") or sample.labels.get("role") or ""
            # Counters hold floats as well; typeshed knows integers alone.
            values.setdefault(sample.name, Counter())[by] += sample.value  # type: ignore[assignment]
    return Scrape(at, values, latencies)


class Scrapes:
    """The scrapes of a server of `model` in the last minutes: frames of what changed between."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._kept: deque[Scrape] = deque()

    def add(self, new: Scrape, *, ready: bool) -> PageFrame | None:
        """How it is since the scrape before; None for the first one."""
        if self._kept and new.total("parm_query_latency_seconds_count") < self._kept[-1].total(
            "parm_query_latency_seconds_count"
        ):
            self._kept.clear()  # another server answers, or it was started anew
        self._kept.append(new)
        while self._kept[0].at < new.at - MINUTES:
            self._kept.popleft()
        if len(self._kept) < 2:
            return None
        before = self._kept[-2]
        took = new.at - before.at
        then = next(each for each in self._kept if each.at >= new.at - NOW or each is before)
        tail = Tail(_percentiles(new, then), _percentiles(new, self._kept[0]))
        failed = _rise(new, before, "parm_query_failures_total") / took
        answers = {source: count / took for source, count in (new.answers - before.answers).items()}
        asked = sum(answers.values()) + failed
        up = int(new.of("parm_instances_up")[DEPLOYED])
        busy = _rise(new, before, "parm_instance_busy_seconds_total") / took / max(1, up)
        queued = {role: int(count) for role, count in new.of("parm_queue_depth").items()}
        return PageFrame(
            at=new.at,
            model=self._model,
            policy="",
            ready=ready,
            instances=(),
            further_instances=up,
            queued=queued,
            asked=asked,
            answers=answers,
            failed=failed,
            busy=min(1.0, busy),
            answered=tail,
            alone=Tail(),
            own=0,
            bounds=0,
            gates=tuple(_gates(new, self._kept[0])),
            requests=(),
            requests_sent=0,
            events=(),
            points=(
                Point(
                    new.at, asked, sum(queued.values()), busy, answers, failed,
                    _percentiles(new, before), None,
                ),
            ),
        )  # fmt: skip


def _rise(new: Scrape, old: Scrape, metric: str) -> float:
    return max(0.0, new.total(metric) - old.total(metric))


def _percentiles(new: Scrape, old: Scrape) -> Percentiles | None:
    """Those of the answers between two scrapes."""
    total = int(new.latencies[inf] - old.latencies[inf])
    if total <= 0:
        return None
    found = quantiles_between(old.latencies, new.latencies, (0.5, 0.99, 0.999))
    return Percentiles(total, *(1e3 * seconds for seconds in found))


def _gates(new: Scrape, old: Scrape) -> Iterable[GateView]:
    compared, disagreed = (
        [each.of(f"parm_stand_in_answers_{what}_total") for each in (new, old)]
        for what in ("compared", "disagreed")
    )
    for source in sorted({*new.of("parm_gate_open"), *compared[0]}):
        now, then = (
            (int(ours[source]), int(ours[source] - theirs[source]))
            for ours, theirs in zip(compared, disagreed, strict=True)
        )
        yield GateView(
            source,
            new.of("parm_gate_agreement")[source],
            new.of("parm_gate_coverage").get(source, 1.0),
            bool(new.of("parm_gate_open").get(source, 1)),
            *now,
            now[0] - then[0],
            now[1] - then[1],
        )

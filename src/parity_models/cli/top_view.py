"""How `parm top` draws what a server says."""

from collections import deque
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from parity_models.serving.page.frames import Event, InstanceView, PageFrame, RequestView, Tail

EVENTS = 8
REQUESTS = 8
TREND = 60
"""Seconds of the trend of p99."""

_STYLES = {
    "up": "green",
    "slow": "yellow",
    "suspected": "yellow",
    "verifying": "cyan",
    "ejected": "red",
    "leaving": "dim",
    "gone": "bold red",
}
_OUTCOMES = {"answered": "green", "refused": "red", "lost": "red", "running": "cyan"}
_BARS = "▁▂▃▄▅▆▇█"


class Seen:
    """What has come: the latest frame, and what earlier ones said that is shown yet."""

    def __init__(self) -> None:
        self.frame: PageFrame | None = None
        self.events: deque[Event] = deque(maxlen=EVENTS)
        self.requests: dict[int, RequestView] = {}
        self.p99: deque[float] = deque(maxlen=TREND)
        self._last_event = 0
        self._last_point = 0.0

    def add(self, frame: PageFrame) -> None:
        """A frame has come."""
        self.frame = frame
        for event in frame.events:
            if event.number > self._last_event:
                self._last_event = event.number
                self.events.append(event)
        self.requests |= {request.unit: request for request in frame.requests}
        for unit in list(self.requests)[:-REQUESTS]:
            del self.requests[unit]
        for point in frame.points:
            if point.at > self._last_point:
                self._last_point = point.at
                self.p99.append(0.0 if point.answered is None else point.answered.p99)


def view(seen: Seen) -> RenderableType:
    """What is shown of it."""
    frame = seen.frame
    assert frame is not None
    queued = sum(frame.queued.values())
    head = Text.assemble(
        (frame.model, "bold"),
        f"  policy {frame.policy}  " if frame.policy else "  ",
        ("ready", "green") if frame.ready else ("not ready", "bold red"),
        f"\n{frame.asked:,.1f} queries/s, {queued:,} waiting, instances {frame.busy:.0%} busy, "
        f"{frame.failed:,.1f} failed/s",
    )
    return Group(
        head,
        _instances(frame),
        _latency(frame, seen),
        _answers(frame),
        _requests(seen),
        _events(seen),
    )


def _instances(frame: PageFrame) -> RenderableType:
    table = Table(title="instances", title_justify="left", box=None, pad_edge=False)
    for column in ("instance", "node", "state", "runs", "usual ms"):
        table.add_column(column, justify="right" if column == "usual ms" else "left")
    for each in frame.instances:
        state = _state(each)
        runs = each.why or each.running or "idle"
        usual = f"{each.usual_ms:.1f}" if each.usual_ms else ""
        table.add_row(each.name, each.node, Text(state, _STYLES.get(state, "")), runs, usual)
    if frame.further_instances:
        count = frame.further_instances
        text = f"and {count} more" if frame.instances else f"{count} of the model are up"
        table.add_row(text, "", "", "", "")
    return table


def _state(instance: InstanceView) -> str:
    return "slow" if instance.state == "up" and instance.slow else instance.state


def _latency(frame: PageFrame, seen: Seen) -> RenderableType:
    table = Table(title="latency, ms", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for column in ("p50", "p99", "p99.9"):
        table.add_column(column, justify="right")
    for words, tail in (("with stand-ins", frame.answered), ("without", frame.alone)):
        style = "" if tail is frame.answered else "yellow"
        for when, row in (("now", _row(tail, now=True)), ("5 min", _row(tail, now=False))):
            table.add_row(f"{when}, {words}", *row, style=style)
    return Group(table, Text(f"p99, last minute: {_trend(seen.p99)}", "dim"))


def _row(tail: Tail, *, now: bool) -> tuple[str, str, str]:
    of = tail.now if now else tail.minutes
    if of is None:
        return "-", "-", "-"
    return f"{of.p50:.1f}", f"{of.p99:.1f}", f"{of.p999:.1f}"


def _trend(values: deque[float]) -> str:
    most = max(values, default=0.0)
    if most == 0:
        return "no answers"
    steps = len(_BARS) - 1
    return "".join(_BARS[round(steps * value / most)] for value in values) + f" {most:.0f} ms"


def _answers(frame: PageFrame) -> RenderableType:
    total = sum(frame.answers.values())
    shares = [f"{source} {count / total:.1%}" for source, count in frame.answers.items() if count]
    lines = [Text("answers: " + (", ".join(shares) or "none in the last second"))]
    for gate in frame.gates:
        agreed = "not compared yet"
        if gate.compared:
            agreed = f"{gate.agreed / gate.compared:.1%} of {gate.compared:,} agree"
        text = f"{gate.source}: {agreed}"
        text += f", its gate promises {gate.level:.1%}" if gate.level else ", no gate"
        closed = "" if gate.open else "  GATE CLOSED"
        lines.append(Text.assemble(text, (closed, "bold red")))
    return Group(*lines)


def _requests(seen: Seen) -> RenderableType:
    table = Table(title="stand-ins", title_justify="left", box=None, pad_edge=False)
    for column in ("stand-in", "on", "for queries", "outcome", "ms"):
        table.add_column(column, justify="right" if column == "ms" else "left")
    for each in reversed(seen.requests.values()):
        queries = ", ".join(map(str, each.queries[:6]))
        outcome = Text(each.outcome, _OUTCOMES.get(each.outcome, "dim"))
        table.add_row(each.role, each.instance, queries, outcome, f"{each.ms:.1f}")
    return table


def _events(seen: Seen) -> RenderableType:
    lines = [Text("events", "italic")]
    for event in reversed(seen.events):
        at = datetime.fromtimestamp(event.at).strftime("%H:%M:%S")
        lines.append(Text(f"{at} {event.text}"))
    return Group(*lines)

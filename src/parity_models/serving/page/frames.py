"""What watchers of a server are sent: frames, as JSON.

A frame says how everything is now, and what is new since the one before; the first one that a
watcher gets has all that is remembered. What is new may be told twice: points are known by their
time, requests by their unit, events by their number. Times are in seconds, latencies and run times
in milliseconds.
"""

from msgspec import Struct


class Percentiles(Struct, frozen=True):
    """Of `count` latencies, in milliseconds."""

    count: int
    p50: float
    p99: float
    p999: float


class Tail(Struct, frozen=True):
    """Latencies of the last seconds, and of the last minutes; None where there were none."""

    now: Percentiles | None = None
    minutes: Percentiles | None = None


class InstanceView(Struct, frozen=True):
    """An instance in its place: `place` stays the same where another comes for one that is gone.

    `state` is up, suspected, ejected, verifying or gone. It is `slow` if its units take longer than
    those of others. `running` is the role of its unit, which it has had for `since_ms`; units of
    that role take it `usual_ms`. `why` is said of one that is gone.
    """

    place: int
    name: str
    node: str
    roles: tuple[str, ...]
    state: str
    slow: bool = False
    running: str = ""
    since_ms: float = 0.0
    usual_ms: float = 0.0
    why: str = ""


class RequestView(Struct, frozen=True):
    """A request to a stand-in, or a copy: a unit of redundant work.

    `queries` are those that it may answer: the members of its coding groups, or its own; `answered`
    those that it did. `outcome` is running, answered, late (its queries had their answers when it
    ended), compared (it ran for nobody but a comparison), refused (by a gate or the screen),
    cancelled or lost.
    """

    unit: int
    role: str
    instance: str
    queries: tuple[int, ...]
    answered: tuple[int, ...]
    outcome: str
    ms: float


class Event(Struct, frozen=True):
    """Something that an operator should know, `at` seconds since 1970."""

    number: int
    at: float
    kind: str
    text: str


class GateView(Struct, frozen=True):
    """How often a stand-in agrees with the model, against the `level` that its gate promises.

    Without a gate, `level` is 0 and `open` is true. `agreed` of `compared` answers said what the
    model said: lately, and since the server's start.
    """

    source: str
    level: float
    coverage: float
    open: bool
    compared: int
    agreed: int
    compared_lately: int
    agreed_lately: int


class Point(Struct, frozen=True):
    """One second of the charts, which ended at `at`. Rates are per second; `busy` is a share."""

    at: float
    asked: float
    queued: int
    busy: float
    answers: dict[str, float]
    failed: float
    answered: Percentiles | None
    alone: Percentiles | None


class PageFrame(Struct, frozen=True):
    """How the server is, and what is new.

    `answered` are the latencies of all answers. `alone` is what they would have been without
    stand-ins, as far as it is known: from the model's own answers to some of the queries that a
    stand-in answered. Of these, `own` have come in the last minutes; `bounds` are of queries of
    which it is only known that the model would have taken longer.
    """

    at: float
    model: str
    policy: str
    ready: bool
    instances: tuple[InstanceView, ...]
    further_instances: int
    queued: dict[str, int]
    asked: float
    answers: dict[str, float]
    failed: float
    busy: float
    answered: Tail
    alone: Tail
    own: int
    bounds: int
    gates: tuple[GateView, ...]
    requests: tuple[RequestView, ...]
    requests_sent: int
    events: tuple[Event, ...]
    points: tuple[Point, ...]

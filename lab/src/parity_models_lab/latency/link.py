"""A query's way to a machine through a link that background transfers fill.

A link is a queue of limited length that is served at the link's rate, first in, first out; what
does not fit is dropped. Transfers and queries are TCP connections. A transfer's window, which is
what stands in the queue, grows until the queue is full, and shrinks to BETA of it (CUBIC, RFC
9438). A query longer than its own connection's window takes several ways through the queue; one
that does not fit is lost as a whole, probed after two round trips (RFC 8985), and sent again, one
segment more in each round (RFC 6937), or anew after the retransmission timeout.
`lab/notes/links.md` says how this was found and what it leaves out.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from random import Random
from typing import Any

from parity_models.roles import DEPLOYED
from parity_models.simulation.simulation import Driver, Instance
from parity_models_lab.contention import BURST, QUEUE, RATE, Leg, Traffic

SEGMENT, FRAME = 1448, 1514
"""Bytes of data in a segment of TCP, and of the frame that it takes."""

DATA_RATE, LIMIT = RATE / 8 * SEGMENT / FRAME, QUEUE * SEGMENT / FRAME
"""Of a queue that is counted in bytes of data: those that it lets through a second, and holds."""

FIRST_WINDOW = 10
"""Segments that a connection begins with, and again after a rest (RFC 6928)."""

LEAST_WINDOW = 2

BETA = 0.7
"""The share of a window that is left after a loss (RFC 9438, section 4.6)."""

FRIENDLY = 3 * (1 - BETA) / (1 + BETA)
"""Segments by which a window grows in a round trip in the Reno-friendly region (section 4.3)."""

PROBING = 1 / 20
"""Share by which it grows in a round trip before its first loss (Linux, tcp_cubic.c)."""

SLOW_START = 0.004
"""Seconds of additional delay that end slow start (HyStart++, RFC 9406), ..."""

DOUBLED = 2
"""... which are noticed one round later, when the window has doubled."""

PARCEL, FIRST_PARCEL = 45, 6
"""Segments that the link is left to cut up, at most: half a window, and 64 kB; but the first 8 kB
of a message, which ZeroMQ hands on by themselves."""

PARCELS = 5
"""The number of parcels of a transfer's window: the link serves whole parcels."""

PROBE = 0.006
"""Seconds, on top of two round trips, until a lost tail is probed: the kernel's least, and what
its timers are late."""

TIMEOUT = 0.21
"""Seconds of the least retransmission timeout, with the kernel's clock."""

CONNECT = 0.02
"""Seconds for which a transfer is being connected."""

STEP, TICK = 0.1, 1e-6
"""Seconds for which the growth of windows is taken to be constant, at most and at least."""


@dataclass(slots=True)
class _Transfer:
    """One that comes in until `end`; `window` in bytes. `full`: it has lost something."""

    end: float
    window: float
    full: bool = False


class Link:
    """The way to one machine: its queue, and the connection that queries come by. Times of asking
    must not decrease."""

    def __init__(self, traffic: Traffic, machine: int, seed: int) -> None:
        self._traffic, self._machine = traffic, machine
        self._random = Random(f"{seed}/link {machine}")
        self._now = 0.0
        self._asked = -1.0
        self._starting: deque[Leg] = deque()
        self._running: list[_Transfer] = []
        # What queries have in the queue: when it is through, and bytes.
        self._own: deque[tuple[float, int]] = deque()
        self._through = float("-inf")
        # The connection: its window in segments, where slow start ends, its round trips, and when
        # it was used last.
        self._window = float(FIRST_WINDOW)
        self._threshold = float("inf")
        self._round_trip = self._used = 0.0

    def arrival(self, now: float, size: int) -> float:
        """Return the arrival of the last of `size` bytes that are sent now."""
        self._rest(now)
        unsent = ceil(size / SEGMENT)
        flying: deque[tuple[float, int, int]] = deque()
        time, sent, out, widest, lost = now, 0, 0, 0, 0
        while unsent or flying:
            window = int(self._window)
            while unsent and out < window:
                most = max(1, window // 2) if sent else FIRST_PARCEL
                parcel = min(unsent, window - out, most, PARCEL)
                sent += parcel
                unsent -= parcel
                out += parcel
                if out > widest:
                    widest = out
                there = self._pass(time, parcel)
                if there is None:
                    lost += parcel
                else:
                    flying.append((there, parcel, lost))
            if not flying:
                break
            time, parcel, missing = flying.popleft()
            if missing:  # its acknowledgement tells that others before it are
                time = self._recover(time, parcel, lost + unsent)
                self._used = max([time, *(there for there, _, _ in flying)])
                return self._used
            self._grow(parcel, widest)
            out -= parcel
        self._used = self._recover_tail(time, lost + unsent) if lost else time
        return self._used

    def message(self, now: float) -> float:
        """Return the arrival of a message of one segment sent now by a connection of its own."""
        timeout = TIMEOUT
        while (there := self._pass(now, 1)) is None:
            now += timeout
            timeout *= 2
        return there

    # The queue

    def _advance(self, now: float) -> None:
        """Let the transfers' windows grow until `now`, as they start and end."""
        if now == self._asked:
            return  # for another parcel
        self._asked = now
        self._starting += self._traffic.to(self._machine, now)
        if not self._running and not self._starting:
            self._now = max(self._now, now)
            return
        while True:
            starts = self._starting[0].start + CONNECT if self._starting else now
            until = min([now, starts, *(each.end for each in self._running)])
            self._let_grow(until)
            if any(each.end <= until for each in self._running):
                self._through = max(self._through, until + self._queued() / DATA_RATE)
                self._running = [each for each in self._running if each.end > until]
            if self._starting and starts <= until:
                self._start(self._starting.popleft().end)
            elif until >= now:
                return

    def _start(self, end: float) -> None:
        most = BURST + DOUBLED * SLOW_START * DATA_RATE
        window = min(self._random.uniform(BURST / 2, most), LIMIT - self._queued())
        self._running.append(_Transfer(end, max(window, LEAST_WINDOW * SEGMENT)))

    def _let_grow(self, until: float) -> None:
        while self._running and self._now < until:
            while self._own and self._own[0][0] <= self._now:
                self._own.popleft()
            queued = self._queued()
            room = LIMIT - queued - sum([size for _, size in self._own])
            if room < 1:
                self._shrink()
                step = queued / DATA_RATE  # which is when the loss is known
            else:
                growth = [self._growth(each, queued) for each in self._running]
                step = min(room / sum(growth), STEP)
                if self._own:
                    step = min(step, self._own[0][0] - self._now)
                step = min(step, until - self._now)
                for each, by in zip(self._running, growth, strict=True):
                    each.window += by * step
            self._now += max(step, TICK)
        self._now = max(self._now, until)

    def _growth(self, transfer: _Transfer, queued: float) -> float:
        """Bytes a second by which its window grows; a round trip takes as long as the queue."""
        by = FRIENDLY * SEGMENT if transfer.full else PROBING * transfer.window
        return by * DATA_RATE / queued

    def _shrink(self) -> None:
        """The queue is full: the transfer that has most in it loses something."""
        most = max(self._running, key=lambda each: each.window)
        most.window = max(BETA * most.window, LEAST_WINDOW * SEGMENT)
        most.full = True

    def _queued(self) -> float:
        return sum([each.window for each in self._running])

    def _pass(self, time: float, segments: int) -> float | None:
        """Return the arrival of these segments, sent as one parcel; None if they are lost."""
        self._advance(time)
        size = segments * SEGMENT
        takes = size / DATA_RATE
        if not self._running:
            self._through = max(self._through, time - BURST / DATA_RATE) + takes
            return max(time, self._through)
        queued = self._queued()
        if queued + sum([own for through, own in self._own if through > time]) + size > LIMIT:
            return None
        # The link serves whole parcels, and is somewhere in one.
        ahead = queued * (1 - self._random.random() / PARCELS)
        self._through = max(time + ahead / DATA_RATE, self._through) + takes
        self._own.append((self._through, size))
        self._round_trip += (self._through - time - self._round_trip) / 8
        return self._through

    # The connection

    def _rest(self, now: float) -> None:
        """After a rest the window is halved for each timeout that has passed."""
        rested = int((now - self._used) / TIMEOUT)
        if rested > 0:
            least = min(self._window, FIRST_WINDOW)
            self._window = max(least, self._window / 2 ** min(rested, 10))

    def _grow(self, acknowledged: int, widest: int) -> None:
        """The window grows where it has been made use of."""
        if self._window < self._threshold:
            if self._window < 2 * widest:
                self._window += acknowledged
        elif widest >= int(self._window):
            self._window += FRIENDLY * acknowledged / self._window

    def _recover_tail(self, time: float, missing: int) -> float:
        """Send one of the last segments again, as no acknowledgement shows that they are lost."""
        probed = time + 2 * self._round_trip + PROBE
        there = self._pass(probed, 1)
        if there is not None:
            return self._recover(there, 1, missing - 1)
        return self._recover(probed + TIMEOUT, 0, missing)

    def _recover(self, time: float, acknowledged: int, missing: int) -> float:
        """Return the arrival of the `missing` segments, sent from `time` on. At first as many can
        be sent as were `acknowledged`; one more in each round."""
        self._threshold = self._window = max(float(LEAST_WINDOW), BETA * self._window)
        burst, timeout, anew = max(acknowledged, 1), TIMEOUT, not acknowledged
        while missing:
            burst = min(burst, missing, int(self._window), PARCEL)
            there = self._pass(time, burst)
            if there is None:
                time += timeout
                timeout *= 2
                burst, anew = 1, True
                self._window = max(float(LEAST_WINDOW), BETA * self._window)
            else:
                time, timeout = there, TIMEOUT
                missing -= burst
                burst = 2 * burst if anew else burst + 1
        return time


class Links:
    """The links of one simulated run; instance i is machine i of `machines`. `row` is the size of a
    query in bytes, by role; of a role that is not named, as for DEPLOYED."""

    def __init__(self, shuffles: int, machines: int, row: Mapping[str, int], seed: int) -> None:
        traffic = Traffic(shuffles, machines, seed)
        self.links = [Link(traffic, machine, seed) for machine in range(machines)]
        self.row = row


class DriverOnLinks(Driver):
    """A driver in which units and messages travel over `links`, if there are any."""

    def __init__(self, links: Links | None, *simulated: Any) -> None:
        self._links = links
        super().__init__(*simulated)

    def _there(self, instance: Instance, role: str, rows: int) -> float:
        if self._links is None:
            return self._now
        row = self._links.row
        size = rows * row.get(role, row[DEPLOYED])
        return self._links.links[instance.slot].arrival(self._now, size)

    def _heard(self, instance: Instance) -> float:
        if self._links is None:
            return self._now
        return self._links.links[instance.slot].message(self._now)

"""What servers carry: requests per second, and processor time per request, of bare clients.

Closed-loop clients in one thread, each with a socket that is kept open, send the same request over
and over. All servers are measured in turns within one run, for what else the machine does hits
them alike then; ratios between them mean something, absolute numbers less.
"""

import re
import selectors
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from urllib.parse import urlsplit

import msgspec
import numpy as np

from parity_models.errors import LoadError
from parity_models_lab.processes import cpu_seconds

CLIENTS = (1, 16)
ROUNDS = 6
SECONDS = 0.7
"""How long a round of each server lasts."""
WARM_UP = 0.3
TIMEOUT = 10.0

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Throughput(msgspec.Struct, frozen=True):
    """What `clients` clients got from the server at `url`. `cpu_us`: of all its processes, per
    request; None where they are not to be seen. Medians over rounds."""

    url: str
    clients: int
    requests_per_second: float
    p50_ms: float
    cpu_us: float | None


@dataclass(frozen=True)
class MeasuredServer:
    """A server, the whole request that is sent to it, and its processes, if they are known."""

    url: str
    request: bytes
    pids: frozenset[int]


@dataclass
class _Rounds:
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def measure_throughput(
    targets: Sequence[MeasuredServer], *, rounds: int = ROUNDS, seconds: float = SECONDS
) -> list[Throughput]:
    """Measure all targets with each number of clients, in turns; each for `seconds` a round.

    Raises LoadError if one refuses, breaks a connection or takes too long.
    """
    measured = {(target.url, count): _Rounds() for count in CLIENTS for target in targets}
    for target in targets:
        _ask(target, max(CLIENTS), WARM_UP)
    for turn in range(rounds):
        for count in CLIENTS:
            # Every other time the other way round, as what is warm may favour the second.
            for target in targets if turn % 2 == 0 else targets[::-1]:
                of = measured[target.url, count]
                before = cpu_seconds(target.pids)
                started = perf_counter()
                latencies = _ask(target, count, seconds)
                of.rates.append(len(latencies) / (perf_counter() - started))
                of.cpu.append((cpu_seconds(target.pids) - before) / len(latencies))
                of.latencies.append(float(np.median(latencies)))
    known = {target.url: bool(target.pids) for target in targets}
    return [
        Throughput(
            url,
            count,
            float(np.median(of.rates)),
            float(np.median(of.latencies)) * 1e3,
            float(np.median(of.cpu)) * 1e6 if known[url] else None,
        )
        for (url, count), of in measured.items()
    ]


class _Connection:
    """One client's connection, and what it has read of an answer."""

    def __init__(self, target: MeasuredServer) -> None:
        at = urlsplit(target.url)
        self.socket = socket.create_connection((at.hostname, at.port), timeout=TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = target.request
        self._received = b""
        self._size = 0
        self._sent = 0.0

    def send(self) -> None:
        self._sent = perf_counter()
        self.socket.sendall(self._request)

    def receive(self) -> float | None:
        """The latency in seconds, once the answer is whole."""
        received = self.socket.recv(1 << 20)
        if not received:
            raise LoadError("the server closed the connection")
        self._received += received
        if not self._size:
            self._size = self._whole()
        if not self._size or len(self._received) < self._size:
            return None
        self._received, self._size = b"", 0
        return perf_counter() - self._sent

    def _whole(self) -> int:
        """The size of the whole answer; 0 while its head is not there."""
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return 0
        length = _LENGTH.search(self._received, 0, head)
        if length is None or b" 200 " not in self._received[:20]:
            raise LoadError(f"the server answered {self._received[:300]!r}")
        return head + len(b"\r\n\r\n") + int(length[1])


def _ask(target: MeasuredServer, clients: int, seconds: float) -> list[float]:
    """Latencies of `clients` closed-loop clients for so long, in seconds."""
    latencies: list[float] = []
    connections: list[_Connection] = []
    try:
        for _ in range(clients):
            connections.append(_Connection(target))
        with selectors.DefaultSelector() as selector:
            for each in connections:
                selector.register(each.socket, selectors.EVENT_READ, each)
                each.send()
            end = perf_counter() + seconds
            while perf_counter() < end:
                ready = selector.select(TIMEOUT)
                if not ready:
                    raise LoadError(f"{target.url} did not answer within {TIMEOUT:g} s")
                for key, _ in ready:
                    latency = key.data.receive()
                    if latency is not None:
                        latencies.append(latency)
                        key.data.send()
    except OSError as error:
        raise LoadError(f"a connection to {target.url} broke: {error}") from error
    finally:
        for each in connections:
            each.socket.close()
    if not latencies:
        raise LoadError(f"{target.url} answered nothing within {seconds:g} s")
    return latencies

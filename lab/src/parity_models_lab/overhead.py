"""The cost of serving a request: requests/s, latency and processor time, by closed-loop clients.

All servers, and calls to ONNX Runtime in this process, take turns within one run, so that other
work of the machine meets all of them alike. Compare ratios, not absolute numbers.
"""

import gc
import re
import selectors
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from numpy.typing import NDArray
from tqdm import tqdm

from parity_models.codes import CodeSpec
from parity_models.errors import LoadError, UserError
from parity_models.load.served import served
from parity_models.models.bundle import Bundle, NewModel, write_bundle
from parity_models.models.inference_time import measure_models
from parity_models.models.onnx_model import OnnxModel
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.client import model_path
from parity_models.serving.protocol import write_request
from parity_models.serving.server import ServeOptions
from parity_models_lab.results import Row

CLIENTS = (1, 16)
ROUNDS = 20
SECONDS = 0.7
"""The length of a round of each server."""
CALLS = 100
"""Calls in process in a round."""
TIMEOUT = 10.0
INPUT_SHAPE, OUTPUT_SHAPE = (784,), (10,)
"""Of the generated model: a query is 3 kB of float32, as the published MLP takes."""
IN_PROCESS = "in process"

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """A server, the whole request that is sent to it, and its processes, if they are known."""

    url: str
    request: bytes
    processes: Sequence[psutil.Process]

    def cpu_seconds(self) -> float:
        """Return the user and system time of its processes so far."""
        times = [process.cpu_times() for process in self.processes if process.is_running()]
        return sum(each.user + each.system for each in times)


@dataclass
class _Rounds:
    """The latencies, requests/s and processor time of a target, by round."""

    latencies: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def row(self, name: str, clients: int) -> Row:
        p50, p99 = (np.quantile(self.latencies, [0.5, 0.99]) * 1e3).tolist()
        return {
            "server": name,
            "clients": clients,
            "p50": p50,
            "p99": p99,
            "requests/s": float(np.median(self.rates)),
            "CPU µs/request": float(np.median(self.cpu)) * 1e6 if self.cpu else None,
        }


async def measure_overhead(
    bundle: Bundle | None,
    policy: str,
    *,
    instances: int,
    against: Sequence[str] = (),
    quick: bool = False,
) -> list[Row]:
    """Serve a bundle on the local engine, and compare it with other servers of the same model.

    Args:
        bundle: What to serve; None: a generated MLP and parity model with random weights.
        policy: The name of the server's policy.
        instances: Instances of the deployed model.
        against: URLs of servers that run already, http://HOST:PORT or http://HOST:PORT/MODEL.
        quick: Take fewer and shorter turns.

    Returns:
        A row for calls in process, then one for each number of clients and server; times in ms.

    Raises:
        UserError: A URL is not one of http.
        LoadError: A server refuses, breaks a connection or takes too long.

    """
    with generated(bundle) as bundle:
        row = _row_for(bundle)
        others = [_target(url, bundle, row) for url in against]
        options = ServeOptions(
            policy=PolicyChoice(policy), instances=instances, port=0, share_groups=True
        )
        async with served(bundle.path, options) as server:
            ours = _target(server.url, bundle, row)
            # Nothing else is due on this event loop, so the measurement may block it.
            effort = (3, 0.1) if quick else (ROUNDS, SECONDS)
            return _measure(OnnxModel(bundle.deployed_path), row, [ours, *others], *effort)


def _measure(
    model: OnnxModel, row: NDArray[Any], targets: Sequence[Target], rounds: int, seconds: float
) -> list[Row]:
    direct = _Rounds()
    measured = {(target.url, count): _Rounds() for count in CLIENTS for target in targets}
    for target in targets:
        _ask(target, max(CLIENTS), seconds)
    queries = {model.signature.inputs[0].name: row[np.newaxis]}
    gc.freeze()
    for turn in tqdm(range(rounds), desc="overhead", unit="round"):
        for _ in range(CALLS):
            began = perf_counter()
            model(queries)
            direct.latencies.append(perf_counter() - began)
        direct.rates.append(CALLS / sum(direct.latencies[-CALLS:]))
        for count in CLIENTS:
            # Every other time the other way round, as a warm cache may favour the second.
            for target in targets if turn % 2 == 0 else targets[::-1]:
                of = measured[target.url, count]
                before, began = target.cpu_seconds(), perf_counter()
                latencies = _ask(target, count, seconds)
                of.rates.append(len(latencies) / (perf_counter() - began))
                of.latencies += latencies
                if target.processes:
                    of.cpu.append((target.cpu_seconds() - before) / len(latencies))
    rows = [rounds.row(url, count) for (url, count), rounds in measured.items()]
    return [direct.row(IN_PROCESS, 1), *rows]


def _row_for(bundle: Bundle) -> NDArray[Any]:
    tensor = bundle.manifest.deployed.signature.input
    return np.random.default_rng(0).random(tensor.shape).astype(tensor.dtype)


def _target(url: str, bundle: Bundle, row: NDArray[Any]) -> Target:
    """Return a server with the whole request for one row, head and body."""
    at = urlsplit(url)
    if at.scheme != "http" or at.hostname is None:
        raise UserError(f"{url} is not a URL of http, over which servers are compared")
    name = at.path.strip("/") or bundle.manifest.name
    body, head = write_request({bundle.manifest.deployed.signature.input.name: row[np.newaxis]})
    headers = {"Host": at.netloc, **head, "Content-Length": str(len(body))}
    lines = [f"POST {model_path(name)}/infer HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    request = "\r\n".join([*lines, "", ""]).encode() + body
    here = at.hostname in ("localhost", "127.0.0.1", "::1")
    return Target(f"http://{at.netloc}", request, _processes_at(at.port or 80) if here else ())


def _processes_at(port: int) -> list[psutil.Process]:
    """Return this machine's processes that listen on a TCP port, with their descendants."""
    holders = {
        psutil.Process(each.pid)
        for each in psutil.net_connections("tcp")
        if each.pid and each.status == psutil.CONN_LISTEN
        if each.laddr and each.laddr.port == port
    }
    return list(holders.union(*(each.children(recursive=True) for each in holders)))


class _Connection:
    """One client's connection, and the part of an answer that it has read."""

    def __init__(self, target: Target) -> None:
        at = urlsplit(target.url)
        self.socket = socket.create_connection((at.hostname, at.port), timeout=TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = target.request
        self._received = b""
        self._sent = 0.0

    def send(self) -> None:
        self._sent = perf_counter()
        self.socket.sendall(self._request)

    def receive(self) -> float | None:
        """Return the latency in seconds once the answer is whole."""
        received = self.socket.recv(1 << 20)
        if not received:
            raise LoadError("the server closed the connection")
        self._received += received
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return None
        length = _LENGTH.search(self._received, 0, head)
        if length is None or b" 200 " not in self._received[:20]:
            raise LoadError(f"the server answered {self._received[:300]!r}")
        if len(self._received) < head + len(b"\r\n\r\n") + int(length[1]):
            return None
        self._received = b""
        return perf_counter() - self._sent


def _ask(target: Target, clients: int, seconds: float) -> list[float]:
    """Return the latencies of `clients` closed-loop clients for so long, in seconds."""
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


@contextmanager
def generated(bundle: Bundle | None) -> Iterator[Bundle]:
    """The bundle, or a generated MLP and parity model while the context lasts."""
    if bundle is not None:
        yield bundle
        return
    # Imported here: torch is not needed to measure a bundle.
    from parity_models.models.export import export, floats
    from parity_models.models.networks import build_network

    deployed, parity = (
        NewModel(
            export(build_network("mlp", INPUT_SHAPE, OUTPUT_SHAPE), [floats(INPUT_SHAPE)]), "mlp"
        )
        for _ in range(2)
    )
    with tempfile.TemporaryDirectory(prefix="parm-lab-") as folder:
        yield write_bundle(
            Path(folder, "bundle"),
            deployed=deployed,
            parity=[parity],
            code=CodeSpec("sum", "subtraction", k=2),
            inference_times=measure_models(deployed, [parity], []),
        )

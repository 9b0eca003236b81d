"""The cost of a request, ours and Triton's: processor time, requests/s, latency.

Closed-loop clients ask servers in turns within one run, so that other work of the machine meets all
of them alike. Compare ratios, not absolute numbers.
"""

import gc
import os
import re
import selectors
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
from tqdm import tqdm

from parity_models.codes import CodeSpec
from parity_models.errors import LoadError, UserError
from parity_models.models.bundle import Bundle, NewModel, write_bundle
from parity_models.models.inference_time import measure_models
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.client import model_path
from parity_models.serving.grpc import inference_pb2 as pb
from parity_models.serving.protocol import write_request
from parity_models.serving.remote.export import export_repository
from parity_models.serving.server import ServeOptions
from parity_models_lab.results import Row
from parity_models_lab.served import served

ROUNDS, SECONDS = 13, 0.7
"""Rounds of each case, and the length of one of each server."""
TIMEOUT = 10.0
INSTANCES = 2
MLP, IMAGE = (784,), (3, 224, 224)
"""Shapes of a query of the generated models: 3 kB of float32, as the published MLP takes, and 600
kB, as most networks for images do."""
OUTPUT_SHAPE = (10,)

TRITON, BACKUP = "Triton", "adaptive, backup"
OURS: Mapping[str, Mapping[str, Any]] = {
    "none": {"policy": PolicyChoice("none")},
    "adaptive": {"policy": PolicyChoice("adaptive")},
    "max-batch 1": {"policy": PolicyChoice("adaptive"), "max_batch": 1},
    BACKUP: {"policy": PolicyChoice("adaptive")},
}
"""The options of this software's servers; the last serves a bundle with a backup."""

_ROOT = Path(__file__).resolve().parents[3]
TRITON_PROGRAM = _ROOT / "tests" / "servers" / "triton.py"
"""Becomes a Triton; see there."""
_INFER = "/inference.GRPCInferenceService/ModelInfer"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """So many closed-loop clients send one row of this shape a request, over HTTP or gRPC."""

    shape: tuple[int, ...]
    clients: int
    protocol: str = "REST"

    def __str__(self) -> str:
        size = "" if self.shape == MLP else ", 600 kB"
        return f"{self.clients} {self.protocol}{size}"


CASES = (Case(MLP, 1), Case(MLP, 16), Case(MLP, 16, "gRPC"), Case(IMAGE, 8))


@dataclass(frozen=True)
class Target:
    """A server of the bundle's model at these addresses (HOST:PORT), and its processes."""

    name: str
    address: str
    grpc_address: str
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


async def measure_overhead(*, quick: bool = False) -> list[Row]:
    """Serve generated models by Triton and by this software, and compare the cost of a request.

    Args:
        quick: Take fewer and shorter turns.

    Returns:
        A row for each case and server: medians over rounds, of which the last two are ratios to
        Triton's.

    Raises:
        UserError: Triton is not installed.
        LoadError: A server refuses, breaks a connection or takes too long.

    """
    if not (_ROOT / ".servers" / "triton").exists():
        raise UserError(f"{_ROOT} has no Triton to compare with; run make servers there")
    # Nothing else is due on this event loop, so the measurement may block it.
    effort = (3, 0.1) if quick else (ROUNDS, SECONDS)
    rows: list[Row] = []
    for shape in (MLP, IMAGE):
        cases = [each for each in CASES if each.shape == shape]
        with generated(shape) as bundle, generated(shape, backup=True) as backed:
            async with AsyncExitStack() as stack:
                targets = [await stack.enter_async_context(_triton(bundle))]
                for name, options in OURS.items():
                    if name != BACKUP or shape == MLP:
                        served_bundle = backed if name == BACKUP else bundle
                        server = _ours(served_bundle, name, options)
                        targets.append(await stack.enter_async_context(server))
                rows += _measure(bundle, targets, cases, *effort)
    return rows


def _measure(
    bundle: Bundle, targets: Sequence[Target], cases: Sequence[Case], rounds: int, seconds: float
) -> Iterator[Row]:
    measured = {(case, target.name): _Rounds() for case in cases for target in targets}
    asks = {"REST": _ask(bundle), "gRPC": _ask_grpc(bundle)}
    for target, case in product(targets, cases):
        asks[case.protocol](target, case.clients, seconds)
    gc.freeze()
    for turn, case in tqdm(list(product(range(rounds), cases)), desc="overhead", unit="turn"):
        # Every other time the other way round, as a warm cache may favour the second.
        for target in targets if turn % 2 == 0 else targets[::-1]:
            of = measured[case, target.name]
            before, began = target.cpu_seconds(), perf_counter()
            latencies = asks[case.protocol](target, case.clients, seconds)
            of.rates.append(len(latencies) / (perf_counter() - began))
            of.latencies += latencies
            of.cpu.append((target.cpu_seconds() - before) / len(latencies) * 1e6)
    for (case, name), of in measured.items():
        triton = measured[case, TRITON]
        yield {
            "clients": str(case),
            "server": name,
            "p50 ms": float(np.median(of.latencies)) * 1e3,
            "requests/s": float(np.median(of.rates)),
            "CPU µs": float(np.median(of.cpu)),
            "rate x": float(np.median(np.divide(of.rates, triton.rates))),
            "CPU x": float(np.median(np.divide(of.cpu, triton.cpu))),
        }


# Servers


@asynccontextmanager
async def _ours(bundle: Bundle, name: str, options: Mapping[str, Any]) -> AsyncIterator[Target]:
    (port,) = free_ports(1)
    given = ServeOptions(instances=INSTANCES, port=0, grpc_port=port, share_groups=True, **options)
    async with served(bundle.path, given) as server:
        address = server.url.removeprefix("http://")
        yield Target(name, address, f"127.0.0.1:{port}", _processes(server.pid))


@asynccontextmanager
async def _triton(bundle: Bundle) -> AsyncIterator[Target]:
    """Serve by the Triton of the tests, which `make servers` installs, with its defaults but for
    instances and batches, which it has as ours do."""
    http_port, grpc_port = free_ports(2)
    with tempfile.TemporaryDirectory(prefix="parm-lab-") as folder:
        repository = Path(folder, "repository")
        export_repository(bundle, repository)
        for config in repository.glob("*/config.pbtxt"):
            text = config.read_text().replace("count: 1", f"count: {INSTANCES}")
            config.write_text(f"{text}dynamic_batching {{ }}\n")
        with Path(folder, "log").open("w+b") as log:
            program = (str(TRITON_PROGRAM), str(repository))
            process = psutil.Popen(
                [sys.executable, *program, str(http_port), str(grpc_port)],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
            )
            try:
                address = f"127.0.0.1:{http_port}"
                wait_until_ready(process, f"http://{address}/v2/health/ready", log.name)
                yield Target(TRITON, address, f"127.0.0.1:{grpc_port}", _processes(process.pid))
            finally:
                process.terminate()
                process.wait()


def wait_until_ready(process: psutil.Popen, url: str, log: Path | str) -> None:
    """Wait for a server. Raises LoadError, with the end of its log, if it ends."""
    while process.poll() is None:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            pass
        selectors.DefaultSelector().select(0.1)
    raise LoadError(f"Triton ended: {Path(log).read_text()[-2000:]}")


def _processes(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def free_ports(number: int) -> list[int]:
    """Return ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


# Clients

Ask = Callable[[Target, int, float], list[float]]
"""Returns the latencies of so many closed-loop clients for so many seconds, in seconds."""


class _Connection:
    """One client's connection, and the part of an answer that it has read."""

    def __init__(self, target: Target, request: bytes) -> None:
        host, _, port = target.address.partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
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


def _ask(bundle: Bundle) -> Ask:
    """Return what asks over HTTP for one row, with the whole request, head and body, written."""
    body, head = write_request(_row(bundle))
    headers = {"Host": "localhost", **head, "Content-Length": str(len(body))}
    lines = [f"POST {model_path(bundle.manifest.name)}/infer HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    request = "\r\n".join([*lines, "", ""]).encode() + body

    def ask(target: Target, clients: int, seconds: float) -> list[float]:
        latencies: list[float] = []
        connections: list[_Connection] = []
        try:
            for _ in range(clients):
                connections.append(_Connection(target, request))
            with selectors.DefaultSelector() as selector:
                for each in connections:
                    selector.register(each.socket, selectors.EVENT_READ, each)
                    each.send()
                end = perf_counter() + seconds
                while perf_counter() < end:
                    ready = selector.select(TIMEOUT)
                    if not ready:
                        raise LoadError(f"{target.name} did not answer within {TIMEOUT:g} s")
                    for key, _ in ready:
                        latency = key.data.receive()
                        if latency is not None:
                            latencies.append(latency)
                            key.data.send()
        except OSError as error:
            raise LoadError(f"a connection to {target.name} broke: {error}") from error
        finally:
            for each in connections:
                each.socket.close()
        if not latencies:
            raise LoadError(f"{target.name} answered nothing within {seconds:g} s")
        return latencies

    return ask


def _ask_grpc(bundle: Bundle) -> Ask:
    """Return what asks over gRPC for one row, with the message written."""
    message = pb.ModelInferRequest(model_name=bundle.manifest.name)
    tensor = bundle.manifest.deployed.signature.input
    for name, row in _row(bundle).items():
        message.inputs.add(name=name, datatype=tensor.datatype, shape=row.shape)
        message.raw_input_contents.append(row.tobytes())
    request = message.SerializeToString()

    def ask(target: Target, clients: int, seconds: float) -> list[float]:
        end = perf_counter() + seconds

        def client(_: int) -> list[float]:
            own = [("grpc.use_local_subchannel_pool", 1)]  # and so a connection
            latencies = []
            with grpc.insecure_channel(target.grpc_address, options=own) as channel:
                infer: Any = channel.unary_unary(_INFER)
                while (began := perf_counter()) < end:
                    infer(request, timeout=TIMEOUT)
                    latencies.append(perf_counter() - began)
            return latencies

        try:
            with ThreadPoolExecutor(clients) as threads:
                return [each for some in threads.map(client, range(clients)) for each in some]
        except grpc.RpcError as error:
            raise LoadError(f"{target.name} did not answer over gRPC: {error}") from error

    return ask


def _row(bundle: Bundle) -> dict[str, Any]:
    tensor = bundle.manifest.deployed.signature.input
    row = np.random.default_rng(0).random((1, *tensor.shape)).astype(tensor.dtype)
    return {tensor.name: row}


@contextmanager
def generated(shape: tuple[int, ...] = MLP, *, backup: bool = False) -> Iterator[Bundle]:
    """A generated model of queries of this shape, with a parity model, while the context lasts:
    an MLP, or of images one that computes hardly anything; with a `backup`, which does as much."""
    # Imported here: torch is not needed elsewhere.
    from torch import nn

    from parity_models.models.export import export, floats
    from parity_models.models.networks import build_network

    def model(*, small: bool = shape != MLP) -> NewModel:
        if not small:
            network = build_network("mlp", shape, OUTPUT_SHAPE)
        else:
            pool = nn.AdaptiveAvgPool2d(1) if shape == IMAGE else nn.Identity()
            network = nn.Sequential(pool, nn.Flatten(), nn.Linear(shape[0], *OUTPUT_SHAPE))
        return NewModel(export(network, [floats(shape)]), "mlp")

    deployed, parity, backups = model(), model(), [model(small=True)] if backup else []
    with tempfile.TemporaryDirectory(prefix="parm-lab-") as folder:
        yield write_bundle(
            Path(folder, "bundle"),
            deployed=deployed,
            parity=[parity],
            backups=backups,
            code=CodeSpec("sum", "subtraction", k=2),
            inference_times=measure_models(deployed, [parity], backups),
        )

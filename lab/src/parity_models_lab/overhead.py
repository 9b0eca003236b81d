"""The command `overhead`: the cost of a request, ours and Triton's.

Closed-loop clients ask servers in turns within one run, so that other work of the machine meets all
of them alike. Compare ratios, not absolute numbers.
"""

import asyncio
import gc
import re
import tempfile
from asyncio import Future
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import grpc
import numpy as np
import uvloop

from parity_models.codes import CodeSpec
from parity_models.errors import LoadError
from parity_models.models.bundle import Bundle, NewModel, write_bundle
from parity_models.models.inference_time import measure_models
from parity_models.progress import Progress, progress_bars
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.client import model_path
from parity_models.serving.grpc import inference_pb2 as pb
from parity_models.serving.protocol import write_request
from parity_models.serving.remote.export import export_repository
from parity_models.serving.server import ServeOptions
from parity_models_lab.results import Out, Row, report
from parity_models_lab.served import cpu_seconds, descendants, free_ports, served, triton

ROUNDS, SECONDS = 13, 0.7
"""Rounds of each case, and the length of one of each server."""
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


class Target(NamedTuple):
    """A server of the bundle's model at these ports of this machine, and its processes."""

    name: str
    port: int
    grpc_port: int
    pids: Sequence[int]


def overhead(out: Out = None) -> None:
    """Compare the cost of a request with that of Triton, which `make servers` installs.

    Serves generated models on two instances each, with the default policy and without one, and with
    batches of one. Clients send one row at a time over connections that are kept open; servers take
    turns. CPU is the processor time of a request in all the server's processes; numbers are medians
    over rounds, and the last columns are ratios to Triton's.
    """
    rows = uvloop.run(_measure_all())
    report("The cost of a request", rows, out and out / "overhead.json")


async def _measure_all() -> list[Row]:
    rows: list[Row] = []
    for shape in (MLP, IMAGE):
        cases = [each for each in CASES if each.shape == shape]
        with generated(shape) as bundle, generated(shape, backup=True) as backed:
            async with AsyncExitStack() as stack:
                targets = [stack.enter_context(_triton(bundle))]
                for name, options in OURS.items():
                    if name != BACKUP or shape == MLP:
                        served_bundle = backed if name == BACKUP else bundle
                        server = _ours(served_bundle, name, options)
                        targets.append(await stack.enter_async_context(server))
                rows += [row async for row in _measure(bundle, targets, cases)]
    return rows


async def _measure(
    bundle: Bundle, targets: Sequence[Target], cases: Sequence[Case]
) -> AsyncIterator[Row]:
    # The requests/s, processor time and latencies of each turn.
    measured: dict[tuple[Case, str], list[tuple[float, float, list[float]]]] = {
        (case, target.name): [] for case in cases for target in targets
    }
    asks = {"REST": _ask(bundle), "gRPC": _ask_grpc(bundle)}
    for target, case in product(targets, cases):
        await asks[case.protocol](target, case.clients)
    gc.freeze()
    turns = list(product(range(ROUNDS), cases))
    with progress_bars() as bars:
        for number, (turn, case) in enumerate(turns):
            bars.on_progress(Progress("overhead", number, len(turns)))
            # Every other time the other way round, as a warm cache may favour the second.
            for target in targets if turn % 2 == 0 else targets[::-1]:
                before, began = cpu_seconds(target.pids), perf_counter()
                latencies = await asks[case.protocol](target, case.clients)
                rate = len(latencies) / (perf_counter() - began)
                cpu = (cpu_seconds(target.pids) - before) / len(latencies) * 1e6
                measured[case, target.name].append((rate, cpu, latencies))
    for (case, name), found in measured.items():
        rates, cpus, latencies_of = zip(*found, strict=True)
        triton_rates, triton_cpus, _ = zip(*measured[case, TRITON], strict=True)
        yield {
            "clients": str(case),
            "server": name,
            "p50 ms": float(np.median(np.concatenate(latencies_of))) * 1e3,
            "requests/s": float(np.median(rates)),
            "CPU µs": float(np.median(cpus)),
            "rate x": float(np.median(np.divide(rates, triton_rates))),
            "CPU x": float(np.median(np.divide(cpus, triton_cpus))),
        }


# Servers


@asynccontextmanager
async def _ours(bundle: Bundle, name: str, options: Mapping[str, Any]) -> AsyncIterator[Target]:
    (port,) = free_ports(1)
    given = ServeOptions(instances=INSTANCES, port=0, grpc_port=port, share_groups=True, **options)
    async with served(bundle.path, given) as server:
        http_port = int(server.url.rpartition(":")[2])
        yield Target(name, http_port, port, [server.pid, *descendants(server.pid)])


@contextmanager
def _triton(bundle: Bundle) -> Iterator[Target]:
    """Serve by Triton, with its defaults but for instances and batches, which it has as ours do."""
    with tempfile.TemporaryDirectory(prefix="parm-lab-") as folder:
        repository = Path(folder, "repository")
        export_repository(bundle, repository)
        for config in repository.glob("*/config.pbtxt"):
            text = config.read_text().replace("count: 1", f"count: {INSTANCES}")
            config.write_text(f"{text}dynamic_batching {{ }}\n")
        with triton(repository) as server:
            pids = [server.pid, *descendants(server.pid)]
            yield Target(TRITON, server.port, server.grpc_port, pids)


# Clients

Ask = Callable[[Target, int], Awaitable[list[float]]]
"""Returns the latencies of so many closed-loop clients for SECONDS, in seconds."""


class _Client(asyncio.Protocol):
    """A closed-loop client: sends the same request again once its answer is whole."""

    def __init__(self, request: bytes, latencies: list[float], broken: Future[None]) -> None:
        self._request, self._latencies, self._broken = request, latencies, broken
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and (length is None or b" 200 " not in head[:20]):
            self.connection_lost(LoadError(f"the server answered {self._received[:300]!r}"))
        elif end and length and len(body) >= int(length[1]):
            self._latencies.append(perf_counter() - self._sent)
            self._received = b""
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._broken.done():
            self._broken.set_exception(error or LoadError("the server closed the connection"))


def _ask(bundle: Bundle) -> Ask:
    """Return what asks over HTTP for one row, with the whole request, head and body, written."""
    body, head = write_request(_row(bundle))
    headers = {"Host": "localhost", **head, "Content-Length": str(len(body))}
    lines = [f"POST {model_path(bundle.manifest.name)}/infer HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    request = "\r\n".join([*lines, "", ""]).encode() + body

    async def ask(target: Target, clients: int) -> list[float]:
        loop, latencies = asyncio.get_running_loop(), list[float]()
        broken = loop.create_future()
        client = partial(_Client, request, latencies, broken)
        transports: list[asyncio.Transport] = []
        try:
            for _ in range(clients):
                transport, _ = await loop.create_connection(client, "127.0.0.1", target.port)
                transports.append(transport)
            for _ in range(100):  # on a busy machine, nothing may be answered in a turn
                await asyncio.wait([broken], timeout=SECONDS)
                if latencies or broken.done():
                    break
            if broken.done():
                broken.result()
        finally:
            broken.cancel()
            for each in transports:
                each.abort()
        if not latencies:
            raise LoadError(f"{target.name} did not answer within {100 * SECONDS:g} s")
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

    async def ask(target: Target, clients: int) -> list[float]:
        end = perf_counter() + SECONDS

        def client(_: int) -> list[float]:
            own = [("grpc.use_local_subchannel_pool", 1)]  # and so a connection
            latencies = []
            address = f"127.0.0.1:{target.grpc_port}"
            with grpc.insecure_channel(address, options=own) as channel:
                infer: Any = channel.unary_unary(_INFER)
                while (began := perf_counter()) < end:
                    infer(request, timeout=10.0)
                    latencies.append(perf_counter() - began)
            return latencies

        with ThreadPoolExecutor(clients) as threads:
            return [each for some in threads.map(client, range(clients)) for each in some]

    return ask


def _row(bundle: Bundle) -> dict[str, Any]:
    tensor = bundle.manifest.deployed.signature.input
    row = np.random.default_rng(0).random((1, *tensor.shape)).astype(tensor.dtype)
    return {tensor.name: row}


@contextmanager
def generated(shape: tuple[int, ...], *, backup: bool = False) -> Iterator[Bundle]:
    """A generated model of queries of this shape, with a parity model, while the context lasts:
    an MLP, or of images one that computes hardly anything; with a `backup`, which does as much."""
    # Imported here: torch is not needed elsewhere.
    from torch import nn

    from parity_models.models.export import export, floats
    from parity_models.models.networks import build_network

    pool = nn.AdaptiveAvgPool2d(1) if shape == IMAGE else nn.Identity()
    cheap: nn.Module = nn.Sequential(pool, nn.Flatten(), nn.Linear(shape[0], *OUTPUT_SHAPE))
    network = build_network("mlp", shape, OUTPUT_SHAPE) if shape == MLP else cheap
    model, other = (NewModel(export(each, [floats(shape)]), "mlp") for each in (network, cheap))
    with tempfile.TemporaryDirectory(prefix="parm-lab-") as folder:
        yield write_bundle(
            Path(folder, "bundle"),
            deployed=model,
            parity=[model],
            backup=other if backup else None,
            code=CodeSpec("sum", "subtraction", k=2),
            inference_times=measure_models(model, [model], other if backup else None),
        )

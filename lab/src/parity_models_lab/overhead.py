"""The command `overhead`: the cost of a request, ours and Triton's.

Closed-loop clients ask servers in turns within one run, so that other work of the machine meets all
of them alike. Compare ratios, not absolute numbers.
"""

import asyncio
import gc
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import chain, product
from math import prod
from pathlib import Path
from shutil import copyfile
from time import perf_counter
from typing import Any

import grpc
import numpy as np
import psutil
import uvloop

from parity_models.bundle.bundle import Bundle
from parity_models.errors import LoadError
from parity_models.progress import Progress, progress_bars
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.grpc import protos as pb
from parity_models.serving.protocol import write_request
from parity_models.serving.server import ServeOptions
from parity_models.tensors.signature import Tensor, TensorSpec
from parity_models_lab.processes import child
from parity_models_lab.results import Out, Row, report
from parity_models_lab.rival_servers import triton
from parity_models_lab.served import GRPC, post, processes, served

ROUNDS, SECONDS = 12, 0.3
"""Rounds of each case, and the length of one of each server."""

MLP, IMAGE, TOKENS = (
    TensorSpec("input", "FP32", (784,)),
    TensorSpec("input", "FP32", (3, 224, 224)),
    TensorSpec("input", "INT64", (64,)),
)
"""The inputs of the generated models: 3 kB, as the published MLP takes, 600 kB, as most networks
for images do, and ids of words."""
SIZES = {MLP: "3 kB", IMAGE: "600 kB", TOKENS: "64 tokens"}

CLASSES, WORDS, OF_A_KIND, NOISE = 10, 1000, 2, np.float32(0.02)
MAX_QUERIES, MAX_BYTES, TRAINING = 8000, 2**27, 5.0
"""The most queries that stand-ins learn from, in number and in bytes, and for how many seconds."""

TRITON_MODEL = Path(__file__).with_name("onnx_model.py")

TRITONS: Mapping[str, tuple[int, str]] = {
    f"Triton, {count} instance{'s' * (count > 1)}{', batching' * bool(batching)}": (count, batching)
    for count, batching in product((1, 2), ("", "dynamic_batching { }\n"))
}
"""Configurations of Triton, by name: the number of instances, and how they make batches."""
BACKUP = "adaptive, backup"
OURS = {"none": "none", "adaptive": "adaptive", BACKUP: "adaptive"}
"""Policies of this software's servers, by name; the last serves a bundle with a backup."""
FLOOR = "no scheduler"
"""The name of the server that `floor.py` is."""

_CONFIG = """backend: "python"
max_batch_size: 64
input [{ name: "input", data_type: TYPE_%s, dims: %s }]
output [{ name: "output", data_type: TYPE_FP32, dims: [%d] }]
instance_group [{ count: %d, kind: KIND_CPU }]
"""

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """So many closed-loop clients send one row for this input a request, over REST or gRPC."""

    input: TensorSpec
    clients: int
    protocol: str = "REST"

    def __str__(self) -> str:
        return f"{self.clients} {self.protocol}, {SIZES[self.input]}"


CASES = [
    Case(input, clients, protocol)
    for input in SIZES
    for protocol in ("REST", "gRPC")
    for clients in ((1, 8, 16, 64) if input is IMAGE else (1, 16, 64))
]


@dataclass(eq=False)
class Target:
    """A server of the bundle's model at these ports of this machine, and its processes.

    Clients' connections to it stay open.
    """

    name: str
    port: int
    grpc_port: int
    processes: Sequence[psutil.Process]
    streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)
    channels: list[grpc.Channel] = field(default_factory=list)

    def cpu_seconds(self) -> float:
        """Return the user and system time so far, by the processes' own clocks (Linux), which are
        finer than the ticks of /proc."""
        return sum(time.clock_gettime(~each.pid << 3 | 2) for each in self.processes)

    async def connect(self, case: Case) -> None:
        """Open what connections the clients of a case still lack."""
        while len(self.streams) < case.clients:
            self.streams.append(await asyncio.open_connection("127.0.0.1", self.port))
        own = [("grpc.use_local_subchannel_pool", 1)]  # and so a connection
        while len(self.channels) < case.clients:
            channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}", options=own)
            self.channels.append(channel)

    def close(self) -> None:
        """Close all connections."""
        for _, writer in self.streams:
            writer.close()
        for channel in self.channels:
            channel.close()


MEASURES = (
    ("rate", "requests/s", 1, max),
    ("CPU", "CPU µs", 1e6, min),
    ("p50", "p50 ms", 1e3, min),
)
"""What is measured in a turn: requests a second, and the processor time and the median latency of
one in seconds, with the column, its scale, and which of several servers is the best."""


def overhead(out: Out = None) -> None:
    """Compare the cost of a request with that of Triton, which `make servers` installs.

    Serves generated models with trained stand-ins, with the default options, without redundancy,
    and, as the floor, without a scheduler. Triton runs the model in Python, in four configurations;
    ratios are to the one that is best in the case and the column, whose ratio is 1. Clients send
    one row at a time over connections that are kept open; servers take turns. CPU is the processor
    time of a request in all the server's processes; numbers are medians over rounds. Each ratio is
    the median of those within a round, with a 95 % interval (bootstrap).
    """
    rows = uvloop.run(_measure_all())
    report("The cost of a request", rows, out and out / "overhead.json")


async def _measure_all() -> list[Row]:
    rows: list[Row] = []
    for input in dict.fromkeys(case.input for case in CASES):
        async with AsyncExitStack() as stack:
            bundle, backed = stack.enter_context(generated(input))
            targets = [stack.enter_context(_triton(bundle, name)) for name in TRITONS]
            for name in (*OURS, FLOOR):
                server = _ours(backed if name == BACKUP else bundle, name)
                targets.append(await stack.enter_async_context(server))
            for each in targets:
                stack.callback(each.close)
            cases = [each for each in CASES if each.input == input]
            rows += [row async for row in _measure(_requests(bundle), targets, cases)]
    return rows


async def _measure(
    requests: Mapping[str, bytes], targets: Sequence[Target], cases: Sequence[Case]
) -> AsyncIterator[Row]:
    turns = defaultdict[tuple[Case, Target], list[tuple[float, ...]]](list)
    for target, case in product(targets, cases):
        await target.connect(case)
        await _ask(target, case, requests[case.protocol])
    gc.freeze()
    order = list(product(range(ROUNDS), cases))
    with progress_bars() as bars:
        for number, (turn, case) in enumerate(order):
            bars.on_progress(Progress("overhead", number, len(order)))
            # Every other time the other way round, as a warm cache may favour the second.
            for target in targets if turn % 2 == 0 else targets[::-1]:
                before, began = target.cpu_seconds(), perf_counter()
                latencies = await _ask(target, case, requests[case.protocol])
                seconds, cpu = perf_counter() - began, target.cpu_seconds() - before
                count, p50 = len(latencies), float(np.median(latencies))
                turns[case, target].append((count / seconds, cpu / count, p50))
    tritons = [each for each in targets if each.name in TRITONS]
    for case, target in turns:
        row: dict[str, object] = {"clients": str(case), "server": target.name}
        row["RSS MiB"] = sum(each.memory_info().rss for each in target.processes) / 2**20
        for i, (name, column, scale, best) in enumerate(MEASURES):
            found = {each: np.array(turns[case, each])[:, i] for each in {*tritons, target}}
            medians = {each: float(np.median(values)) for each, values in found.items()}
            ratios = found[target] / found[best(tritons, key=medians.__getitem__)]
            row[column] = medians[target] * scale
            drawn = np.random.default_rng(0).choice(ratios, (2000, ROUNDS))
            ends = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
            row[f"{name} x"] = float(np.median(ratios))
            row[f"{name} from"], row[f"{name} to"] = ends.tolist()
        yield row


@asynccontextmanager
async def _ours(bundle: Bundle, name: str) -> AsyncIterator[Target]:
    if name == FLOOR:
        running = child((sys.executable, "-m", "parity_models_lab.floor", str(bundle.path)))
    else:
        given = ServeOptions(port=0, grpc_port=0, policy=PolicyChoice(OURS[name]))
        running = served(bundle.path, given)
    async with running as server:
        urls = server.message, await server.ask(GRPC)
        port, grpc_port = (int(each.rpartition(":")[2]) for each in urls)
        yield Target(name, port, grpc_port, processes(server.pid))


@contextmanager
def _triton(bundle: Bundle, name: str) -> Iterator[Target]:
    """Serve the deployed model by Triton, with its defaults but for instances and batches."""
    instances, batching = TRITONS[name]
    deployed = bundle.manifest.deployed
    (tensor,) = deployed.signature.inputs
    with tempfile.TemporaryDirectory(prefix="parm-lab-") as folder:
        model = Path(folder, bundle.manifest.name)
        (model / "1").mkdir(parents=True)
        copyfile(bundle.path / deployed.file, model / "1" / "model.onnx")
        copyfile(TRITON_MODEL, model / "1" / "model.py")
        text = _CONFIG % (tensor.datatype, list(tensor.shape), CLASSES, instances)
        (model / "config.pbtxt").write_text(text + batching)
        with triton(Path(folder)) as (port, grpc_port, pid):
            yield Target(name, port, grpc_port, processes(pid))


def _requests(bundle: Bundle) -> Mapping[str, bytes]:
    """Return a request for one row by protocol: all that is sent over HTTP, and gRPC's message."""
    name = bundle.manifest.name
    (tensor,) = bundle.manifest.deployed.signature.smallest.input.tensors
    row = rows_like(tensor, 1)
    body, head = write_request({tensor.name: row})
    message = pb.ModelInferRequest(model_name=name, raw_input_contents=[row.tobytes()])
    message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=row.shape)
    return {"REST": post(name, body, head), "gRPC": message.SerializeToString()}


async def _ask(target: Target, case: Case, request: bytes) -> list[float]:
    """Return the latencies of closed-loop clients for SECONDS, in seconds; at least one of each."""
    end = perf_counter() + SECONDS
    if case.protocol == "gRPC":
        with ThreadPoolExecutor(case.clients) as threads:
            channels = target.channels[: case.clients]
            calls = [threads.submit(_call, each, request, end) for each in channels]
        return list(chain.from_iterable(each.result() for each in calls))
    try:
        async with asyncio.timeout(100 * SECONDS):
            posts = (_post(*each, request, end) for each in target.streams[: case.clients])
            return list(chain.from_iterable(await asyncio.gather(*posts)))
    except (EOFError, OSError) as error:  # TimeoutError, too
        raise LoadError(f"{target.name} did not answer: {error or 'it took too long'}") from error


async def _post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, end: float
) -> list[float]:
    latencies: list[float] = []
    while (began := perf_counter()) < end or not latencies:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length is None or b" 200 " not in head[:20]:
            raise LoadError(f"a server answered {head[:300]!r}")
        await reader.readexactly(int(length[1]))
        latencies.append(perf_counter() - began)
    return latencies


def _call(channel: grpc.Channel, request: bytes, end: float) -> list[float]:
    latencies: list[float] = []
    infer: Any = channel.unary_unary(_INFER)
    while (began := perf_counter()) < end or not latencies:
        infer(request, timeout=10.0)
        latencies.append(perf_counter() - began)
    return latencies


@contextmanager
def generated(input: TensorSpec) -> Iterator[tuple[Bundle, Bundle]]:
    """A generated model of this input, which a parity model protects, while the context lasts; and
    the same with a backup, too.

    The model is an MLP, or else computes hardly anything; stand-ins do as much, or less.
    """
    # Imported here: torch is not needed elsewhere.
    from torch import nn

    from parity_models.training import TrainingOptions, train_backup, train_parity
    from parity_models.training.export import export
    from parity_models.training.networks import build_network

    def pooled(shape: tuple[int, ...], outputs: tuple[int, ...]) -> nn.Module:
        layers = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], prod(outputs))
        return nn.Sequential(*layers, nn.Unflatten(1, outputs))

    parity: Any
    backup: Any
    if input == MLP:
        model, parity, backup = build_network("mlp", input.shape, (CLASSES,)), "mlp", "mlp@0.25"
    elif input == IMAGE:
        model, parity, backup = pooled(input.shape, (CLASSES,)), pooled, pooled
    else:
        mean = nn.AvgPool2d((input.shape[0], 1))
        ids = nn.Embedding(WORDS, 32), mean, nn.Flatten(), nn.Linear(32, CLASSES)
        model, parity, backup = nn.Sequential(*ids), "text@32", "text@32"
    queries = rows_like(input, min(MAX_QUERIES, MAX_BYTES // rows_like(input, 1).nbytes))
    with tempfile.TemporaryDirectory(prefix="parm-lab-") as folder:
        file = Path(folder, "model.onnx")
        file.write_bytes(export(model, [Tensor(input.name, input.datatype, input.shape)]))
        options = TrainingOptions(seconds=TRAINING)
        coded, backed = Path(folder, "parity"), Path(folder, "both")
        bundle = train_parity(file, queries, out=coded, network=parity, options=options)
        yield bundle, train_backup(bundle, queries, out=backed, network=backup, options=options)


def rows_like(input: TensorSpec, count: int) -> np.ndarray[Any, Any]:
    """Draw rows for an input, each of one of CLASSES kinds, which are the same for any count."""
    rng = np.random.default_rng(0)
    if input.dtype.kind == "i":
        words = rng.integers(WORDS, size=(CLASSES, OF_A_KIND))
        kinds = rng.integers(CLASSES, size=count)
        return words[kinds[:, np.newaxis], rng.integers(OF_A_KIND, size=(count, *input.shape))]
    centers = rng.standard_normal((CLASSES, input.shape[0], *[1] * (len(input.shape) - 1)))
    kinds = rng.integers(CLASSES, size=count)
    noise = rng.standard_normal((count, *input.shape), np.float32)
    return centers[kinds].astype(np.float32) + NOISE * noise

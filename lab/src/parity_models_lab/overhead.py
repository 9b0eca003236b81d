"""The command `overhead`: the cost of a request, ours and Triton's.

Closed-loop clients ask servers in turns within one run, so that other work of the machine meets all
of them alike. Compare ratios, not absolute numbers.
"""

import asyncio
import gc
import re
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import grpc
import numpy as np
import psutil
import uvloop

from parity_models.bundle.bundle import Bundle, NewModel, write_bundle
from parity_models.bundle.inference_time import measure_models
from parity_models.codes import CodeSpec
from parity_models.errors import LoadError
from parity_models.progress import Progress, progress_bars
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.grpc import inference_pb2 as pb
from parity_models.serving.protocol import write_request
from parity_models.serving.remote.export import export_repository
from parity_models.serving.server import ServeOptions
from parity_models_lab.results import Out, Row, report
from parity_models_lab.served import GRPC, post, processes, served, triton

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
    processes: Sequence[psutil.Process]

    def cpu_seconds(self) -> float:
        """Return the user and system time so far."""
        return sum(sum(each.cpu_times()[:2]) for each in self.processes)


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
        async with AsyncExitStack() as stack:
            bundle = stack.enter_context(generated(shape))
            backed = stack.enter_context(generated(shape, backup=True))
            targets = [stack.enter_context(_triton(bundle))]
            for name, options in OURS.items():
                server = _ours(backed if name == BACKUP else bundle, name, options)
                targets.append(await stack.enter_async_context(server))
            cases = [each for each in CASES if each.shape == shape]
            rows += [row async for row in _measure(_requests(bundle), targets, cases)]
    return rows


async def _measure(
    requests: Mapping[str, bytes], targets: Sequence[Target], cases: Sequence[Case]
) -> AsyncIterator[Row]:
    # The requests/s, processor time and latencies of each turn.
    measured = defaultdict[tuple[Case, str], list[tuple[float, float, list[float]]]](list)
    for target, case in product(targets, cases):
        await _ask(target, case, requests[case.protocol])
    gc.freeze()
    turns = list(product(range(ROUNDS), cases))
    with progress_bars() as bars:
        for number, (turn, case) in enumerate(turns):
            bars.on_progress(Progress("overhead", number, len(turns)))
            # Every other time the other way round, as a warm cache may favour the second.
            for target in targets if turn % 2 == 0 else targets[::-1]:
                before, began = target.cpu_seconds(), perf_counter()
                latencies = await _ask(target, case, requests[case.protocol])
                rate = len(latencies) / (perf_counter() - began)
                cpu = (target.cpu_seconds() - before) / len(latencies) * 1e6
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


@asynccontextmanager
async def _ours(bundle: Bundle, name: str, options: Mapping[str, Any]) -> AsyncIterator[Target]:
    given = ServeOptions(instances=INSTANCES, port=0, grpc_port=0, share_groups=True, **options)
    async with served(bundle.path, given) as server:
        urls = server.message, await server.ask(GRPC)
        port, grpc_port = (int(each.rpartition(":")[2]) for each in urls)
        yield Target(name, port, grpc_port, processes(server.pid))


@contextmanager
def _triton(bundle: Bundle) -> Iterator[Target]:
    """Serve by Triton, with its defaults but for instances and batches, which it has as ours do."""
    with tempfile.TemporaryDirectory(prefix="parm-lab-") as folder:
        repository = Path(folder, "repository")
        export_repository(bundle, repository)
        for config in repository.glob("*/config.pbtxt"):
            text = config.read_text().replace("count: 1", f"count: {INSTANCES}")
            config.write_text(f"{text}dynamic_batching {{ }}\n")
        with triton(repository) as (port, grpc_port, pid):
            yield Target(TRITON, port, grpc_port, processes(pid))


def _requests(bundle: Bundle) -> Mapping[str, bytes]:
    """Return a request for one row by protocol: all that is sent over HTTP, and gRPC's message."""
    name, signature = bundle.manifest.name, bundle.manifest.deployed.signature
    (tensor,) = signature.smallest.input.tensors
    row = np.random.default_rng(0).random((1, *tensor.shape)).astype(tensor.dtype)
    body, head = write_request({tensor.name: row})
    message = pb.ModelInferRequest(model_name=name, raw_input_contents=[row.tobytes()])
    message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=row.shape)
    return {"REST": post(name, body, head), "gRPC": message.SerializeToString()}


async def _ask(target: Target, case: Case, request: bytes) -> list[float]:
    """Return the latencies of closed-loop clients for SECONDS, in seconds; at least one of each."""
    end = perf_counter() + SECONDS
    if case.protocol == "gRPC":
        with ThreadPoolExecutor(case.clients) as threads:
            futures = [threads.submit(_call, target, request, end) for _ in range(case.clients)]
        return list(chain.from_iterable(each.result() for each in futures))
    try:
        async with asyncio.timeout(100 * SECONDS):
            posts = (_post(target, request, end) for _ in range(case.clients))
            return list(chain.from_iterable(await asyncio.gather(*posts)))
    except (EOFError, OSError) as error:  # TimeoutError, too
        raise LoadError(f"{target.name} did not answer: {error or 'it took too long'}") from error


async def _post(target: Target, request: bytes, end: float) -> list[float]:
    latencies: list[float] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    try:
        while (began := perf_counter()) < end or not latencies:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if length is None or b" 200 " not in head[:20]:
                raise LoadError(f"{target.name} answered {head[:300]!r}")
            await reader.readexactly(int(length[1]))
            latencies.append(perf_counter() - began)
    finally:
        writer.close()
    return latencies


def _call(target: Target, request: bytes, end: float) -> list[float]:
    latencies: list[float] = []
    own = [("grpc.use_local_subchannel_pool", 1)]  # and so a connection
    with grpc.insecure_channel(f"127.0.0.1:{target.grpc_port}", options=own) as channel:
        infer: Any = channel.unary_unary(_INFER)
        while (began := perf_counter()) < end or not latencies:
            infer(request, timeout=10.0)
            latencies.append(perf_counter() - began)
    return latencies


@contextmanager
def generated(shape: tuple[int, ...], *, backup: bool = False) -> Iterator[Bundle]:
    """A generated model of queries of this shape, with a parity model, while the context lasts:
    an MLP, or of images one that computes hardly anything; with a `backup`, which does as much."""
    # Imported here: torch is not needed elsewhere.
    from torch import nn

    from parity_models.training.export import export, floats
    from parity_models.training.networks import build_network

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

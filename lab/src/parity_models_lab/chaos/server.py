"""The server under test, which can be restarted, and its model, whose answers are known.

The model is linear: under sum + subtraction it is its own exact parity model, so that the right
answer to every query is known, whatever its source. Long queries may take a hundred times as long.
A lying instance runs another one in its place.
"""

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from parity_models.bundle.bundle import NewModel, write_bundle
from parity_models.codes import CodeSpec
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.client import Client, ClientError
from parity_models.serving.options import EngineChoice, ServeOptions
from parity_models.simulation.emulation import FaultPlan, Lie, LogNormal
from parity_models.tensors.signature import Axis, Signature, Tensor
from parity_models.trust.envelope import fit_envelope
from parity_models_lab.processes import Child
from parity_models_lab.served import BEGIN_FAULTS, GRPC, served, workers

INPUTS, OUTPUTS = 32, 64
LONG = 49 * INPUTS
"""The length of a long input, whose parts of INPUTS values are added up."""
SLOW = 32
"""Multiplications of matrices of about LONG rows and columns that take a second."""
ROWS = 512
"""Different queries that are sent."""
TOLERANCE = 1e-3
"""The largest error of an answer, relative to the largest possible sum."""
NEAR = 2.0
"""The mean square of an input's values up to which the liar lies; 1 is usual."""
MODEL = "model"
"""The name it is served under."""
SIGNATURE = Signature(
    (Tensor("input", "FP32", ("length",)),),
    (Tensor("output", "FP32", (OUTPUTS,)),),
    {"length": Axis((INPUTS, LONG))},
)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class KnownModel:
    """`weights` (INPUTS, OUTPUTS), `rows` (ROWS, INPUTS) to ask about, and the bundle."""

    bundle: Path
    weights: Floats
    rows: Floats

    def right(self, rows: Floats, outputs: Floats) -> NDArray[np.bool_]:
        """Return which of `outputs` (n, OUTPUTS) are the predictions for `rows` (n, any multiple of
        INPUTS); where one is not finite, or overflows float32, anything is right."""
        exact = rows.astype(np.float64).reshape(len(rows), -1, INPUTS)
        with np.errstate(all="ignore"):
            wanted = exact.sum(axis=1) @ self.weights
            # The magnitude of the sum, in which float32 rounds at each step.
            scale = np.abs(exact).sum(axis=1) @ np.abs(self.weights) + 1.0
            close = np.abs(outputs - wanted) <= TOLERANCE * scale
            beyond = ~(scale <= np.finfo(np.float32).max)
        return np.asarray((close | beyond).all(axis=1))


def write_known_model(folder: Path, seed: int, products: int = 1) -> KnownModel:
    """Write the bundle into `folder`, which is made; weights and rows are drawn from `seed`. A long
    query takes so many `products` of matrices."""
    rng = np.random.default_rng(seed)
    weights = (rng.normal(size=(INPUTS, OUTPUTS)) / np.sqrt(INPUTS)).astype(np.float32)
    rows = rng.normal(size=(ROWS, INPUTS)).astype(np.float32)
    model = NewModel(_linear(weights, products), "linear", signature=SIGNATURE)
    # A code whose slots are not isolated needs an envelope of its inputs.
    inputs, held_out = rng.normal(size=(2, 2000, INPUTS)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    bundle = write_bundle(
        folder / "bundle",
        deployed=model,
        parity=[model],
        code=CodeSpec("sum", "subtraction", 2),
        name=MODEL,
        envelope=fit_envelope(
            SIGNATURE.inputs, {"input": inputs}, {"input": held_out}, inputs @ weights
        ),
    )
    return KnownModel(bundle.path, weights, rows)


def liar(model: KnownModel) -> bytes:
    """Return the model with 1 added to its outputs for inputs near those that are sent: a mean
    square of the values under NEAR. It is right at golden queries, which are farther off."""
    return _linear(model.weights, lies=True)


MODEL_TEXT = resources.files("parity_models_lab.chaos") / "known_model.txt"
"""The model in ONNX's own text: `error` is 0 but for a liar, and so are the products, which make a
long query slow."""


def _linear(weights: Floats, products: int = 1, *, lies: bool = False) -> bytes:
    lines = "\n".join(f"product{i + 1} = MatMul(product{i}, product0)" for i in range(products))
    made = {"PRODUCTS": lines, "productN": f"product{products}"}
    text = MODEL_TEXT.read_text()
    for name, value in {**made, "OUTPUTS": OUTPUTS, "INPUTS": INPUTS}.items():
        text = text.replace(name, str(value))
    model = onnx.parser.parse_model(text)
    nearest = np.float32(NEAR * INPUTS if lies else 0)
    for name, values in {"weights": weights, "nearest": nearest}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


# The server

INSTANCES = 4
"""Instances of every server; each runs the deployed model and the parity model."""
POISON = 12345.0
"""The first element of a query that crashes the instance that runs it."""
DESCRIPTORS = 256
"""The limit of the process of a server that is not Ray's: too few for many more connections."""


class Engine(StrEnum):
    """Engines that run the instances."""

    LOCAL = "local"
    REMOTE = "remote"
    RAY = "ray"


class TestedServer:
    """A server of the known model, whose units take `service` seconds (median), with `options` of
    ServeOptions. In `folder` are its log, and the file `liar.onnx`, which the last instance runs as
    long as it is there."""

    def __init__(
        self, model: KnownModel, engine: Engine, folder: Path, service: float, **options: Any
    ) -> None:
        self.model, self.liar = model, (folder / "liar.onnx").resolve()
        self._log = folder / "server.log"
        self._engine, self._service = engine, service
        shared: dict[str, Any] = {"reuse_port": True, "share_groups": True, "shutdown_delay": 1.0}
        self._options = ServeOptions(port=0, grpc_port=0, **shared, **options)
        self._started: list[Child] = []

    @property
    def pid(self) -> int:
        """The process that answers clients."""
        return self._started[-1].pid

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Client]:
        """Run while the context lasts; gives a client. Raises ServingError if it does not start."""
        self.liar.unlink(missing_ok=True)
        async with AsyncExitStack() as self._stack:
            if self._engine is Engine.REMOTE:
                alone = replace(self._options, instances=1, grpc_port=None, shutdown_delay=0.0)
                upstream = replace(alone, policy=PolicyChoice("none"))
                for number in range(INSTANCES):
                    faults = self._faults(None if number else 0)
                    await self._launch(replace(upstream, faults=faults))
                urls = [each.message for each in self._started]
                # The linear model is its own parity model.
                parity = ",".join(f"{url}/{MODEL}" for url in urls)
                engine = EngineChoice("remote", {"deployed": ",".join(urls), "parity": parity})
                self._options = replace(self._options, engine=engine)
            else:
                engine, faults = EngineChoice(self._engine), self._faults(INSTANCES - 1)
                options = replace(self._options, engine=engine, faults=faults)
                self._options = replace(options, instances=INSTANCES)
            await self._start()
            gc.freeze()  # a collection of garbage would hold up the load for a tenth of a second
            async with Client(self.url) as client:
                yield client

    async def restart(self, *, warm: bool) -> None:
        """Start another process on the same ports. If `warm`, this one is asked to end once the
        other is warm; else it is killed first. Raises ServingError if the other does not start."""
        before = self._started[-1]
        if warm:
            await self._start()
            before.end_input()
        else:
            os.kill(before.pid, signal.SIGKILL)
        await before.wait()
        if not warm:
            await self._start()

    async def _start(self) -> None:
        limit = "" if self._engine is Engine.RAY else f"ulimit -n {DESCRIPTORS} && "
        server = await self._launch(self._options, limit)
        self.url = server.message
        urls = self.url, await server.ask(GRPC)
        self.port, self.grpc_port = (int(each.rpartition(":")[2]) for each in urls)
        self._options = replace(self._options, port=self.port, grpc_port=self.grpc_port)

    async def _launch(self, options: ServeOptions, limit: str = "") -> Child:
        shell = ("sh", "-c", f'{limit}exec "$@" 2>> "$0"', str(self._log))
        # Ray lets other processes go first; the local engine's instances do not.
        prefix = ("env", "RAY_worker_niceness=0", *shell)
        server = await self._stack.enter_async_context(served(self.model.bundle, options, prefix))
        server.tell(BEGIN_FAULTS)
        self._started.append(server)
        return server

    def instances(self) -> list[int]:
        """Return the processes of its instances."""
        return [pid for server in self._started for pid in workers(server.pid)]

    def _faults(self, last: int | None) -> FaultPlan:
        """Return the faults of workers, of which the last, by number, can be made to lie."""
        lies = () if last is None else (Lie(last, str(self.liar)),)
        return FaultPlan(service_time=LogNormal(self._service, 0.2), poison=POISON, lies=lies)


async def metric(client: Client, name: str, **labels: str) -> float:
    """Return the sum of the samples with these labels; 0 where the server does not answer."""
    with suppress(ClientError, TimeoutError):
        async with asyncio.timeout(5.0):
            answer, _ = await client.ask("GET", "/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(answer.decode())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
    return 0.0

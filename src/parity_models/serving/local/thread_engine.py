"""The threads engine, and stand-ins next to another engine: models run in threads of the server's
process.

ONNX Runtime releases the GIL while it runs, so instances compute in parallel. Nothing isolates the
server from its models: a crash ends it, and a model that hangs within an operator keeps its thread.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any

from numpy.typing import NDArray

from parity_models.bundle.onnx_model import OnnxModel, PinnedModel
from parity_models.serving.engine import Engine, EngineListener, Parts
from parity_models.serving.worker import wire
from parity_models.serving.worker.supervised import SupervisedEngine, SupervisedInstance
from parity_models.serving.worker.worker import Runner, warm_model
from parity_models.simulation.emulation import FaultPlan

THREADS, PREFIX = 2, "own-"
"""The threads that run stand-ins next to an engine, and what their names begin with."""


class WorkerThread(SupervisedInstance):
    """One life of an instance: a thread that runs models, which instances share."""

    def __init__(
        self, engine: SupervisedEngine, number: int, name: str, models: Mapping[str, OnnxModel]
    ) -> None:
        super().__init__(engine, number, name, models)
        self._hello = wire.Hello({role: model.signature for role, model in models.items()})
        self._runner = Runner(models)
        self._units: SimpleQueue[tuple[wire.Unit, wire.Frame] | None] = SimpleQueue()
        self._ended = asyncio.Event()

    async def live(self) -> str:
        loop = asyncio.get_running_loop()
        Thread(target=self._serve, args=(loop,), name=f"parm-{self.name}", daemon=True).start()
        self._on_report(self._hello, b"")
        await self._ended.wait()
        assert self.why_killed is not None
        return self.why_killed

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop is closed, as the server has been stopped
            while (given := self._units.get()) is not None:
                loop.call_soon_threadsafe(self._on_report, *self._runner.run(*given))

    def send_unit(self, unit: wire.Unit, rows: Sequence[wire.Frame]) -> None:
        self._units.put((unit, rows[0] if len(rows) == 1 else b"".join(rows)))

    def send(self, message: wire.Cancel | wire.InjectFaults) -> None:
        if isinstance(message, wire.Cancel):
            self._runner.cancel(message.unit)

    def _end(self) -> None:
        if self.running is not None:
            self._runner.cancel(self.running.unit)
        self._units.put(None)
        self._ended.set()


class ThreadEngine(SupervisedEngine):
    """Runs models in threads of this process, each loaded once for all."""

    name = "threads"
    instance_kind = WorkerThread
    takes_faults = False
    same_clock = True
    tolerance = 1e-5

    def _prepare(
        self, models: Mapping[str, PinnedModel], instances: int
    ) -> Mapping[str, OnnxModel]:
        return {
            role: warm_model(model.load(), f"{role} ({model.path})")
            for role, model in models.items()
        }


class WithStandIns(Engine):
    """Another engine and, in THREADS threads of this process, stand-ins: the last instances.

    They neither wait for instances of the model nor stop with them.
    """

    def __init__(self, engine: Engine, parts: Parts) -> None:
        self._engine = engine
        self._threads = ThreadEngine(ThreadEngine.Options(), parts)
        self._threads.prefix = PREFIX

    @property
    def tolerance(self) -> float:
        return self._engine.tolerance

    async def start(self, roles: Sequence[frozenset[str]], listener: EngineListener) -> None:
        try:
            await self._threads.start(roles[-THREADS:], listener)
            await self._engine.start(roles[:-THREADS], listener)
        except BaseException:
            await self.stop()
            raise

    def _runs(self, instance: str) -> Engine:
        return self._threads if instance.startswith(PREFIX) else self._engine

    def run(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        self._runs(instance).run(instance, unit, role, rows)

    def cancel(self, instance: str, unit: int) -> None:
        self._runs(instance).cancel(instance, unit)

    def recycle(self, instance: str, why: str) -> None:
        self._runs(instance).recycle(instance, why)

    def running(self) -> Mapping[str, int | None]:
        return {**self._engine.running(), **self._threads.running()}

    async def stop(self) -> None:
        await self._engine.stop()
        await self._threads.stop()

    def inject_faults(self, plan: FaultPlan) -> None:
        self._engine.inject_faults(plan)

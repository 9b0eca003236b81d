"""A Ray cluster as the engine uses it: the connection, and an instance that is an actor."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, ClassVar

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError

from parity_models.bundle.onnx_model import OnnxModel, PinnedModel
from parity_models.errors import ServingError, UserError, spell
from parity_models.serving.worker import wire
from parity_models.serving.worker.supervised import SupervisedEngine, SupervisedInstance
from parity_models.serving.worker.worker import Runner, warm_model
from parity_models.simulation.emulation import FaultPlan

CONNECT_TIMEOUT = 5.0
"""Seconds to wait for a connection to a cluster's address."""

ROOM_TIMEOUT = 5.0
"""Seconds to wait for free CPUs: Ray learns of ended instances with a delay."""

PING_INTERVAL = 0.5
"""Seconds between an instance's answer and the next ping."""


class Connection:
    """This process's connection to the cluster at `address`, or to a new one on this machine.

    Engines of one process share it; the last to close it also ends a new cluster. Raises UserError
    for a cluster that cannot be reached.
    """

    _lock = Lock()
    _users: ClassVar[int] = 0
    _is_ours: ClassVar[bool] = False

    def __init__(self, address: str | None) -> None:
        with self._lock:
            if not Connection._users:
                Connection._is_ours = not ray.is_initialized()
                if Connection._is_ours:
                    _connect(address)
            Connection._users += 1

    def close(self) -> None:
        with self._lock:
            Connection._users -= 1
            if not Connection._users and Connection._is_ours:
                ray.shutdown()

    def check_room(self, cpus: float) -> None:
        """Raise ServingError if the cluster has fewer CPUs free."""
        end = time.monotonic() + ROOM_TIMEOUT
        while (free := ray.available_resources().get("CPU", 0.0)) < cpus:
            if time.monotonic() > end:
                raise ServingError(
                    f"its instances reserve {cpus:g} CPUs and the cluster has {free:g} free; add "
                    f"nodes, unload a model, or lower {spell('instances')} or cpus-per-instance"
                )
            time.sleep(0.1)

    def store(self, model: PinnedModel) -> "ray.ObjectRef[bytes]":
        """Put a model into the object store. Raises ModelError if it was changed since it was
        checked."""
        return ray.put(model.read())


def _connect(address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", include_dashboard=False, **quiet)
        return
    unreachable = f"no Ray cluster can be reached at {address}"
    if "://" in address:
        raise UserError(
            f"{address} is the address of a remote driver; run the server on a node of the "
            "cluster, with the address auto (docs/how-to/on-ray.md)"
        )
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT).close()
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(
                f"{unreachable} ({error}); give HOST:PORT of its head node, or auto"
            ) from error
    try:
        ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = str(error).strip().split("\n")[0]
        raise UserError(
            f"{unreachable}: {text} Start it with `ray start --head`, or give no address"
        ) from error


class Instance:
    """The actor: runs units on one thread; cancels them and answers pings on another."""

    def load(self, models: Mapping[str, wire.AssignedModel]) -> tuple[wire.Hello, str]:
        """Load the models, by role; return their signatures and this node's id."""
        warm = {}
        for role, model in models.items():
            content: bytes = ray.get(model.content)
            warm[role] = warm_model(OnnxModel(content, signature=model.signature), model.name)
        self._runner = Runner(warm)
        signatures = {role: model.signature for role, model in warm.items()}
        return wire.Hello(signatures), ray.get_runtime_context().get_node_id()

    def run(self, unit: wire.Unit, rows: Sequence[Any]) -> tuple[wire.Report, Any]:
        """Run a unit on the bytes of its rows; return its report, and the bytes of its outputs."""
        block = rows[0] if len(rows) == 1 else np.concatenate(rows)
        report, outputs = self._runner.run(unit, block.data)
        return report, _as_array(outputs)

    def inject(self, plan: FaultPlan, worker: int, age: float) -> None:
        """Apply a fault plan, which began `age` seconds ago, to units."""
        self._runner.inject(plan, worker, time.monotonic() - age)

    @ray.method(concurrency_group="control")
    def cancel(self, unit: int) -> None:
        self._runner.cancel(unit)

    @ray.method(concurrency_group="control")
    def ping(self) -> None:
        pass


_remote: Any = ray.remote
_Actor = _remote(concurrency_groups={"control": 1})(Instance)


class ActorInstance(SupervisedInstance):
    """One life of an instance, as an actor."""

    def __init__(
        self,
        engine: SupervisedEngine,
        number: int,
        name: str,
        models: Mapping[str, wire.AssignedModel],
    ) -> None:
        super().__init__(engine, number, name, models)
        self._cpus = engine.options.reserved_cpus
        self._actor: Any = None
        self._killed = asyncio.Event()

    async def live(self) -> str:
        self._actor = _Actor.options(num_cpus=self._cpus, scheduling_strategy="SPREAD").remote()
        talking = asyncio.create_task(self._talk())
        killed = asyncio.create_task(self._killed.wait())
        try:
            await asyncio.wait((talking, killed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            killed.cancel()
            talking.cancel()
        if self.why_killed is not None:
            return self.why_killed
        return await talking

    async def _talk(self) -> str:
        """Have it load its models, and ping it until it ends; return why it ended."""
        try:
            hello, self.node = await self._actor.load.remote(self._models)
            self._on_report(hello, b"")
            while True:
                await self._actor.ping.remote()
                self.silence = 0
                await asyncio.sleep(PING_INTERVAL)
        except RayError as error:
            return f"ended: {_last_line(error)}"

    def send_unit(self, unit: wire.Unit, rows: Sequence[wire.Frame]) -> None:
        result = self._actor.run.remote(unit, [_as_array(row) for row in rows])
        self._reporting = asyncio.create_task(self._report(unit.unit, result))

    async def _report(self, unit: int, result: Any) -> None:
        try:
            report, outputs = await result
        except RayActorError as error:
            self.kill(f"ended: {_last_line(error)}")
        except Exception as error:
            self._on_report(wire.Failed(unit, _last_line(error)), b"")
        else:
            self._on_report(report, outputs.data)

    def send(self, message: wire.Cancel | wire.InjectFaults) -> None:
        match message:
            case wire.Cancel(unit):
                self._actor.cancel.remote(unit)
            case wire.InjectFaults(plan, worker, start):
                self._actor.inject.remote(plan, worker, time.monotonic() - start)

    def _end(self) -> None:
        self._killed.set()
        if self._actor is not None:
            with suppress(Exception):  # if the cluster is gone, so is the actor
                ray.kill(self._actor)


def _as_array(frame: wire.Frame) -> Any:
    """Return bytes as an array, whose content Ray passes on without pickling."""
    return np.frombuffer(frame, np.uint8)


def _last_line(error: BaseException) -> str:
    """Return the last line of an error, without its traceback and Ray's advice."""
    lines = str(error).strip().splitlines()
    return lines[-1].partition(" Some common causes")[0] if lines else repr(error)

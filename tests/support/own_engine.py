"""Engines as users write them: models in the server's own process, with options of their own."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnx_models import output_of
from parity_models.emulation import FaultPlan, WorkerFaults
from parity_models.models.onnx_model import OnnxModel
from parity_models.options import Option
from parity_models.serving.engine import Engine, EngineListener, Parts


class InProcess(Engine):
    """Instances are counted only: all of them run on the thread of the event loop."""

    name = "in-process"

    @dataclass(frozen=True, kw_only=True)
    class Options(Engine.Options):
        """What can be set."""

        called: Annotated[str, Option("What instances are called.")] = "here"

    def __init__(self, options: Any, parts: Parts) -> None:
        self._called: str = options.called
        self._models = {role: OnnxModel(model.read()) for role, model in parts.models.items()}
        self._lives = count()
        self._roles: dict[str, frozenset[str]] = {}
        self._units: dict[str, int] = {}

    async def start(self, roles: Sequence[frozenset[str]], listener: EngineListener) -> None:
        self._listener = listener
        for each in roles:
            self._join(each)

    def _join(self, roles: frozenset[str]) -> None:
        instance = f"{self._called}-{next(self._lives)}"
        self._roles[instance] = roles
        self._listener.instance_joined(instance, roles)

    def run(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        if instance in self._roles:
            self._units[instance] = unit
            delay = self.seconds(instance, role)
            asyncio.get_running_loop().call_later(delay, self._finish, instance, unit, role, rows)

    def seconds(self, instance: str, role: str) -> float:
        """How long a unit that begins now is to take."""
        return 0.0

    def _finish(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        if self._units.get(instance) == unit:
            del self._units[instance]
            self._listener.unit_finished(unit, output_of(self._models[role], np.stack(rows)))

    def cancel(self, instance: str, unit: int) -> None:
        """It is as good as finished."""

    def recycle(self, instance: str, why: str) -> None:
        roles = self._roles.pop(instance, None)
        if roles is not None:
            self._units.pop(instance, None)
            self._listener.instance_left(instance, why)
            self._join(roles)

    def running(self) -> Mapping[str, int | None]:
        return {instance: self._units.get(instance) for instance in self._roles}

    @property
    def tolerance(self) -> float:
        return 1e-5

    async def stop(self) -> None:
        self._roles.clear()
        self._units.clear()


class Emulated(InProcess):
    """Its instances emulate accelerators: units take as long as a fault plan says, or longer."""

    name = "emulated"
    takes_faults = True

    @dataclass(frozen=True, kw_only=True)
    class Options(InProcess.Options):
        """What can be set."""

        pace: Annotated[float, Option("How many times as long units take.", at_least=1)] = 1.0

    def __init__(self, options: Any, parts: Parts) -> None:
        super().__init__(options, parts)
        self._pace: float = options.pace
        self._began = 0.0
        self._faults: dict[str, WorkerFaults] = {}

    def inject_faults(self, plan: FaultPlan) -> None:
        self._began = asyncio.get_running_loop().time()
        self._faults = {each: WorkerFaults(plan, i) for i, each in enumerate(self._roles)}

    def seconds(self, instance: str, role: str) -> float:
        if instance not in self._faults:
            return 0.0
        now = asyncio.get_running_loop().time() - self._began
        return self._pace * (self._faults[instance].release(now, now, role) - now)


class Faceless(InProcess):
    """It refuses an option of servers."""

    name = "faceless"
    refuses: ClassVar[Mapping[str, str]] = {"ui": "its servers have no page"}


ENGINE, EMULATED, FACELESS = (
    f"{__name__}:{each}" for each in ("InProcess", "Emulated", "Faceless")
)

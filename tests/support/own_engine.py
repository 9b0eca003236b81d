"""An engine as users write one: models in the server's own process, with an option of its own."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

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
            asyncio.get_running_loop().call_soon(self._finish, instance, unit, role, rows)

    def _finish(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        if self._units.get(instance) == unit:
            del self._units[instance]
            self._listener.unit_finished(unit, self._models[role](np.stack(rows)))

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


ENGINE = f"{__name__}:InProcess"

"""The live demo as a whole: two stages, the load on both, and the page."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.models.bundle import Bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import POLICIES, EqualResources, NoRedundancy
from parity_models.serving.asked import Answers
from parity_models.serving.errors import UnavailableError
from parity_models.serving.http.http_server import HttpServer
from parity_models.serving.http.listening import listen, url_of
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import OneModel
from parity_models.serving.page.routes import Controls, Page, Sides
from parity_models.serving.plan import Plan, default_policy
from parity_models.serving.rest.service import Rest
from parity_models.serving.server import ServeOptions
from parity_models_lab.live.controls import (
    Control,
    Corrupt,
    Kill,
    Load,
    Policy,
    Slow,
    Stop,
    control_of,
    worker_of,
)
from parity_models_lab.live.liar import write_liar
from parity_models_lab.live.stage import Scene, Stage

LOADED = 0.3
"""The share of what all instances can answer that is asked at first."""

BEHIND = 1.0
"""Seconds after which what was due is given up: the machine was asleep, or far too slow."""


class Live:
    """The two sides: what is asked of both, and what their page may do to them.

    `inputs` (n, *input shape) are asked at random; `folder` is for what workers read.
    """

    def __init__(
        self,
        bundle: Bundle,
        inputs: NDArray[Any],
        scene: Scene,
        folder: Path,
        policies: Sequence[str],
    ) -> None:
        @cache
        def lie() -> str:
            file = folder / "liar.onnx"
            write_liar(bundle.deployed_path, file)
            return str(file)

        self._inputs = inputs
        self._scene = scene
        self._rate = LOADED * scene.capacity
        self._changed = asyncio.Event()
        self._rng = np.random.default_rng(scene.seed)
        self._policies = tuple(policies)
        first = (default_policy(bundle), EqualResources.name)
        self.stages = tuple(Stage(bundle, scene, policy, lie) for policy in first)

    def page(self) -> Page:
        """The page of both."""
        feeds = {"left": lambda: self.stages[0].feed, "right": lambda: self.stages[1].feed}
        return Page("live demo", Sides(feeds), self._control, self._controls)

    async def offer(self) -> None:
        """Ask both sides the same queries at the same times, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if self._rate == 0:
                await self._changed.wait()
                due = loop.time()
            self._changed.clear()
            due += self._rng.exponential(1 / self._rate) if self._rate else 0.0
            await asyncio.sleep(due - loop.time())
            if loop.time() > due + BEHIND:
                due = loop.time()
            row = self._rng.integers(len(self._inputs))
            first = int(self._rng.integers(2))  # neither is always asked before the other
            for stage in (self.stages[first], self.stages[1 - first]):
                stage.ask(self._inputs[row : row + 1])

    def _controls(self, token: str) -> Controls:
        return Controls(self._policies, self._scene.capacity, self._rate, token)

    async def _control(self, body: bytes) -> None:
        await self._do(control_of(body))

    async def _do(self, control: Control) -> None:
        match control:
            case Load(rate):
                if not (isfinite(rate) and 0 <= rate <= self._scene.capacity):
                    raise UserError(f"the load must be 0 to {self._scene.capacity:g} queries/s")
                self._rate = rate
                self._changed.set()
            case Policy(side, policy):
                if not 0 <= side < len(self.stages):
                    raise UserError(f"there are sides 0 and 1, and not {side}")
                if policy not in self._policies:
                    raise UserError(f"the bundle is served with {', '.join(self._policies)} here")
                await self.stages[side].switch(policy)
            case Kill(instance) | Stop(instance) | Slow(instance) | Corrupt(instance):
                worker = worker_of(instance, self._scene.workers)
                for stage in self.stages:
                    _HARM[type(control)](stage, worker)


_HARM: dict[type, Callable[[Stage, int], None]] = {
    Kill: Stage.kill,
    Stop: Stage.pause,
    Slow: Stage.slow,
    Corrupt: Stage.corrupt,
}


@asynccontextmanager
async def live(
    bundle: Bundle, inputs: NDArray[Any], scene: Scene, *, port: int = 0
) -> AsyncIterator[str]:
    """Run the demo while the context lasts; gives the page's URL, on this machine.

    Raises UserError if the inputs do not fit or the port cannot be had, ServingError if a side
    does not start.
    """
    model = bundle.manifest.deployed.input
    if inputs.shape[1:] != model.shape or not len(inputs):
        raise UserError(f"the inputs are {list(inputs.shape)}, and the model takes rows of {model}")
    with tempfile.TemporaryDirectory(prefix="parm-live-") as folder:
        policies = fitting_policies(bundle)
        demo = Live(bundle, inputs.astype(model.dtype), scene, Path(folder), policies)
        listening = listen("127.0.0.1", port)
        server = _page_server(bundle, demo)
        server.start(listening)
        offering: asyncio.Task[None] | None = None
        try:
            await asyncio.gather(*(stage.start() for stage in demo.stages))
            offering = asyncio.create_task(demo.offer())
            yield f"{url_of(listening)}/ui/"
        finally:
            if offering is not None:
                offering.cancel()
                with suppress(asyncio.CancelledError):
                    await offering
            for stage in demo.stages:
                await stage.stop()
            await server.stop()


def fitting_policies(bundle: Bundle) -> list[str]:
    """The policies that the bundle can be served with, on as many instances each: all that there
    are, for further instances, too."""
    instances = {}
    for name in POLICIES.names:
        with suppress(UserError):
            instances[name] = len(Plan(bundle, ServeOptions(policy=PolicyChoice(name))).roles)
    most = max(instances.values(), default=0)
    return [name for name, count in instances.items() if count == most]


def _page_server(bundle: Bundle, demo: Live) -> HttpServer:
    """What answers for the page, and for nothing else."""
    metrics, limits = Metrics(), Limits()
    plan = Plan(bundle, ServeOptions(policy=PolicyChoice(NoRedundancy.name)))
    budget = ByteBudget(limits.max_in_flight)
    pages = demo.page().routes()
    models = OneModel(_Nobody(), plan.model)
    rest = Rest(models, metrics, limits, budget, has=pages.__contains__, pages=pages)
    return HttpServer(rest, metrics)


class _Nobody:
    """Answers no queries: those of the demo are its own."""

    ready = False
    quarantined = ()

    async def infer(
        self, rows: NDArray[Any], timeout: float | None, *, tenant: str | None, exact: bool
    ) -> Answers:
        raise UnavailableError("the live demo answers its own queries alone")

"""The instances that the models of a repository share: loads are looked at, and instances moved."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from parity_models.serving.frontend import now
from parity_models.serving.options import ServeOptions
from parity_models.serving.page.frames import SharedView
from parity_models.serving.repository.repository_metrics import RepositoryMetrics
from parity_models.serving.repository.sharing import Move, Sharing, Work
from parity_models.serving.repository.sharing_options import SharingOptions

LOOK_EVERY = 0.5
"""Seconds between two looks at the loads; at each, at most one instance moves."""

_log = logging.getLogger(__name__)


class Sharer(Protocol):
    """A model that shares instances."""

    @property
    def work(self) -> Work | None:
        """The work that it has; None while no version takes requests."""

    async def shrink_to(self, instances: int) -> None:
        """Have at most this many instances for each version; returns when the others are gone.

        No request fails because of it.
        """

    def grow_to(self, instances: int) -> None:
        """Have at least this many instances for each version; new ones join once they are warm."""

    def tell(self, kind: str, what: str) -> None:
        """Tell those who watch it what became of it."""


class SharedInstances:
    """Moves instances between `models` (by name) as Sharing decides; `options` say how many there
    are.

    Raises UserError for options that cannot be.
    """

    def __init__(
        self,
        options: SharingOptions,
        models: Callable[[], Mapping[str, Sharer]],
        metrics: RepositoryMetrics,
    ) -> None:
        assert options.shared_instances is not None
        self._sharing = Sharing(options.shared_instances, options.reserves)
        self._models = models
        self._metrics = metrics
        self._changing = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None
        metrics.sharing = self._sharing

    def begin(self, names: Iterable[str]) -> None:
        """Divide the instances among the models that are about to be loaded."""
        self._sharing.begin(names)

    async def admit(self, name: str, options: ServeOptions) -> ServeOptions:
        """The options of a version that is about to start, with the number of its instances.

        Returns once other models have given these up. Raises UserError if there are not enough.
        """
        async with self._changing:
            self._sharing.enter(name, options.min_ready)
            await self._fit()
            return replace(options, instances=self._sharing.has[name], parity_instances=0)

    def leave(self, name: str) -> None:
        """No version of the model runs any more, or is being started."""
        self._sharing.leave(name)

    def view(self, name: str) -> SharedView:
        """What a page shows of a model's instances."""
        sharing = self._sharing
        has, load = sharing.has.get(name, 0), sharing.loads.get(name, 0.0)
        return SharedView(has, sharing.least_of(name), load)

    def start(self) -> None:
        """Look at the loads from now on."""
        self._looking = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """Move no instance any more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                async with self._changing:
                    works = {name: model.work for name, model in self._models().items()}
                    known = {name: work for name, work in works.items() if work is not None}
                    move = self._sharing.look(now(), known)
                    if move is not None:
                        self._say(move)
                    await self._fit()
            except Exception:  # as of a system that has no processes left: it may have some later
                _log.exception("instances could not be moved")

    async def _fit(self) -> None:
        """Give each model the number of instances that it should have: first those that lose
        some."""
        models = [
            (model, instances)
            for name, model in self._models().items()
            if (instances := self._sharing.has.get(name)) is not None
        ]
        await asyncio.gather(*(model.shrink_to(instances) for model, instances in models))
        for model, instances in models:
            model.grow_to(instances)

    def _say(self, move: Move) -> None:
        taker, giver = move.taker, move.giver
        has, load = self._sharing.has, self._sharing.loads
        whence = "one that was free" if giver is None else f"one of {giver}'s"
        _log.info(
            "%s gets an instance, %s: it has %d for a load of %.2f%s",
            taker,
            whence,
            has[taker],
            load[taker],
            "" if giver is None else f", {giver} has {has[giver]} for {load[giver]:.2f}",
        )
        self._metrics.moved(taker, giver)
        models = self._models()
        models[taker].tell("instances", f"has {has[taker]} instances, {whence}")
        if giver is not None:
            models[giver].tell("instances", f"has {has[giver]} instances, {taker} got one")

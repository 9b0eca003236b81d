"""One model of a repository: starts and stops its versions as its rollout decides."""

import asyncio
import logging
import os
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity_models.errors import ParityModelsError, ServingError, UserError
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.serving.errors import InvalidRequestError, NotFoundError, UnavailableError
from parity_models.serving.frontend import now
from parity_models.serving.hosted import Hosted, HostedVersion, try_out
from parity_models.serving.models import IndexEntry, ServedVersion, why_unready
from parity_models.serving.options import ServeOptions
from parity_models.serving.repository.canary import Canary, agreement_of, check_tensors
from parity_models.serving.repository.evidence import Seen
from parity_models.serving.repository.instances import SharedInstances
from parity_models.serving.repository.layout import OptionsFor, options_of, versions_in
from parity_models.serving.repository.repository_metrics import RepositoryMetrics
from parity_models.serving.repository.rollout import Actions, Phase, Rollout, Start
from parity_models.serving.repository.rollout_options import RolloutOptions
from parity_models.serving.repository.sharing import Work
from parity_models.serving.repository.sharing_options import SharingOptions
from parity_models.serving.repository.shown import History, ShownModel

if TYPE_CHECKING:
    from parity_models.serving.tracing import Tracing

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What all models of a repository have in common."""

    options_for: OptionsFor
    rollout: RolloutOptions
    sharing: SharingOptions = field(default_factory=SharingOptions)
    allow_code: Collection[str] = ()
    tracing: "Tracing | None" = None


class ManagedModel:
    """A model by the name of its `folder`, none of whose versions runs at first.

    Its instances are its own, or those that it has of `shared` ones.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        metrics: RepositoryMetrics,
        history: History,
        shared: SharedInstances | None,
    ) -> None:
        self.name = folder.name
        self._folder = folder
        self._settings = settings
        self._metrics = metrics
        self._shared = shared
        self._rollout = Rollout(settings.rollout)
        self.shown = ShownModel(self.name, self._rollout, history)
        self._running: dict[str, HostedVersion] = {}
        self._canary: Canary | None = None
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping: dict[str, asyncio.Task[None]] = {}

    # Changes

    async def start(self) -> bool:
        """Load the newest version that can be loaded, unless one is served.

        The index says what is wrong with newer ones; a known problem is not reported again. Returns
        whether to try again later: no version is loaded, as nothing can run the newest one yet.
        """
        for version in reversed(self._versions()):
            try:
                await asyncio.shield(self._task(self._load(version, None, is_start=True)))
                return False
            except UserError as error:
                if isinstance(error.__cause__, ServingError) and error.__cause__.passes:
                    return True
        return False

    async def load(self, version: str | None, share: float | None) -> None:
        """Serve a version, the newest by default, at first with a `share` of requests; returns when
        it takes some. Loading goes on if the caller is cancelled.

        Raises InvalidRequestError if the version cannot be served; then nothing has changed.
        """
        await asyncio.shield(self._task(self._load(version, share)))

    async def unload(self) -> None:
        """Serve the model no more; returns when all that it was asked has been answered."""
        self._act(self._rollout.unload())
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """End all at once, whatever is under way."""
        for task in set(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for running in self._running.values():
            await running.hosted.frontend.stop()
        self.shown.end()

    async def _load(
        self, version: str | None, share: float | None, *, is_start: bool = False
    ) -> None:
        async with self._changing:
            if is_start and self._rollout.current is not None:
                return
            versions = self._versions()
            if not versions:
                raise InvalidRequestError(
                    f"{self._folder} has no version: a folder named 1, 2, ... that is a bundle"
                )
            version = version or versions[-1]
            if version not in versions:
                raise InvalidRequestError(
                    f"model {self.name!r} has no version {version!r}; there are "
                    f"{', '.join(versions)}"
                )
            stopping = self._stopping.get(version)
            if stopping is not None:
                await asyncio.wait((stopping,))
            known = self._rollout.states.get(version) if is_start else None
            actions = self._rollout.load(version, share)
            if Start(version) in actions:
                await self._start(version, share, "" if known is None else known.reason)
            else:
                self._act(actions)

    async def _start(self, version: str, share: float | None, known: str) -> None:
        """Load and warm a version for the rollout; a failure for a `known` reason is not told."""
        if not known:
            self.shown.happened(version, "loading", "is being loaded")
        try:
            hosted = await self._warm(version, share)
        except ParityModelsError as error:
            why = str(error)
            self._rollout.failed(version, why)
            if why != known:
                self._metrics.ended(self.name, "failed to load")
                _log.error("%s version %s cannot be loaded: %s", self.name, version, why)
                self.shown.happened(version, "failed", f"cannot be loaded: {why}")
            raise InvalidRequestError(
                f"version {version} of model {self.name!r} cannot be loaded: {why}"
            ) from error
        except BaseException as error:
            why = f"loading it broke off: {error!r}"
            self._rollout.failed(version, why)
            if why != known:
                self.shown.happened(version, "failed", f"cannot be loaded: {why}")
            raise
        hosted.begin_faults()
        self._running[version] = HostedVersion(hosted)
        for note in hosted.notes:
            _log.warning("%s version %s: %s", self.name, version, note)
        self.shown.happened(version, "loaded", "is loaded")
        had = self._rollout.current is not None
        self._act(self._rollout.loaded(now(), version))
        _log.info("%s version %s is loaded", self.name, version)
        if had and self._rollout.current == version:
            self._metrics.ended(self.name, "took all")

    async def _warm(self, version: str, share: float | None) -> Hosted:
        """The version, with instances that are warm. Nothing is left of it if that fails."""
        bundle, options = await asyncio.to_thread(self._opened, version)
        if self._shared is not None:
            options = await self._shared.admit(self.name, options)
        # What starts beside a version that serves is not to take all cores from it.
        gently = None if self._rollout.current is None else max(1, (os.cpu_count() or 1) // 4)
        parts = (bundle, options, version, gently, self._settings.tracing)
        hosted = await asyncio.to_thread(Hosted, *parts)
        current = self._rollout.current
        if share is not None and current is not None:
            check_tensors(hosted.model, self._running[current].model, current)
        if hosted.feed is not None:
            self.shown.starts(version, hosted.feed)
        try:
            await hosted.start()
        except BaseException:
            self.shown.ends(version)
            await hosted.frontend.stop()
            raise
        return hosted

    def _opened(self, version: str) -> tuple[Bundle, ServeOptions]:
        bundle = open_bundle(self._folder / version, self._settings.allow_code)
        shares, how = self._shared is not None, self._settings.options_for
        options = options_of(self._folder, bundle, how, version=version, shares=shares)
        if shares:  # what fails is to take no instances from others
            try_out(bundle, options, version)
        return bundle, options

    def _act(self, actions: Actions) -> None:
        """Carry out what is to be stopped, and choose among those that are left."""
        for action in actions:
            version = action.version
            reason = self._rollout.states[version].reason
            _log.info("%s version %s is unloaded: %s", self.name, version, reason)
            kind = "went back" if reason.startswith("went back") else "ending"
            self.shown.happened(version, kind, f"takes no more requests: {reason}")
            self._stopping[version] = self._task(self._stop(version))
        self._canary = self._make_canary()
        self.shown.traffic_may_have_changed()

    def _make_canary(self) -> Canary | None:
        rollout = self._rollout
        if rollout.canary is None or rollout.current is None:
            return None
        version = rollout.canary
        new, old = self._running[version], self._running[rollout.current]

        def saw(seen: Seen) -> None:
            before = rollout.canary
            self._metrics.saw(self.name, version, seen)
            actions = rollout.saw(now(), version, seen)
            if before == version and rollout.canary is None:
                back = rollout.current != version
                self._metrics.ended(self.name, "went back" if back else "took all")
                if back:
                    reason = rollout.reason(version)
                    _log.warning("%s version %s %s", self.name, version, reason)
            if actions:
                self._act(actions)

        frontends = (new.hosted.frontend, old.hosted.frontend)
        return Canary(new, old, frontends, agreement_of(old.hosted.bundle), saw)

    async def _stop(self, version: str) -> None:
        running = self._running[version]
        try:
            await running.hosted.frontend.drain()
            self.shown.happened(version, "drained", "has answered all that it was asked, and ends")
        finally:
            self.shown.ends(version)
            await running.hosted.frontend.stop()
            del self._running[version]
            del self._stopping[version]
            self._rollout.stopped(version)

    def _give_back_instances(self) -> None:
        """Where no version runs or starts, others may have its instances."""
        starts = any(each.phase is Phase.LOADING for each in self._rollout.states.values())
        if self._shared is not None and not self._running and not starts:
            self._shared.leave(self.name)

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._give_back_instances()
        if not task.cancelled():
            task.exception()  # whoever asked for it may have gone

    # Shared instances: it is a Sharer

    @property
    def work(self) -> Work | None:
        current = self._rollout.current
        if current is None:
            return None
        frontend = self._running[current].hosted.frontend
        return Work(frontend.asked, frontend.busy, frontend.rate)

    async def shrink_to(self, instances: int) -> None:
        running = list(self._running.values())
        await asyncio.gather(*(each.hosted.frontend.shrink_to(instances) for each in running))

    def grow_to(self, instances: int) -> None:
        for each in self._running.values():
            each.hosted.frontend.grow_to(instances)

    def tell(self, kind: str, what: str) -> None:
        if self._rollout.current is not None:
            self.shown.happened(self._rollout.current, kind, what)

    # Questions

    @property
    def versions(self) -> Sequence[str]:
        """Those that take requests, the current one first."""
        return list(self._rollout.traffic.shares)

    @property
    def running(self) -> dict[str, ServedVersion]:
        """All that run."""
        return dict(self._running)

    @property
    def share(self) -> dict[str, float]:
        """The share of requests that each takes."""
        return self._rollout.traffic.shares

    @property
    def why_unready(self) -> str:
        """Why it does not answer; empty if it does, or if no version should."""
        current = self._rollout.current
        return "" if current is None else why_unready(self._running[current])

    def find(self, version: str | None) -> ServedVersion:
        """The version, or the current one. Raises NotFoundError or UnavailableError."""
        if version is None:
            if self._rollout.current is None:
                raise UnavailableError(f"model {self.name!r} is not served: {self._why_not()}")
            return self._running[self._rollout.current]
        if version in self.versions:
            return self._running[version]
        if self._rollout.phase(version) is Phase.UNAVAILABLE and version not in self._versions():
            raise NotFoundError(f"model {self.name!r} has no version {version!r}")
        raise UnavailableError(
            f"version {version} of model {self.name!r} is not served: "
            f"{self._rollout.reason(version) or 'it is being loaded'}"
        )

    def choose(self) -> ServedVersion:
        """The version that is to take the next request. Raises UnavailableError."""
        version = self._rollout.choose()
        if version is not None and version == self._rollout.canary and self._canary is not None:
            return self._canary
        return self.find(None)

    def index(self) -> list[IndexEntry]:
        """The versions in the folder, and those that run without being there any more."""
        versions = {*self._versions(), *self._running, *self._rollout.states}
        entries = [
            IndexEntry(self.name, each, self._rollout.phase(each), self._rollout.reason(each))
            for each in sorted(versions, key=int)
        ]
        why = "has no version: a folder named 1, 2, ... that is a bundle"
        return entries or [IndexEntry(self.name, "", Phase.UNAVAILABLE, why)]

    def _why_not(self) -> str:
        reasons = [each.reason for each in self.index() if each.reason]
        return reasons[-1] if reasons else "it is being loaded"

    def _versions(self) -> list[str]:
        return list(versions_in(self._folder))

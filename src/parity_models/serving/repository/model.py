"""One model of a repository: loads, replaces and unloads its versions.

    UNAVAILABLE ──load──▶ LOADING ──warm──▶ READY ──replaced, unloaded──▶ UNLOADING ──▶ UNAVAILABLE

At most one version is *current*: READY, and taking requests. A new one takes its place once its
instances are warm; then the old one answers what it has, and ends.
"""

import asyncio
import logging
import os
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity_models.errors import ParityModelsError, ServingError, UserError
from parity_models.models.bundle import open_bundle
from parity_models.serving.deployment import Deployment
from parity_models.serving.errors import InvalidRequestError, NotFoundError, UnavailableError
from parity_models.serving.models import IndexEntry, ServedVersion, why_unready
from parity_models.serving.options import ServeOptions
from parity_models.serving.repository.layout import options_of, versions_in

if TYPE_CHECKING:
    from parity_models.serving.tracing import Tracing

_log = logging.getLogger(__name__)


class State(StrEnum):
    """The state of a version, as Triton names it."""

    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"


@dataclass
class _Status:
    state: State = State.UNAVAILABLE
    reason: str = ""


class RepositoryModel:
    """The model in `folder`; none of its versions is loaded at first.

    Args:
        folder: Holds the versions; its name is the model's.
        options: How to serve a version, unless the model's settings say otherwise.
        allow_code: Names of the user's own code that bundles may load.
        tracing: Makes spans of the model's queries.

    """

    def __init__(
        self,
        folder: Path,
        options: ServeOptions,
        allow_code: Collection[str] = (),
        tracing: "Tracing | None" = None,
    ) -> None:
        self.name = folder.name
        self.current: str | None = None
        """The version that takes requests."""
        self.running: dict[str, Deployment] = {}
        """The versions that have instances, those that are ending included."""
        self._redundancy_on = True
        self._folder = folder
        self._options = options
        self._allow_code = allow_code
        self._tracing = tracing
        self._status: dict[str, _Status] = {}
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> bool:
        """Load the newest version that loads, unless one is current.

        Returns:
            Whether to try again later, as the servers that run the newest version are not up yet.

        """
        for version in reversed(self._versions()):
            try:
                await asyncio.shield(self._task(self._load(version, at_start=True)))
                return False
            except UserError as error:
                if isinstance(error.__cause__, ServingError) and error.__cause__.passes:
                    return True
        return False

    async def load(self, version: str | None = None) -> None:
        """Make a version current, by default the newest. Goes on if the caller is cancelled.

        Raises:
            InvalidRequestError: It cannot be loaded. The version that was current still is.

        """
        await asyncio.shield(self._task(self._load(version)))

    async def unload(self) -> None:
        """Unload all versions; returns when the requests that they have are answered."""
        for status in self._status.values():
            if status.state is State.LOADING:
                status.state, status.reason = State.UNLOADING, "unloaded"
        current, self.current = self.current, None
        if current is not None:
            self._end(current, "unloaded")
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def stop(self) -> None:
        """End all versions at once."""
        for task in set(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for running in self.running.values():
            await running.stop()

    def switch_redundancy(self, on: bool) -> None:
        """Send redundant work from now on, or none, in whatever version."""
        self._redundancy_on = on
        for running in self.running.values():
            running.switch_redundancy(on)

    def close_feed(self) -> None:
        """End the streams of the live page."""
        for running in self.running.values():
            running.close_feed()

    @property
    def why_unready(self) -> str:
        """Why the current version does not answer; empty if it does, or if there is none."""
        return "" if self.current is None else why_unready(self.running[self.current])

    def find(self, version: str | None) -> ServedVersion:
        """Return the current version, which must be `version` if that is given.

        Raises:
            NotFoundError: There is no such version.
            UnavailableError: It takes no requests.

        """
        if self.current is not None and version in (None, self.current):
            return self.running[self.current]
        if version is None:
            reasons = [each.reason for each in self.index() if each.reason]
            why = reasons[-1] if reasons else "it is being loaded"
            raise UnavailableError(f"model {self.name!r} is not served: {why}")
        if self._status_of(version).state is State.UNAVAILABLE and version not in self._versions():
            raise NotFoundError(f"model {self.name!r} has no version {version!r}")
        raise UnavailableError(
            f"version {version} of model {self.name!r} is not served: "
            f"{self._reason(version) or 'it is being loaded'}"
        )

    def index(self) -> list[IndexEntry]:
        """Return all versions, those that still run without their folder included."""
        versions = {*self._versions(), *self.running, *self._status}
        entries = [
            IndexEntry(self.name, each, self._status_of(each).state, self._reason(each))
            for each in sorted(versions, key=int)
        ]
        why = "has no version: a folder named 1, 2, ... that is a bundle"
        return entries or [IndexEntry(self.name, "", State.UNAVAILABLE, why)]

    def _versions(self) -> Sequence[str]:
        return list(versions_in(self._folder))

    def _status_of(self, version: str) -> _Status:
        return self._status.get(version, _Status(reason="not loaded"))

    def _reason(self, version: str) -> str:
        return self._status_of(version).reason

    async def _load(self, version: str | None, *, at_start: bool = False) -> None:
        async with self._changing:
            if at_start and self.current is not None:
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
            if version in self._stopping:
                await asyncio.wait((self._stopping[version],))
            if version == self.current:
                return
            known = self._reason(version) if at_start else ""
            status = self._status[version] = _Status(State.LOADING)
            try:
                deployment = await self._warm(version)
            except ParityModelsError as error:
                status.state, status.reason = State.UNAVAILABLE, str(error)
                if status.reason != known:  # a retry reports only news
                    _log.error("%s version %s cannot be loaded: %s", self.name, version, error)
                raise InvalidRequestError(
                    f"version {version} of model {self.name!r} cannot be loaded: {error}"
                ) from error
            except BaseException as error:
                status.state, status.reason = State.UNAVAILABLE, f"loading failed: {error!r}"
                raise
            self.running[version] = deployment
            if not self._redundancy_on:
                deployment.switch_redundancy(False)
            self._loaded(version, status)

    def _loaded(self, version: str, status: _Status) -> None:
        if status.state is not State.LOADING:  # unloaded in the meantime
            self._end(version, status.reason)
            return
        status.state = State.READY
        deployment = self.running[version]
        deployment.begin_faults()
        for note in deployment.notes:
            _log.warning("%s version %s: %s", self.name, version, note)
        _log.info("%s version %s is loaded", self.name, version)
        before, self.current = self.current, version
        if before is not None:
            self._end(before, f"version {version} took its place")

    async def _warm(self, version: str) -> Deployment:
        """Start a version's instances; nothing is left of them if that fails."""
        # What starts while another version serves must not take all cores from it.
        at_once = None if self.current is None else max(1, (os.cpu_count() or 1) // 4)
        deployment = await asyncio.to_thread(self._opened, version, at_once)
        try:
            await deployment.start()
        except BaseException:
            await deployment.stop()
            raise
        return deployment

    def _opened(self, version: str, at_once: int | None) -> Deployment:
        bundle = open_bundle(self._folder / version, self._allow_code)
        options = options_of(self._folder, bundle, self._options, version)
        return Deployment(bundle, options, version, starts_at_once=at_once, tracing=self._tracing)

    def _end(self, version: str, why: str) -> None:
        _log.info("%s version %s is unloaded: %s", self.name, version, why)
        self._status[version] = _Status(State.UNLOADING, why)
        self._stopping[version] = self._task(self._stop(version))

    async def _stop(self, version: str) -> None:
        deployment = self.running[version]
        try:
            await deployment.drain()
        finally:
            await deployment.stop()
            del self.running[version]
            del self._stopping[version]
            self._status[version].state = State.UNAVAILABLE

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: the caller may be gone

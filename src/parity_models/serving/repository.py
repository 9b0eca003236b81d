"""A repository: a folder of models that are listed, loaded and unloaded while the server runs.

The layout is Triton's: NAME/VERSION, each a bundle. A model is a folder; its versions are the
folders in it that are named 1, 2, ... Anything else is ignored.
"""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from parity_models.bundle.bundle import open_bundle
from parity_models.errors import ParityModelsError, UserError, spell
from parity_models.serving.deployment import Deployment
from parity_models.serving.errors import InvalidRequestError, NotFoundError, UnavailableError
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import REPOSITORY, IndexEntry, Models, ServedModel, ServedVersion
from parity_models.serving.options import ServeOptions
from parity_models.serving.protocol import read_json

if TYPE_CHECKING:
    from parity_models.serving.tracing import Tracing

_OF_SERVER = frozenset(
    {
        "parm_requests_unauthorized",
        "parm_connections",
        "parm_connections_ended",
        "parm_refused",
        "parm_bytes_in_flight",
    }
)
"""Metrics of the server, which no model has."""

_REQUESTS = "parm_requests"
"""Counted with the model that answers, or with the server if no model is found."""

_INSTANCES = 64
"""Instances of all models for which file descriptors are reserved."""

_NO_VERSION = "has no version: a folder named 1, 2, ... that is a bundle"

_log = logging.getLogger(__name__)


def scan(folder: Path) -> list[str]:
    """Return the names of the models in a repository. Raises UserError if it cannot be read."""
    try:
        found = [each for each in folder.iterdir() if each.is_dir()]
    except OSError as error:
        raise UserError(f"the repository {folder} cannot be read: {error.strerror}") from error
    return sorted(each.name for each in found if not each.name.startswith("."))


def versions_in(folder: Path) -> list[str]:
    """Return a model's versions, oldest first; none if its folder is gone."""
    try:
        found = [each.name for each in folder.iterdir() if each.is_dir()]
    except OSError:
        return []
    return sorted((each for each in found if re.fullmatch("[1-9][0-9]*", each)), key=int)


class RepositoryModel:
    """The model in `folder`; none of its versions is loaded at first.

    At most one version is *current*: it takes requests. A new one takes its place once its
    instances are warm; then the old one answers its requests, and ends.

    Args:
        folder: Holds the versions; its name is the model's.
        open_version: Returns a version's deployment, not yet started, given how many instances may
            start at once; None: all.

    """

    def __init__(self, folder: Path, open_version: Callable[[str, int | None], Deployment]) -> None:
        self.name = folder.name
        self.current: Deployment | None = None
        """The version that takes requests."""
        self.running: dict[str, Deployment] = {}
        """The versions that have instances, including those that are ending."""
        self._folder = folder
        self._open_version = open_version
        self._states: dict[str, tuple[str, str]] = {}
        """The state of each version that was tried, and the reason for it, the latest last."""
        self._changing = asyncio.Lock()
        self._unloads = 0
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load the newest version that loads, unless one is current."""
        for version in reversed(versions_in(self._folder)):
            if self.current is not None:
                break
            with suppress(UserError):
                await self.load(version)

    async def load(self, version: str | None = None) -> None:
        """Make a version current, by default the newest. Goes on if the caller is cancelled.

        Raises:
            InvalidRequestError: It cannot be loaded. The version that was current still is.

        """
        await asyncio.shield(self._task(self._load(version)))

    async def unload(self, why: str = "unloaded") -> None:
        """Unload all versions; returns when their requests are answered."""
        self._unloads += 1
        for version, (state, _) in list(self._states.items()):
            if state == "LOADING":
                self._set_state(version, "UNAVAILABLE", why)
        self._make_current(None, why)
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def stop(self) -> None:
        """End all versions at once."""
        for task in set(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for running in self.running.values():
            await running.stop()

    def find(self, version: str | None) -> ServedVersion:
        """Return the current version, which must be `version` if that is given.

        Raises:
            NotFoundError: There is no such version.
            UnavailableError: It takes no requests.

        """
        current = self.current
        if current is not None and version in (None, current.model.version):
            return current
        reasons = {each.version: each.reason for each in self.index()}
        if version is None:
            latest = [*reasons.values(), *(reason for _, reason in self._states.values())][-1]
            name, why = f"model {self.name!r}", latest
        elif version in reasons:
            name, why = f"version {version} of model {self.name!r}", reasons[version]
        else:
            raise NotFoundError(f"model {self.name!r} has no version {version!r}")
        raise UnavailableError(f"{name} is not served: {why or 'it is being loaded'}")

    def index(self) -> list[IndexEntry]:
        """Return all versions, including those that still run without a folder."""
        entries = [
            IndexEntry(self.name, name, *self._states.get(name, ("UNAVAILABLE", "not loaded")))
            for name in sorted({*versions_in(self._folder), *self.running}, key=int)
        ]
        return entries or [IndexEntry(self.name, "", "UNAVAILABLE", _NO_VERSION)]

    async def _load(self, version: str | None) -> None:
        unloads = self._unloads
        async with self._changing:
            versions = versions_in(self._folder)
            if not versions:
                raise InvalidRequestError(f"{self._folder} {_NO_VERSION}")
            version = version or versions[-1]
            if version not in versions:
                raise InvalidRequestError(
                    f"model {self.name!r} has no version {version!r}; there are "
                    f"{', '.join(versions)}"
                )
            if version in self._ending:
                await asyncio.wait((self._ending[version],))
            if unloads != self._unloads:
                raise InvalidRequestError(f"model {self.name!r} was unloaded in the meantime")
            if version in self.running:  # it is current
                return
            self._set_state(version, "LOADING")
            try:
                deployment = await self._warm(version)
            except ParityModelsError as error:
                self._set_state(version, "UNAVAILABLE", str(error))
                _log.error("%s version %s cannot be loaded: %s", self.name, version, error)
                raise InvalidRequestError(
                    f"version {version} of model {self.name!r} cannot be loaded: {error}"
                ) from error
            except BaseException as error:
                self._set_state(version, "UNAVAILABLE", f"loading failed: {error!r}")
                raise
            self.running[version] = deployment
            state, why = self._states[version]
            if state != "LOADING":  # unloaded in the meantime
                self._end(deployment, why)
                return
            deployment.begin_faults()
            for note in deployment.notes:
                _log.warning("%s version %s: %s", self.name, version, note)
            _log.info("%s version %s is loaded", self.name, version)
            self._set_state(version, "READY")
            self._make_current(deployment, f"version {version} took its place")

    async def _warm(self, version: str) -> Deployment:
        """Start a version's instances; nothing is left of them if that fails."""
        # A version that starts must not take all cores from one that serves.
        together = None if self.current is None else max(1, (os.cpu_count() or 1) // 4)
        deployment = await asyncio.to_thread(self._open_version, version, together)
        try:
            await deployment.start()
        except BaseException:
            await deployment.stop()
            raise
        return deployment

    def _make_current(self, deployment: Deployment | None, why: str) -> None:
        """Let this version take requests, and end the one before, if there is one."""
        before, self.current = self.current, deployment
        if before is not None:
            self._end(before, why)

    def _end(self, deployment: Deployment, why: str) -> None:
        version = deployment.model.version
        _log.info("%s version %s is unloaded: %s", self.name, version, why)
        self._set_state(version, "UNLOADING", why)
        self._ending[version] = self._task(self._stop(deployment, why))

    def _set_state(self, version: str, state: str, reason: str = "") -> None:
        self._states.pop(version, None)
        self._states[version] = state, reason

    async def _stop(self, deployment: Deployment, why: str) -> None:
        version = deployment.model.version
        try:
            await deployment.drain()
        finally:
            await deployment.stop()
            del self.running[version], self._ending[version]
            self._states[version] = "UNAVAILABLE", why  # in its place: an older change

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # retrieved
        return task


class Repository(Models, Collector):
    """The models in `folder`, as Models.

    Args:
        folder: Holds the models.
        options: How to serve each version.
        allow_code: Names of the user's own code that bundles may load.
        tracing: Makes spans of queries.

    Raises:
        UserError: The folder cannot be read, or the options are for one bundle.

    """

    extensions = (REPOSITORY,)
    instances = _INSTANCES

    def __init__(
        self,
        folder: Path,
        options: ServeOptions,
        allow_code: Collection[str] = (),
        tracing: "Tracing | None" = None,
    ) -> None:
        for needless, given in (
            (spell("name"), options.name is not None),
            (spell("journal"), options.journal is not None),
            (spell("deployed"), "deployed" in options.engine.options),
            ("a placement", bool(options.placements)),
        ):
            if given:
                raise UserError(f"{needless} is for a server of one bundle; leave it out")
        self.metrics = Metrics()
        """The metrics of the server; each version has its own."""
        self.registry: Collector = self
        self.title = folder.resolve().name
        self._folder = folder
        self._options = options
        self._allow_code = allow_code
        self._tracing = tracing
        self._models: dict[str, RepositoryModel] = {}
        self._state = "starting"
        scan(folder)

    async def start(self) -> None:
        """Load the newest version of every model that can be loaded; returns when all are."""
        self._scan()
        await asyncio.gather(*(each.start() for each in self._models.values()))
        self._state = ""

    def retire(self) -> None:
        self._state = "stopping"
        for running in self.running():
            running.retire()

    async def drain(self) -> None:
        why = "the server is stopping"
        await asyncio.gather(*(each.unload(why) for each in self._models.values()))

    async def stop(self) -> None:
        await asyncio.gather(*(each.stop() for each in self._models.values()))

    @property
    def why_unready(self) -> str:
        """The reason why the server is not ready; empty if it serves a model or more, and all
        answer. Models that could not be loaded, or were unloaded, do not count."""
        if self._state:
            return f"the server is {self._state}"
        served = [name for name, model in self._models.items() if model.current is not None]
        if not served:
            return "no model is served; load one"
        troubles = ((name, self.find(name, None).why_unready) for name in served)
        return "; ".join(f"{name}: {trouble}" for name, trouble in troubles if trouble)

    @property
    def largest(self) -> ServedModel | None:
        served = (each.model for each in self.running())
        return max(served, key=lambda model: model.max_values, default=None)

    def find(self, name: str, version: str | None) -> ServedVersion:
        return self._known(name).find(version or None)

    def index(self) -> Sequence[IndexEntry]:
        self._scan()
        return [entry for _, each in sorted(self._models.items()) for entry in each.index()]

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load the newest version, or that of `parameters`; see `asked_version`."""
        version = asked_version(parameters)
        if self._state:
            raise UnavailableError(f"the server is {self._state}; try again later")
        self._scan()
        await self._known(name).load(version)

    async def unload(self, name: str) -> None:
        await self._known(name).unload()

    def collect(self) -> Iterable[Metric]:
        """Return all metrics, as a registry does; labels name the version that some belong to."""
        families: dict[str, Metric] = {}
        found: list[tuple[Metric, dict[str, str]]] = [
            (metric, {})
            for metric in self.metrics.registry.collect()
            if metric.name in _OF_SERVER or metric.name == _REQUESTS
        ]
        for running in self.running():
            labels = {"model": running.model.name, "version": running.model.version}
            metrics = running.metrics.registry.collect()
            found += [(each, labels) for each in metrics if each.name not in _OF_SERVER]
        for metric, labels in found:
            empty = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            families.setdefault(metric.name, empty).samples += [
                sample._replace(labels={**labels, **sample.labels}) for sample in metric.samples
            ]
        return families.values()

    def switch_redundancy(self, on: bool) -> None:
        for running in self.running():
            running.switch_redundancy(on)

    def running(self) -> list[Deployment]:
        """Return the versions that run now."""
        return [each for model in self._models.values() for each in model.running.values()]

    def _scan(self) -> None:
        """Add the folder's new models."""
        for name in scan(self._folder):
            if name not in self._models:
                folder = self._folder / name
                self._models[name] = RepositoryModel(folder, partial(self._open, folder))

    def _open(self, folder: Path, version: str, together: int | None) -> Deployment:
        bundle = open_bundle(folder / version, self._allow_code)
        options = replace(self._options, name=folder.name)
        return Deployment(bundle, options, version, starts_at_once=together, tracing=self._tracing)

    def _known(self, name: str) -> RepositoryModel:
        if name not in self._models:
            there = ", ".join(sorted(self._models)) or "none"
            raise NotFoundError(f"no model is called {name[:200]!r}; this server has {there}")
        return self._models[name]


class _Versions(Struct, forbid_unknown_fields=True):
    versions: tuple[int]


class _VersionPolicy(Struct, forbid_unknown_fields=True):
    specific: _Versions


class _Config(Struct, forbid_unknown_fields=True):
    """The part of Triton's model configuration that a load may have."""

    version_policy: _VersionPolicy


_CONFIG = msgspec.json.Decoder(_Config, strict=False)


def asked_version(parameters: Mapping[str, Any]) -> str | None:
    """Return the version that a load request asks for, None if it names none.

    It is the parameter `version` or, as Triton's clients send it, in the parameter `config`.

    Raises:
        InvalidRequestError: It is not a string, or the request has other parameters, which would
            have no effect.

    """
    for name in parameters.keys() - {"version", "config"}:
        raise InvalidRequestError(
            f"the parameter {name[:200]!r} is not supported; a load may have a version, or a "
            "config that names it"
        )
    if (config := parameters.get("config")) is not None:
        what = (
            'the config (one version and nothing else, as {"version_policy": {"specific": '
            '{"versions": [2]}}})'
        )
        policy = read_json(_CONFIG, memoryview(str(config).encode()), what).version_policy
        return str(policy.specific.versions[0])
    version = parameters.get("version")
    if version is not None and not isinstance(version, str):
        raise InvalidRequestError(f"the parameter version is a string, not {version!r}")
    return version

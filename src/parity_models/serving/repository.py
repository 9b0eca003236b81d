"""A repository: a folder of models that are listed, loaded and unloaded while the server runs.

The layout is Triton's: NAME/VERSION, each a bundle. A model is a folder; its versions are folders
in it that are named by whole numbers from 1 on. Anything else is ignored. A model may have a
`serve.toml`, its settings.
"""

import asyncio
import json
import logging
import os
import tomllib
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from parity_models.errors import OptionError, ParityModelsError, ServingError, UserError
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.options import OptionField, declared_in
from parity_models.scheduling.choice import choose, declared_options
from parity_models.serving.backoff import Backoff
from parity_models.serving.deployment import Deployment
from parity_models.serving.errors import InvalidRequestError, NotFoundError, UnavailableError
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import REPOSITORY, VERSION, IndexEntry, ServedModel, ServedVersion
from parity_models.serving.options import EngineChoice, ServeOptions
from parity_models.serving.page.feed import Feed

if TYPE_CHECKING:
    from parity_models.serving.tracing import Tracing

SETTINGS = "serve.toml"

_PER_MODEL = (
    "instances",
    "extra_instances",
    "max_batch",
    "max_queue",
    "deadline",
    "verify_every",
    "agreement",
)
"""Options of the server that a model's settings may override."""

_OF_SERVER = frozenset(
    {
        "parm_requests_unauthorized",
        "parm_connections",
        "parm_connections_ended",
        "parm_refused",
        "parm_bytes_in_flight",
        "parm_received_bytes",
        "parm_sent_bytes",
        "parm_certificate_expires_seconds",
        "parm_log_lines_dropped",
    }
)
"""Metrics of the server, which no model has."""

_REQUESTS = "parm_requests"
"""Counted with the model that answers, or with the server where no model is found."""

_NO_VERSION = "has no version: a folder named 1, 2, ... that is a bundle"

_log = logging.getLogger(__name__)


# The folder


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
    return sorted((each for each in found if _is_version(each)), key=int)


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and not name.startswith("0")


# A model's settings


def options_of(
    folder: Path, bundle: Bundle, options: ServeOptions, version: str = VERSION
) -> ServeOptions:
    """Return the options by which a `version` of the model in `folder` is served: `options`, and
    the model's settings.

    Raises:
        UserError: The settings are wrong.

    """
    path, given = folder / SETTINGS, {}
    try:
        read = tomllib.loads(path.read_text())
        given = {key.replace("-", "_"): value for key, value in read.items()}
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    try:
        return _with_settings(replace(options, name=folder.name), bundle, given, version)
    except UserError as error:
        if not given:
            raise
        said = error.typed.replace("--", "") if isinstance(error, OptionError) else str(error)
        raise UserError(f"{path}: {said}") from error


def _with_settings(
    options: ServeOptions, bundle: Bundle, given: Mapping[str, Any], version: str
) -> ServeOptions:
    engine, name = options.engine, str(options.name)
    of_engine = {each.name: each for each in declared_in(engine.kind.Options)}
    own = {key: _parsed(of_engine[key], given[key]) for key in given if key in of_engine}
    values = engine.kind.options_of_model(engine.options, own, bundle, name, version)
    engine = EngineChoice(engine.name, values)
    fixed = engine.kind.fixed_roles(engine.settings, bundle) is not None
    for key in ("instances", "extra_instances"):
        if key in given and fixed:
            raise UserError(
                f"leave {_key(key)} out with the engine {engine.name}: it has the instances "
                "that it is given"
            )
    of_server = {each.name: each for each in declared_in(ServeOptions) if each.name in _PER_MODEL}
    changed = {key: _parsed(of_server[key], given[key]) for key in given if key in of_server}
    options = replace(options, engine=engine, **changed)
    rest = {key: value for key, value in given.items() if key not in {*of_server, *of_engine}}
    policy = rest.pop("policy", None)
    if policy is None:
        for key in rest:
            raise UserError(
                f"{_key(key)} is not an option of a model: there are "
                f"{', '.join(map(_key, (*_PER_MODEL, *of_engine)))}, and policy with its options"
            )
        return options
    if not isinstance(policy, str):
        raise UserError(f"policy is a name, not {policy!r}")
    fields = {each.name: each for each in declared_options(policy, rest.get("dispatch"))}
    for key in rest.keys() & fields.keys():
        rest[key] = _parsed(fields[key], rest[key])
    return replace(options, policy=choose(policy, rest))


def _parsed(field: OptionField, value: Any) -> Any:
    try:
        return field.parse(value)
    except UserError as error:
        raise UserError(f"{_key(field.name)} {error}") from None


def _key(option: str) -> str:
    return option.replace("_", "-")


# One model


class State(StrEnum):
    """The state of a version, as Triton names it."""

    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"


@dataclass
class _Version:
    """The state of a version with the reason, and the task that ends its instances."""

    state: State = State.UNAVAILABLE
    reason: str = "not loaded"
    ending: asyncio.Task[None] | None = None


class RepositoryModel:
    """The model in `folder`; none of its versions is loaded at first.

        UNAVAILABLE ─load─▶ LOADING ─warm─▶ READY ─replaced, unloaded─▶ UNLOADING ─▶ UNAVAILABLE

    At most one version is *current*: READY, and taking requests. A new one takes its place once its
    instances are warm; then the old one answers its requests, and ends.

    Args:
        folder: Holds the versions; its name is the model's.
        open_version: Returns the deployment of a version, which is not started yet, given the
            instances that may start at once; None: all.

    """

    def __init__(self, folder: Path, open_version: Callable[[str, int | None], Deployment]) -> None:
        self.name = folder.name
        self.current: str | None = None
        """The version that takes requests."""
        self.running: dict[str, Deployment] = {}
        """The versions that have instances, those that are ending included."""
        self._folder = folder
        self._open_version = open_version
        self._versions: dict[str, _Version] = {}
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._retrying: asyncio.Task[None] | None = None
        self._why_none = ""
        """Why no version is current, if one was; else its last failure says it."""

    async def start(self) -> None:
        """Load the newest version that loads. Where the servers that run the newest are not up
        yet, try again until one is."""
        if await self._load_newest():
            self._retrying = asyncio.create_task(self._retry())

    async def load(self, version: str | None = None) -> None:
        """Make a version current, by default the newest. Goes on if the caller is cancelled.

        Raises:
            InvalidRequestError: It cannot be loaded. The version that was current still is.

        """
        await asyncio.shield(self._task(self._load(version)))

    async def unload(self, why: str = "unloaded") -> None:
        """Unload all versions; returns when their requests are answered."""
        self._stop_retrying()
        for each in self._versions.values():
            if each.state is State.LOADING:
                each.state, each.reason = State.UNLOADING, why
        current, self.current = self.current, None
        if current is not None:
            self._end(current, why)
            self._why_none = why
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def stop(self) -> None:
        """End all versions at once."""
        self._stop_retrying()
        for task in set(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for running in self.running.values():
            await running.stop()

    @property
    def why_unready(self) -> str:
        """The reason why the current version does not answer; empty if it does or there is none."""
        return "" if self.current is None else self.running[self.current].why_unready

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
            why = self._why_none or (reasons[-1] if reasons else "it is being loaded")
            raise UnavailableError(f"model {self.name!r} is not served: {why}")
        known = self._versions.get(version, _Version())
        if known.state is State.UNAVAILABLE and version not in versions_in(self._folder):
            raise NotFoundError(f"model {self.name!r} has no version {version!r}")
        raise UnavailableError(
            f"version {version} of model {self.name!r} is not served: "
            f"{known.reason or 'it is being loaded'}"
        )

    def index(self) -> list[IndexEntry]:
        """Return all versions, those that still run without their folder included."""
        entries = []
        for name in sorted({*versions_in(self._folder), *self._versions}, key=int):
            version = self._versions.get(name, _Version())
            entries.append(IndexEntry(self.name, name, version.state, version.reason))
        return entries or [IndexEntry(self.name, "", State.UNAVAILABLE, _NO_VERSION)]

    async def _load_newest(self) -> bool:
        """Load the newest version that loads, unless one is current. Return whether to try again
        later."""
        for version in reversed(versions_in(self._folder)):
            try:
                await asyncio.shield(self._task(self._load(version, at_start=True)))
                return False
            except UserError as error:
                if isinstance(error.__cause__, ServingError) and error.__cause__.passes:
                    return True
        return False

    async def _retry(self) -> None:
        backoff, known = Backoff(), ""
        while self.current is None:
            await asyncio.sleep(backoff.after(0.0))
            try:
                if not await self._load_newest():
                    break
            except Exception as error:
                if repr(error) != known:
                    known = repr(error)
                    _log.exception("%s cannot be started; trying again", self.name)

    def _stop_retrying(self) -> None:
        if self._retrying is not None:
            self._retrying.cancel()

    async def _load(self, version: str | None, *, at_start: bool = False) -> None:
        async with self._changing:
            if at_start and self.current is not None:
                return
            versions = versions_in(self._folder)
            if not versions:
                raise InvalidRequestError(f"{self._folder} {_NO_VERSION}")
            version = version or versions[-1]
            if version not in versions:
                raise InvalidRequestError(
                    f"model {self.name!r} has no version {version!r}; there are "
                    f"{', '.join(versions)}"
                )
            loaded = self._versions.setdefault(version, _Version())
            if loaded.ending is not None:
                await asyncio.wait((loaded.ending,))
            if version == self.current:
                return
            known = loaded.reason if at_start else ""
            loaded.state, loaded.reason = State.LOADING, ""
            self._why_none = ""
            try:
                deployment = self.running[version] = await self._warm(version)
            except ParityModelsError as error:
                loaded.state, loaded.reason = State.UNAVAILABLE, str(error)
                if loaded.reason != known:  # a retry reports only news
                    _log.error("%s version %s cannot be loaded: %s", self.name, version, error)
                raise InvalidRequestError(
                    f"version {version} of model {self.name!r} cannot be loaded: {error}"
                ) from error
            except BaseException as error:
                loaded.state, loaded.reason = State.UNAVAILABLE, f"loading failed: {error!r}"
                raise
            if loaded.state is not State.LOADING:  # unloaded in the meantime
                self._end(version, loaded.reason)
                return
            loaded.state = State.READY
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
        deployment = await asyncio.to_thread(self._open_version, version, at_once)
        try:
            await deployment.start()
        except BaseException:
            await deployment.stop()
            raise
        return deployment

    def _end(self, version: str, why: str) -> None:
        _log.info("%s version %s is unloaded: %s", self.name, version, why)
        ended = self._versions[version]
        ended.state, ended.reason = State.UNLOADING, why
        ended.ending = self._task(self._stop(version, ended))

    async def _stop(self, version: str, ended: _Version) -> None:
        deployment = self.running[version]
        try:
            await deployment.drain()
        finally:
            await deployment.stop()
            del self.running[version]
            ended.state, ended.ending = State.UNAVAILABLE, None

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: the caller may be gone


# All models


class Repository(Collector):
    """The models in `folder`, as Models.

    Args:
        folder: Holds the models.
        options: How to serve a version, unless the model's settings say otherwise.
        allow_code: Names of the user's own code that bundles may load.
        tracing: Makes spans of queries.

    Raises:
        UserError: The folder cannot be read, or the options are for one bundle.

    """

    extensions: Sequence[str] = (REPOSITORY,)
    only = None

    def __init__(
        self,
        folder: Path,
        options: ServeOptions,
        allow_code: Collection[str] = (),
        tracing: "Tracing | None" = None,
    ) -> None:
        if options.name is not None:
            raise OptionError("--name is for a server of one bundle; leave it out")
        if options.placements:
            raise UserError("placements are for a server of one bundle; leave them out")
        self.metrics = Metrics()
        """The metrics of the server; each version has its own."""
        self._folder = folder
        self._options = options
        self._allow_code = allow_code
        self._tracing = tracing
        self._models: dict[str, RepositoryModel] = {}
        self._state = "starting"
        scan(folder)

    async def start(self) -> None:
        """Load the newest version of every model that can be loaded; returns when all are."""
        await asyncio.gather(*(self._model(name).start() for name in scan(self._folder)))
        self._state = ""

    def retire(self) -> None:
        """Report not ready from now on, but still take requests."""
        self._state = "stopping"

    async def drain(self) -> None:
        """Take no more requests; returns when those that were taken are answered."""
        await asyncio.gather(
            *(each.unload("the server is stopping") for each in self._models.values())
        )

    async def stop(self) -> None:
        """End all models at once."""
        await asyncio.gather(*(each.stop() for each in self._models.values()))

    def close_feed(self) -> None:
        """End the streams of the live page."""
        for running in self.running():
            running.close_feed()

    def feed_of(self, asked: Mapping[str, str]) -> Feed | None:
        """Return the live feed of a version, by default the current one, of a model, by default the
        first; None if it does not run."""
        model = self._models.get(asked.get("model") or min(self.names, default=""))
        if model is None:
            return None
        running = model.running.get(asked.get("version") or model.current or "")
        return None if running is None else running.feed

    @property
    def why_unready(self) -> str:
        """A repository is ready if it serves a model or more, all of which answer. Models that
        could not be loaded, or were unloaded, do not count."""
        if self._state:
            return f"the server is {self._state}"
        if not self.names:
            return "no model is served; load one"
        troubles = ((each.name, each.why_unready) for each in self._models.values())
        return "; ".join(f"{name}: {trouble}" for name, trouble in troubles if trouble)

    @property
    def names(self) -> Sequence[str]:
        return [name for name, model in self._models.items() if model.current is not None]

    @property
    def largest(self) -> ServedModel | None:
        served = (each.model for each in self.running())
        return max(served, key=lambda model: model.max_values, default=None)

    def versions(self, name: str) -> Sequence[str]:
        current = self._known(name).current
        return [] if current is None else [current]

    def find(self, name: str, version: str | None) -> ServedVersion:
        return self._known(name).find(version or None)

    def index(self) -> Sequence[IndexEntry]:
        for name in scan(self._folder):
            self._model(name)
        return [entry for _, each in sorted(self._models.items()) for entry in each.index()]

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load the newest version, or that of `parameters`; see `asked_version`."""
        version = asked_version(parameters)
        if self._state:
            raise UnavailableError(f"the server is {self._state}; try again later")
        if name not in self._models and name not in scan(self._folder):
            raise self._unknown(name)
        await self._model(name).load(version)

    async def unload(self, name: str) -> None:
        await self._known(name).unload()

    def collect(self) -> Iterable[Metric]:
        """Return all metrics, as a registry does; those of versions with labels that name them."""
        families: dict[str, Metric] = {}

        def add(metric: Metric, labels: Mapping[str, str]) -> None:
            family = families.setdefault(
                metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit)
            )
            family.samples += [
                sample._replace(labels={**labels, **sample.labels}) for sample in metric.samples
            ]

        for metric in self.metrics.registry.collect():
            if metric.name in _OF_SERVER or metric.name == _REQUESTS:
                add(metric, {})
        for running in self.running():
            labels = {"model": running.model.name, "version": running.model.version}
            for metric in running.metrics.registry.collect():
                if metric.name not in _OF_SERVER:
                    add(metric, labels)
        return families.values()

    def running(self) -> list[Deployment]:
        """Return the versions that run now."""
        return [each for model in self._models.values() for each in model.running.values()]

    def _model(self, name: str) -> RepositoryModel:
        if name not in self._models:
            folder = self._folder / name
            self._models[name] = RepositoryModel(folder, partial(self._open, folder))
        return self._models[name]

    def _open(self, folder: Path, version: str, at_once: int | None) -> Deployment:
        bundle = open_bundle(folder / version, self._allow_code)
        options = options_of(folder, bundle, self._options, version)
        return Deployment(bundle, options, version, starts_at_once=at_once, tracing=self._tracing)

    def _known(self, name: str) -> RepositoryModel:
        model = self._models.get(name)
        if model is None:
            raise self._unknown(name)
        return model

    def _unknown(self, name: str) -> NotFoundError:
        there = ", ".join(sorted(self._models)) or "none"
        return NotFoundError(f"no model is called {name[:200]!r}; this server has {there}")


def asked_version(parameters: Mapping[str, Any]) -> str | None:
    """Return the version that a load request asks for, None if it names none.

    It is the parameter `version`, or `version_policy.specific.versions` in `config`, a model
    configuration of Triton's in JSON.

    Raises:
        InvalidRequestError: The request has anything else, which would have no effect.

    """
    for name in parameters.keys() - {"config", "version"}:
        raise InvalidRequestError(
            f"the parameter {name[:200]!r} is not supported; a load has a version or a config"
        )
    config, version = parameters.get("config"), parameters.get("version")
    if config is not None:
        try:
            read = json.loads(str(config))
            ((name, policy),) = read.items()
            (only,) = policy["specific"]["versions"]
            version = str(int(only))
            if name != "version_policy":
                raise KeyError
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
            raise InvalidRequestError(
                "a config is JSON, with a version_policy of one specific version; nothing else is "
                f"supported, got {str(config)[:200]!r}"
            ) from None
    if version is not None and not isinstance(version, str):
        raise InvalidRequestError(f"the parameter version is a string, not {version!r}")
    return version

"""The models of a folder, by name: listed, loaded and unloaded while they are served."""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import structs

from parity_models.errors import OptionError, UserError
from parity_models.serving.backoff import Backoff
from parity_models.serving.errors import InvalidRequestError, NotFoundError, UnavailableError
from parity_models.serving.models import REPOSITORY, IndexEntry, ServedVersion
from parity_models.serving.page.feed import Feed
from parity_models.serving.page.frames import ModelView
from parity_models.serving.repository.instances import SharedInstances
from parity_models.serving.repository.layout import scan
from parity_models.serving.repository.managed import ManagedModel, Settings
from parity_models.serving.repository.repository_metrics import RepositoryMetrics
from parity_models.serving.repository.rollout_options import share_of
from parity_models.serving.repository.shown import History
from parity_models.serving.served_model import ServedModel

_log = logging.getLogger(__name__)


class Repository:
    """The models in `folder`, as `Models`. Raises UserError if it cannot be read."""

    extensions: Sequence[str] = (REPOSITORY,)
    only = None

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.metrics = RepositoryMetrics(self._registries, self._shares)
        self.history = History()
        self._folder = folder
        self._settings = settings
        self._models: dict[str, ManagedModel] = {}
        self._awaited: dict[str, asyncio.Task[None]] = {}
        self._state = "starting"
        self._shared: SharedInstances | None = None
        there = scan(folder)
        sharing = settings.sharing
        if sharing.shared_instances is not None:
            unknown = ", ".join(name for name in sharing.reserves if name not in there)
            if unknown:
                raise UserError(
                    f"instances are reserved for {unknown}, and the repository {folder} has "
                    f"{', '.join(there) or 'no model'}"
                )
            self._shared = SharedInstances(sharing, lambda: self._models, self.metrics)

    # Its life

    async def start(self) -> None:
        """Load the newest version of every model that can be loaded; returns when all are."""
        found = scan(self._folder)
        if self._shared is not None:
            self._shared.begin(name for name, versions in found.items() if versions)
        passes = await asyncio.gather(*(self._model(name).start() for name in found))
        for name, is_awaited in zip(found, passes, strict=True):
            if is_awaited:
                self._await(name)
        if self._shared is not None:
            self._shared.start()
        self._state = ""

    def retire(self) -> None:
        """Report not ready from now on, but still take requests."""
        self._state = "stopping"

    async def drain(self) -> None:
        """Take no more requests; returns when all that were taken have ended."""
        if self._shared is not None:
            await self._shared.stop()
        for name in list(self._awaited):
            self._await_no_more(name)
        await asyncio.gather(*(each.unload() for each in self._models.values()))

    def end_feeds(self) -> None:
        """End the feeds of those who watch models."""
        for each in self._models.values():
            each.shown.end()

    async def close(self) -> None:
        """End all models, whatever they were asked."""
        if self._shared is not None:
            await self._shared.stop()
        for name in list(self._awaited):
            self._await_no_more(name)
        await asyncio.gather(*(each.close() for each in self._models.values()))

    # Models

    @property
    def why_unready(self) -> str:
        """A repository is ready if it serves a model or more and all of these answer. Models that
        could not be loaded, or were unloaded, do not count.
        """
        if self._state:
            return f"the server is {self._state}"
        if not self.names:
            return "no model is served; load one"
        troubles = ((each.name, each.why_unready) for each in self._models.values())
        return "; ".join(f"{name}: {trouble}" for name, trouble in troubles if trouble)

    @property
    def names(self) -> Sequence[str]:
        return [name for name, model in self._models.items() if model.versions]

    @property
    def largest(self) -> ServedModel | None:
        served = (
            running.model for each in self._models.values() for running in each.running.values()
        )
        return max(served, key=lambda model: model.max_values, default=None)

    def versions(self, name: str) -> Sequence[str]:
        return self._known(name).versions

    def find(self, name: str, version: str | None) -> ServedVersion:
        return self._known(name).find(version or None)

    def choose(self, name: str, version: str | None) -> ServedVersion:
        model = self._known(name)
        return model.find(version) if version else model.choose()

    def index(self) -> Sequence[IndexEntry]:
        for name in scan(self._folder):
            self._model(name)
        return [entry for _, each in sorted(self._models.items()) for entry in each.index()]

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """The newest version, or that of `parameters`; see `asked_by`."""
        version, canary = asked_by(parameters)
        try:
            share = self._settings.rollout.share if canary is None else share_of(canary)
        except UserError as error:
            raise InvalidRequestError(str(error)) from error
        if self._state:
            raise UnavailableError(f"the server is {self._state}; try again later")
        if name not in self._models and name not in scan(self._folder):
            raise self._unknown(name)
        waiting = self._awaited.get(name)
        if waiting is not None:
            waiting.cancel()
        try:
            await self._model(name).load(version, share)
        except BaseException:
            if waiting is not None and self._awaited.get(name) is waiting:
                self._await(name)
            raise
        self._await_no_more(name)

    async def unload(self, name: str) -> None:
        model = self._known(name)
        self._await_no_more(name)
        await model.unload()

    # What a page shows

    def views(self) -> list[ModelView]:
        """How the models are, by their names."""
        views = [model.shown.view for _, model in sorted(self._models.items())]
        if self._shared is None:
            return views
        return [structs.replace(each, shared=self._shared.view(each.name)) for each in views]

    def feed(self, name: str | None, version: str | None) -> Feed | None:
        """What is shown of a version, by default the current one, of a model, by default the first;
        None: it does not run."""
        if name is None:
            name = min(self.names, default="")
        model = self._models.get(name)
        return None if model is None else model.shown.feed(version)

    def _await(self, name: str) -> None:
        self._awaited[name] = asyncio.create_task(self._start_again(self._model(name)))

    async def _start_again(self, model: ManagedModel) -> None:
        """Try to start it until it starts: the servers that run it may come later."""
        backoff = Backoff()
        known = ""
        waits = True
        while waits:
            await asyncio.sleep(backoff.after(0.0))
            try:
                waits = await model.start()
            except Exception as error:
                if repr(error) != known:
                    known = repr(error)
                    _log.exception("%s cannot be started; it is tried again", model.name)
        del self._awaited[model.name]

    def _await_no_more(self, name: str) -> None:
        """Somebody else says what becomes of the model."""
        waiting = self._awaited.pop(name, None)
        if waiting is not None:
            waiting.cancel()

    def _model(self, name: str) -> ManagedModel:
        model = self._models.get(name)
        if model is None:
            model = self._made(name)
            self._models[name] = model
        return model

    def _made(self, name: str) -> ManagedModel:
        folder, settings = self._folder / name, self._settings
        return ManagedModel(folder, settings, self.metrics, self.history, self._shared)

    def _known(self, name: str) -> ManagedModel:
        model = self._models.get(name)
        if model is None:
            raise self._unknown(name)
        return model

    def _unknown(self, name: str) -> NotFoundError:
        there = ", ".join(sorted(self._models)) or "none"
        return NotFoundError(f"no model is called {name[:200]!r}; this server has {there}")

    def _registries(self) -> Any:
        return {
            (name, version): running.metrics.registry
            for name, model in self._models.items()
            for version, running in model.running.items()
            if running.metrics is not None
        }

    def _shares(self) -> dict[tuple[str, str], float]:
        return {
            (name, version): share
            for name, model in self._models.items()
            for version, share in model.share.items()
        }


def asked_by(parameters: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The version and the canary's share that a load request asks for, each None if it does not.

    They are its parameters `version` and `canary`, or in its `config`, a model configuration of
    Triton's in JSON, `version_policy.specific.versions` and `parameters.canary.string_value`.
    Raises InvalidRequestError for anything else, which would have no effect.
    """
    given = dict(parameters)
    config = given.pop("config", None)
    if config is not None:
        given |= _of_config(config)
    version, canary = given.pop("version", None), given.pop("canary", None)
    for name in given:
        raise InvalidRequestError(
            f"the parameter {name[:200]!r} is not read here; a load has a version, a canary and a "
            "config"
        )
    for name, value in (("version", version), ("canary", canary)):
        if value is not None and not isinstance(value, str):
            raise InvalidRequestError(f"the parameter {name} is a string, not {value!r}")
    return version, canary


def _of_config(config: object) -> dict[str, str]:
    """What is read of a model configuration."""
    found: dict[str, str] = {}
    try:
        read: dict[str, Any] = json.loads(str(config))
        policy = read.pop("version_policy", None)
        if policy is not None:
            (version,) = policy["specific"]["versions"]
            found["version"] = str(int(version))
        for name, value in read.pop("parameters", {}).items():
            found[name] = value["string_value"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidRequestError(
            "of a config are read the version_policy, with one specific version, and the "
            f"parameter canary: {error!r}"
        ) from error
    for name in read:
        raise InvalidRequestError(f"{name[:200]!r} of a config is not read here; leave it out")
    return found


def check_engine(engine: Any, *, shares: bool) -> None:
    """Raises UserError for an engine that serves only one bundle, or has options for one; and, if
    models share instances, for an engine whose number of instances cannot change."""
    engine.kind.check_several(engine.settings)
    if shares and not engine.kind.grows:
        raise OptionError(
            lambda spell: (
                f"instances are not shared with the engine {engine.kind.name}; leave "
                f"{spell('shared_instances')} out, or use the engine local"
            )
        )

"""A server of the models in a folder: listed, loaded and unloaded by name while it runs."""

import asyncio
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from parity_models.errors import OptionError, UserError
from parity_models.serving.backoff import Backoff
from parity_models.serving.errors import InvalidRequestError, NotFoundError, UnavailableError
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import REPOSITORY, IndexEntry, ServedVersion
from parity_models.serving.options import ServeOptions
from parity_models.serving.page.feed import Feed
from parity_models.serving.page.routes import Page
from parity_models.serving.repository.layout import scan
from parity_models.serving.repository.model import RepositoryModel
from parity_models.serving.served_model import ServedModel
from parity_models.serving.server import ProtocolServer, tracing_to

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from parity_models.serving.tracing import Tracing

_INSTANCES = 64
"""Instances, of all models together, that file descriptors are reserved for."""

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
    }
)
"""Metrics of the server, which no model has."""

_REQUESTS = "parm_requests"
"""Counted with the model that answers, or with the server where no model is found."""

_log = logging.getLogger(__name__)


class Repository(Collector):
    """The models in `folder`, as `Models`. Arguments as for RepositoryModel.

    Raises:
        UserError: The folder cannot be read.

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
        self.metrics = Metrics()
        """Those of the server; each version has its own."""
        self._folder = folder
        self._options = options
        self._allow_code = allow_code
        self._tracing = tracing
        self._models: dict[str, RepositoryModel] = {}
        self._retries: dict[str, asyncio.Task[None]] = {}
        self._state = "starting"
        self._redundancy_on = True
        scan(folder)

    async def start(self) -> None:
        """Load the newest version of every model that can be loaded; returns when all are."""
        names = list(scan(self._folder))
        waits = await asyncio.gather(*(self._model(name).start() for name in names))
        for name, is_waiting in zip(names, waits, strict=True):
            if is_waiting:
                self._retry(name)
        self._state = ""

    def retire(self) -> None:
        """Report not ready from now on, but still take requests."""
        self._state = "stopping"

    async def drain(self) -> None:
        """Take no more requests; returns when those that were taken are answered."""
        self._stop_retries()
        await asyncio.gather(*(each.unload() for each in self._models.values()))

    async def stop(self) -> None:
        """End all models at once."""
        self._stop_retries()
        await asyncio.gather(*(each.stop() for each in self._models.values()))

    def switch_redundancy(self, on: bool) -> None:
        """Send redundant work from now on, or none, for whatever model."""
        self._redundancy_on = on
        for each in self._models.values():
            each.switch_redundancy(on)

    def close_feed(self) -> None:
        """End the streams of the live page."""
        for each in self._models.values():
            each.close_feed()

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
        served = (each.model for model in self._models.values() for each in model.running.values())
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
        model = self._known(name)
        self._stop_retry(name)
        await model.unload()

    def feed(self, asked: Mapping[str, str]) -> Feed | None:
        """Return the live feed of a version, by default the current one, of a model, by default the
        first; None if it does not run."""
        model = self._models.get(asked.get("model") or min(self.names, default=""))
        if model is None:
            return None
        running = model.running.get(asked.get("version") or model.current or "")
        return None if running is None else running.feed

    def collect(self) -> Iterable[Metric]:
        """Return all metrics, as a registry does; those of versions with labels that name them."""
        families: dict[str, Metric] = {}
        for metric in self.metrics.registry.collect():
            if metric.name in _OF_SERVER or metric.name == _REQUESTS:
                _add(families, metric, {})
        for name, model in self._models.items():
            for version, running in model.running.items():
                for metric in running.metrics.registry.collect():
                    if metric.name not in _OF_SERVER:
                        _add(families, metric, {"model": name, "version": version})
        return families.values()

    def _retry(self, name: str) -> None:
        """Load a model again until it loads: the servers that run it may come later."""

        async def retry() -> None:
            backoff, model, known = Backoff(), self._model(name), ""
            while model.current is None:
                await asyncio.sleep(backoff.after(0.0))
                try:
                    if not await model.start():
                        break
                except Exception as error:
                    if repr(error) != known:
                        known = repr(error)
                        _log.exception("%s cannot be started; trying again", name)

        self._retries[name] = asyncio.create_task(retry())

    def _stop_retry(self, name: str) -> None:
        task = self._retries.pop(name, None)
        if task is not None:
            task.cancel()

    def _stop_retries(self) -> None:
        for name in list(self._retries):
            self._stop_retry(name)

    def _model(self, name: str) -> RepositoryModel:
        if name not in self._models:
            self._models[name] = RepositoryModel(
                self._folder / name, self._options, self._allow_code, self._tracing
            )
            self._models[name].switch_redundancy(self._redundancy_on)
        return self._models[name]

    def _known(self, name: str) -> RepositoryModel:
        model = self._models.get(name)
        if model is None:
            raise self._unknown(name)
        return model

    def _unknown(self, name: str) -> NotFoundError:
        there = ", ".join(sorted(self._models)) or "none"
        return NotFoundError(f"no model is called {name[:200]!r}; this server has {there}")


def _add(families: dict[str, Metric], metric: Metric, labels: Mapping[str, str]) -> None:
    family = families.get(metric.name)
    if family is None:
        family = Metric(metric.name, metric.documentation, metric.type, metric.unit)
        families[metric.name] = family
    family.samples += [
        sample._replace(labels={**labels, **sample.labels}) for sample in metric.samples
    ]


def asked_version(parameters: Mapping[str, Any]) -> str | None:
    """Return the version that a load request asks for, None if it names none.

    It is the parameter `version`, or `version_policy.specific.versions` in `config`, a model
    configuration of Triton's in JSON.

    Raises:
        InvalidRequestError: The request has anything else, which would have no effect.

    """
    given = dict(parameters)
    config = given.pop("config", None)
    if config is not None:
        given |= _of_config(config)
    version = given.pop("version", None)
    for name in given:
        raise InvalidRequestError(
            f"the parameter {name[:200]!r} is not supported; a load has a version or a config"
        )
    if version is not None and not isinstance(version, str):
        raise InvalidRequestError(f"the parameter version is a string, not {version!r}")
    return version


def _of_config(config: object) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        read: dict[str, Any] = json.loads(str(config))
        policy = read.pop("version_policy", None)
        if policy is not None:
            (version,) = policy["specific"]["versions"]
            found["version"] = str(int(version))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidRequestError(
            f"a config has a version_policy with one specific version, nothing else: {error!r}"
        ) from error
    for name in read:
        raise InvalidRequestError(f"{name[:200]!r} of a config is not supported; leave it out")
    return found


class RepositoryServer(ProtocolServer):
    """Serves the bundles in `folder`, NAME/VERSION, over the Open Inference Protocol.

    Args:
        folder: The repository.
        options: Those of the server, and of each model unless its settings say otherwise.
        allow_code: Names of the user's own code that bundles may load.
        traces: Gets the spans of requests.

    Raises:
        UserError: The options are for one bundle, or a file cannot be used.

    """

    def __init__(
        self,
        folder: Path,
        options: ServeOptions,
        allow_code: Collection[str] = (),
        traces: "TracerProvider | None" = None,
    ) -> None:
        options.engine.kind.check_several(options.engine.settings)
        if options.name is not None:
            raise OptionError("--name is for a server of one bundle; leave it out")
        if options.placements:
            raise UserError("placements are for a server of one bundle; leave them out")
        tracing = tracing_to(traces)
        self.repository = Repository(folder, options, allow_code, tracing)
        page = None
        if options.ui:
            page = Page(folder.resolve().name, self.repository.feed, repository=True)
        super().__init__(
            self.repository,
            self.repository,
            self.repository.metrics,
            options,
            collector=self.repository,
            page=page,
            tracing=tracing,
            instances=_INSTANCES,
        )

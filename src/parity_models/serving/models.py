"""The models that a server serves, as its protocols ask for them: one of them, or a repository.

Whoever answers for a name may have several versions of it. A request is answered by one of them, as
a whole: it is chosen when the request is read, and nothing is awaited between the two.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.in_flight import Predictor
from parity_models.serving.metrics import Metrics
from parity_models.serving.protocol import ModelMetadata
from parity_models.serving.served_model import ServedModel

REPOSITORY = "model_repository"
"""What servers call the extension by which models are listed, loaded and unloaded."""


class IndexEntry(Struct, frozen=True, omit_defaults=True):
    """A version in the index of a repository; `state` as Triton has it, `reason` for people."""

    name: str
    version: str
    state: str
    reason: str = ""


class ServedVersion:
    """A version of a model that takes requests: as clients see it, and who answers for it.

    `metrics` count its requests, where it has some of its own.
    """

    def __init__(
        self, frontend: Predictor, model: ServedModel, metrics: Metrics | None = None
    ) -> None:
        self.frontend = frontend
        self.model = model
        self.metrics = metrics

    def metadata(self, versions: Sequence[str]) -> ModelMetadata:
        """What the server says of it, and of the `versions` of its model that take requests."""
        return replace(
            self.model.metadata,
            versions=tuple(versions),
            quarantined_instances=tuple(self.frontend.quarantined),
        )


class Models(Protocol):
    """The models of a server, by name; a version of None is that which the server would choose."""

    extensions: Sequence[str]
    """What of the protocol's extensions the server speaks on their account."""

    @property
    def why_unready(self) -> str:
        """Why the server is not ready; empty if it is."""

    @property
    def names(self) -> Sequence[str]:
        """The models of which a version takes requests."""

    @property
    def only(self) -> ServedVersion | None:
        """The one version that there can ever be, if that is so."""

    @property
    def largest(self) -> ServedModel | None:
        """The model whose requests may be the largest, if there is one."""

    def versions(self, name: str) -> Sequence[str]:
        """The versions of a model that take requests."""

    def find(self, name: str, version: str | None) -> ServedVersion:
        """The version that is meant. Raises NotFoundError for one that there is not, and
        UnavailableError for one that takes no requests."""

    def index(self) -> Sequence[IndexEntry]:
        """All versions that are known."""

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Serve a model as its folder has it now. Returns when it takes requests.

        Raises a RequestError, and leaves all as it was, where that cannot be.
        """

    async def unload(self, name: str) -> None:
        """Serve a model no more; returns when what it was asked has been answered."""


class OneModel:
    """The one model of a server that serves a bundle: it has one version, for good."""

    extensions: Sequence[str] = ()

    def __init__(self, frontend: Predictor, model: ServedModel) -> None:
        self._version = ServedVersion(frontend, model)

    @property
    def why_unready(self) -> str:
        return why_unready(self._version)

    @property
    def names(self) -> Sequence[str]:
        return (self._version.model.name,)

    @property
    def only(self) -> ServedVersion:
        return self._version

    @property
    def largest(self) -> ServedModel:
        return self._version.model

    def versions(self, name: str) -> Sequence[str]:
        return (self._version.model.version,)

    def find(self, name: str, version: str | None) -> ServedVersion:
        self._version.model.check_model(name, version)
        return self._version

    def index(self) -> Sequence[IndexEntry]:
        state = "UNAVAILABLE" if self.why_unready else "READY"
        model = self._version.model
        return (IndexEntry(model.name, model.version, state),)

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        raise _fixed()

    async def unload(self, name: str) -> None:
        raise _fixed()


def _fixed() -> InvalidRequestError:
    return InvalidRequestError(
        "this server serves one bundle, for good; models are loaded and unloaded where it is "
        "started with --repository"
    )


def why_unready(version: ServedVersion) -> str:
    """Why a version takes no queries now; empty if it does."""
    if version.frontend.ready:
        return ""
    return "no instance of the deployed model takes queries now"

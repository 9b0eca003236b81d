"""The models that a server serves, as its protocols ask for them: one of them, or a repository.

A name may have several versions. A request is answered by one of them, as a whole: it is chosen
when the request is read, and nothing is awaited between the two.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from parity_models.serving.errors import InvalidRequestError, NotFoundError
from parity_models.serving.in_flight import Result
from parity_models.serving.metrics import Metrics
from parity_models.serving.protocol import ModelMetadata
from parity_models.serving.served_model import ServedModel

REPOSITORY = "model_repository"
"""The protocol extension by which models are listed, loaded and unloaded."""


class IndexEntry(Struct, frozen=True, omit_defaults=True):
    """A version in the index of a repository; `state` as Triton has it, `reason` for people."""

    name: str
    version: str
    state: str
    reason: str = ""


class Predictor(Protocol):
    """Answers queries; a Frontend does."""

    @property
    def ready(self) -> bool:
        """Whether a query would be answered."""

    @property
    def quarantined(self) -> Collection[str]:
        """The instances that answered a golden query wrongly, the latest last."""

    async def infer(
        self, rows: NDArray[Any], timeout: float | None, *, tenant: str | None, exact: bool
    ) -> Result:
        """Answer a query per row of `rows` (n, *input shape), as Frontend.infer does."""


class Models(Protocol):
    """The models of a server, by name; a version of None is that which the server would choose."""

    extensions: Sequence[str]
    """The extensions of the protocol that the server speaks on their account."""

    @property
    def why_unready(self) -> str:
        """Why the server is not ready; empty if it is."""

    @property
    def names(self) -> Sequence[str]:
        """The models of which a version takes requests."""

    @property
    def only(self) -> "ServedVersion | None":
        """The one version of a server that has no other, ever."""

    @property
    def largest(self) -> ServedModel | None:
        """The model whose requests may be the largest, if there is one."""

    def versions(self, name: str) -> Sequence[str]:
        """Return the versions of a model that take requests."""

    def find(self, name: str, version: str | None) -> "ServedVersion":
        """Return the version that is meant.

        Raises:
            NotFoundError: There is no such version.
            UnavailableError: It takes no requests.

        """

    def index(self) -> Sequence[IndexEntry]:
        """Return all versions that are known."""

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Serve a model as its folder has it now. Returns when it takes requests.

        Raises a RequestError, and leaves all as it was, where that cannot be.
        """

    async def unload(self, name: str) -> None:
        """Serve a model no more; returns when its requests have been answered."""


class ServedVersion:
    """A version of a model that takes requests; by itself, the Models of a server of one bundle.

    Args:
        frontend: Answers its queries.
        model: The model as clients see it.
        metrics: Count its requests; None: the server's.

    """

    extensions: Sequence[str] = ()

    def __init__(
        self, frontend: Predictor, model: ServedModel, metrics: Metrics | None = None
    ) -> None:
        self.frontend = frontend
        self.model = model
        self.metrics = metrics

    def metadata(self, versions: Sequence[str]) -> ModelMetadata:
        """Return the metadata of its model, of which these `versions` take requests."""
        return replace(
            self.model.metadata,
            versions=tuple(versions),
            quarantined_instances=tuple(self.frontend.quarantined),
        )

    @property
    def why_unready(self) -> str:
        return "" if self.frontend.ready else "no instance of the deployed model takes queries now"

    @property
    def names(self) -> Sequence[str]:
        return (self.model.name,)

    @property
    def only(self) -> "ServedVersion | None":
        return self

    @property
    def largest(self) -> ServedModel | None:
        return self.model

    def versions(self, name: str) -> Sequence[str]:
        return (self.model.version,)

    def find(self, name: str, version: str | None) -> "ServedVersion":
        model = self.model
        if name != model.name:
            raise NotFoundError(f"no model is called {name!r}; this server has {model.name!r}")
        if version not in (None, "", model.version):
            raise NotFoundError(
                f"model {name!r} has no version {version!r}; it has version {model.version!r}"
            )
        return self

    def index(self) -> Sequence[IndexEntry]:
        state = "UNAVAILABLE" if self.why_unready else "READY"
        return (IndexEntry(self.model.name, self.model.version, state),)

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        raise InvalidRequestError(
            "this server serves one bundle, for good; models are loaded and unloaded where it is "
            "started with --repository"
        )

    async def unload(self, name: str) -> None:
        await self.load(name, {})

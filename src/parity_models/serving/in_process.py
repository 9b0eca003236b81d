"""A server for callers in this process: its start and end as a block, and predictions as a call."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

from parity_models.models.bundle import Bundle, open_bundle
from parity_models.models.queries import cut, padded
from parity_models.scheduling import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.engines import EngineChoice
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.in_flight import Predictor
from parity_models.serving.options import ServeOptions
from parity_models.serving.served_model import GivenTensor, ServedModel
from parity_models.serving.server import Server


class Predictions(Struct, frozen=True, eq=False):
    """Predictions of n queries: `outputs` (n, ...) by name, and where each row came from."""

    outputs: Mapping[str, NDArray[Any]]
    sources: tuple[Source, ...]

    @property
    def output(self) -> NDArray[Any]:
        """The one output (n, ...) of a model that has one."""
        (only,) = self.outputs.values()
        return only


class Serving:
    """A server that runs: `url`, `grpc_url` and `metrics_url` as far as it listens there, the ASGI
    application `app`, and `predict`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.app = server.app()
        """The protocol as an ASGI application, to mount into another one; until the end."""

    @property
    def url(self) -> str | None:
        """The base URL, as http://127.0.0.1:8000; None without a port."""
        return self._server.url if self._server.listens else None

    @property
    def grpc_url(self) -> str | None:
        """Where gRPC is spoken."""
        return self._server.grpc_url

    @property
    def metrics_url(self) -> str | None:
        """Where the metrics are, if that is a port of their own."""
        return self._server.metrics_url

    @property
    def ready(self) -> bool:
        """Would a query be answered?"""
        return self._server.frontend.ready

    async def predict(
        self,
        inputs: ArrayLike | Mapping[str, ArrayLike],
        *,
        timeout: float | None = None,
        tenant: str | None = None,
        exact: bool = False,
    ) -> Predictions:
        """Answer a query for each row of `inputs` (n, ...), or of each of the named inputs.

        `timeout` in seconds shortens the deadline; `tenant` and `exact` are those of requests.
        Inputs must not be changed before the answer. Raises a RequestError, as InvalidRequestError
        for inputs that are not the model's.
        """
        server = self._server
        return await _predict(
            server.frontend, server.model, inputs, timeout=timeout, tenant=tenant, exact=exact
        )


@asynccontextmanager
async def serve(
    bundle: Bundle | Path | str, options: ServeOptions | None = None, /, **given: Any
) -> AsyncIterator[Serving]:
    """Serve a bundle, or the one in a folder, while the block runs.

    async with serve("bundle", instances=4, policy="adaptive", port=None) as serving:
        answers = await serving.predict(rows)

    `given` are fields of ServeOptions; a policy or an engine may be given by its name. `port` None
    listens nowhere: mount `serving.app`, or call `serving.predict`. Raises UserError for options
    that cannot be, and ServingError if an instance does not start.
    """
    if options is None:
        for field, choice in (("policy", PolicyChoice), ("engine", EngineChoice)):
            if isinstance(given.get(field), str):
                given[field] = choice(given[field])
        options = ServeOptions(**given)
    elif given:
        raise TypeError("give options as one ServeOptions or by name, not both")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    async with Server(opened, options) as server:
        yield Serving(server)


async def _predict(
    frontend: Predictor,
    model: ServedModel,
    inputs: ArrayLike | Mapping[str, ArrayLike],
    *,
    timeout: float | None,
    tenant: str | None,
    exact: bool,
) -> Predictions:
    signature = model.signature
    named = inputs if isinstance(inputs, Mapping) else {signature.inputs[0].name: inputs}
    datatypes = {each.name: (each.dtype, each.datatype) for each in signature.inputs}
    arrays, given = {}, []
    for name, values in named.items():
        dtype, datatype = datatypes.get(name, (None, ""))
        arrays[name] = _as_array(name, values, dtype)
        given.append(GivenTensor(name, datatype, arrays[name].shape, shared_memory=False))
    fitting = model.check_request(given, ())
    rows = padded(arrays, signature, fitting.sizes)
    answers = await frontend.infer(
        rows, timeout, tenant=tenant, exact=exact or model.is_exact(fitting.outputs)
    )
    outputs = cut(answers.outputs, signature, fitting.sizes)
    return Predictions(outputs, tuple(answers.sources))


def _as_array(name: str, values: ArrayLike, dtype: Any) -> NDArray[Any]:
    array = np.asarray(values)
    if dtype is None:
        return array  # of a name that the model has not, which is said next
    try:
        return array.astype(dtype, casting="same_kind", copy=False)
    except TypeError as error:
        raise InvalidRequestError(
            f"input {name!r} is of {np.dtype(dtype)}, and {array.dtype} cannot become that; "
            "convert it yourself"
        ) from error

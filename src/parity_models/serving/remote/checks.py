"""The checks that an upstream has to pass before it is used, and again when it is doubted."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.models.onnx_model import OnnxModel, PinnedModel
from parity_models.models.signature import tensors_in
from parity_models.serving.protocol import ModelMetadata
from parity_models.serving.remote.upstream import (
    Fault,
    UnitError,
    Upstream,
    UpstreamClient,
    UpstreamError,
    UpstreamModel,
    check_metadata,
)

PATIENCE = 5.0
"""Seconds an upstream has for a health check, and for each check before it is used."""

TOLERANCE = 0.05
"""How far an upstream's prediction may be from the bundle's, as a share of the largest value:
room for other precisions, not for other weights."""


@dataclass(frozen=True)
class Reference:
    """A bundle's model: what it looks like, and a query with its prediction, to know it by."""

    model: OnnxModel
    query: NDArray[Any]
    prediction: NDArray[Any]
    sha256: str


class Checks:
    """Compares upstreams with the bundle's models, ONNX files by role, and with each other."""

    def __init__(self, models: Mapping[str, PinnedModel], roles: Iterable[str]) -> None:
        self.references: dict[str, Reference] = {}
        self._versions: dict[str, tuple[str, tuple[str, ...]]] = {}
        for role in sorted(roles):
            model = models[role].load()
            kind = model.signature.smallest
            query = kind.input.draw(np.random.default_rng(0), 1)
            self.references[role] = Reference(
                model,
                kind.input.join(query)[0, ...],
                kind.output.join(model(query))[0, ...],
                models[role].sha256,
            )

    def models_of(self, upstream: Upstream) -> dict[str, UpstreamModel]:
        """The models that the upstream has to have, by role.

        Raises UserError for one that takes a fixed number of rows.
        """
        models = {}
        for role, name in upstream.models.items():
            signature = self.references[role].model.signature
            if signature.batch:
                raise UserError(
                    f"the model {name!r} takes {signature.batch} rows at once and no other "
                    "number; serve it with the engine local, or export it with a free one"
                )
            models[role] = UpstreamModel(name, signature, upstream.version)
        return models

    async def check(
        self, url: str, client: UpstreamClient, models: Mapping[str, UpstreamModel]
    ) -> None:
        """Raises UpstreamError unless the upstream has these models, by role, as the bundle has
        them, and they run; BusyError if it cannot be checked for now."""
        for role, model in models.items():
            reference = self.references[role]
            try:
                async with asyncio.timeout(PATIENCE):
                    await client.check_ready(model)
                    about = await client.metadata(model)
                    if about is not None:
                        check_metadata(about, model)
                        _check_sha256(about, reference.sha256)
                        if model.version is None:
                            versions = tuple(sorted(about.versions or ()))
                            self._check_versions(url, model.name, role, versions)
                    prediction = await client.infer(model, [reference.query], {})
            except TimeoutError:
                text = f"did not answer within {PATIENCE:g} s"
                raise UpstreamError(Fault.TIMEOUT, text) from None
            except UnitError as error:
                text = f"cannot run {model}: it {error}"
                raise UpstreamError(Fault.ERRORS, text) from error
            pairs = zip(
                tensors_in(prediction[0, ...]), tensors_in(reference.prediction), strict=True
            )
            for predicted, expected in pairs:
                _compare(predicted, expected, model)

    def _check_versions(self, url: str, model: str, role: str, versions: tuple[str, ...]) -> None:
        other, others = self._versions.setdefault(role, (url, versions))
        if versions != others:
            raise UpstreamError(
                Fault.MISMATCH,
                f"has versions {list(versions)} of model {model!r}, {other} has {list(others)}",
            )


def _check_sha256(about: ModelMetadata, expected: str) -> None:
    """Raises UpstreamError if the upstream says that its model's file is another."""
    if about.model_sha256 not in (None, expected):
        raise UpstreamError(
            Fault.MISMATCH,
            f"has another model {about.name!r}: the sha256 of its file is "
            f"{about.model_sha256[:64]}, the bundle's is {expected}; make the bundle from what "
            "runs there",
        )


def _compare(prediction: NDArray[Any], expected: NDArray[Any], model: UpstreamModel) -> None:
    """Raises UpstreamError unless the prediction is the bundle's, within TOLERANCE."""
    expected = expected.astype(np.float64)
    scale = float(np.abs(expected).max())
    off = float(np.abs(prediction.astype(np.float64) - expected).max())
    if not off <= TOLERANCE * scale:
        raise UpstreamError(
            Fault.MISMATCH,
            f"predicts something else with {model} than the bundle's model does: {off:.3g} "
            f"off, where the largest value is {scale:.3g}; make the bundle from what runs there",
        )

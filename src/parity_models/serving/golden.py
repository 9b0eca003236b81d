"""Whether an instance answers a golden query, whose output is known, as it should."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from parity_models.models.bundle import Bundle
from parity_models.models.golden import golden, is_near
from parity_models.models.onnx_model import OnnxModel, PinnedModel
from parity_models.models.tensor import tensors_in

_log = logging.getLogger(__name__)

Golden = tuple[NDArray[Any], NDArray[Any]]
"""Golden queries (n, *input shape) of a model, and its outputs for them (n, *output shape)."""


def is_right(golden: Golden, probe: int, output: NDArray[Any], tolerance: float) -> bool:
    """Is `output` (*output shape) what golden query number `probe`, modulo n, gives?

    It may be off by `tolerance` times the largest value.
    """
    expected = golden[1][probe % len(golden[1]), ...]
    if output.dtype != expected.dtype or output.shape != expected.shape:
        return False
    pairs = zip(tensors_in(output), tensors_in(expected), strict=True)
    return all(is_near(one, other, tolerance) for one, other in pairs)


def golden_of(
    bundle: Bundle, models: Mapping[str, PinnedModel], roles: Sequence[frozenset[str]]
) -> dict[str, Golden]:
    """Golden queries of the bundle's models that instances run, by role, where a model has some.

    Models are loaded one after the other, and let go. Raises ModelError or BundleError for what
    was changed since it was checked.
    """
    used = sorted(frozenset[str]().union(*roles))
    loaded = _Loaded({role: models[role] for role in used})
    queries = bundle.manifest.deployed.signature.smallest.input
    found = {}
    for role, (inputs, outputs) in golden(
        bundle.code(), queries, bundle.envelope(), loaded
    ).items():
        kind = loaded[role].signature.smallest
        found[role] = (kind.input.join(inputs), kind.output.join(outputs))
    for role in used:
        if role not in found:
            _log.warning("%s has no output to know it by: its instances are not verified", role)
    return found


class _Loaded(Mapping[str, OnnxModel]):
    """Models that are loaded when they are asked for."""

    def __init__(self, models: Mapping[str, PinnedModel]) -> None:
        self._models = models

    def __getitem__(self, role: str) -> OnnxModel:
        return self._models[role].load()

    def __contains__(self, role: object) -> bool:
        return role in self._models

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

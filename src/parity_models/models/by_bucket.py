"""A model over queries of unequal length: those of one bucket run together, none padded further."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.models.named_inputs import Named, padded, sizes_in
from parity_models.models.signature import Signature, Sizes

Array = NDArray[Any]


def run_by_bucket(
    run: Callable[[Array], Array],
    arrays: Named,
    signature: Signature,
    output: str,
    batch: int,
    tell: Callable[[int], None] | None = None,
) -> Array:
    """The `output` (n, *shape), which has a fixed shape, of a model for fitting `arrays` (n, ...).

    `run` takes at most `batch` rows of one kind and gives rows of outputs; `tell` is told how many
    are done.
    """
    parts, places = [], []
    for rows, sizes in _alike(arrays, signature, batch):
        outputs = run(padded({name: each[rows] for name, each in arrays.items()}, signature, sizes))
        parts.append(outputs if outputs.dtype.names is None else outputs[output])
        places.append(rows)
        if tell is not None:
            tell(len(rows))
    order = np.concatenate(places)
    joined = np.concatenate(parts)
    found = np.empty_like(joined)
    found[order] = joined
    return found


def commonest(rows: Array, signature: Signature) -> Sizes:
    """The buckets of the dynamic axes that most of these queries, rows of one kind, fall into."""
    kinds = _kinds(signature.kind_of(rows[0, ...]).input.split(rows), signature)[1]
    each, counts = np.unique(kinds, axis=0, return_counts=True) if kinds.size else ([()], [1])
    chosen = each[int(np.argmax(counts))]
    axes = signature.axes.values()
    return tuple(axis.buckets[int(place)] for axis, place in zip(axes, chosen, strict=True))


def _kinds(arrays: Named, signature: Signature) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How large each dynamic axis of each query is, and which of its buckets that is: (n, axes)."""
    named = sizes_in(arrays, signature.inputs)
    count = len(next(iter(arrays.values())))
    sizes = np.array([named[axis] for axis in signature.axes], np.int64).T.reshape(count, -1)
    kinds = sizes.copy()
    for i, axis in enumerate(signature.axes.values()):
        kinds[:, i] = np.searchsorted(axis.buckets, sizes[:, i])
    return sizes, kinds


def _alike(
    arrays: Named, signature: Signature, batch: int
) -> Iterator[tuple[NDArray[np.int64], list[int]]]:
    """Rows whose queries are padded to the same buckets, at most `batch`, and how large their
    dynamic axes are at most."""
    sizes, kinds = _kinds(arrays, signature)
    for kind in np.unique(kinds, axis=0) if kinds.size else kinds[:1]:
        rows = np.flatnonzero((kinds == kind).all(axis=1))
        for start in range(0, len(rows), batch):
            some = rows[start : start + batch]
            yield some, sizes[some].max(axis=0).tolist()

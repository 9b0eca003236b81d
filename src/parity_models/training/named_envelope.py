"""Fitting the envelope of stand-ins to queries of several inputs, of integers, or of lengths that
vary, see `models.named_envelope`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from parity_models.models.envelope import Numbers
from parity_models.models.named_envelope import Bounds, Ids, NamedEnvelope, contents
from parity_models.models.named_inputs import Named, sizes_in
from parity_models.models.signature import Tensor
from parity_models.training.envelope import (
    FALSE_ALARMS,
    FITTED,
    FOLDS,
    MARGIN,
    MEASURED,
    fit_numbers,
    fit_values,
    reach,
    spaced,
)

Array = NDArray[Any]
Sizes = Mapping[str, NDArray[np.int64]]

WIDEST = 2**20
"""Integers that span a wider range than this are numbers, not ids."""

LARGEST = 2**53
"""Integers larger than this are numbers, too."""

MOST_COLUMNS = 256
"""A row of more integers than this is a sequence: its columns are not told apart."""

PLACES, PAIRS = 65_537, 16_381
"""The most places in the tables for ids, and for pairs of neighbours. They are primes, so that ids
which share a place do so by chance."""

UNSEEN = 0.5
"""An id that was never seen counts as seen this many times."""

ROUNDING = 1e-3
"""Means that differ by less than this count as equal."""


def fit_named_envelope(
    inputs: Sequence[Tensor], queries: Named, held_out: Named, outputs: Array
) -> NamedEnvelope:
    """The envelope of `queries`, arrays (n, ...) by the name of their input, and of F's `outputs`
    (m, *output_shape). False alarms are counted among queries `held_out`."""
    sizes = sizes_in(queries, inputs)
    share = FALSE_ALARMS / len(inputs)
    some = {name: spaced(each, MEASURED) for name, each in held_out.items()}
    counted = len(next(iter(some.values())))
    envelope = NamedEnvelope(
        tuple(inputs),
        tuple(_fit(each, queries[each.name], sizes, share) for each in inputs),
        {axis: int(found.max()) for axis, found in sizes.items()},
        reach(outputs),
        0.0,
        counted,
    )
    return replace(envelope, false_alarms=float(envelope.unlike_in(some).mean()))


def _fit(tensor: Tensor, array: Array, sizes: Sizes, share: float) -> Numbers | Ids:
    """What an input's `array` (n, ...) is like."""
    few = FITTED // max(1, prod(array.shape[1:]))
    array, sizes = spaced(array, few), {axis: spaced(each, few) for axis, each in sizes.items()}
    if _are_ids(array):
        return _fit_ids(tensor, array, sizes, share)
    numbers = array.astype(np.float32)
    if tensor.axes:
        return fit_values(list(contents(tensor, numbers, sizes)), tensor.shape, share)
    return fit_numbers(numbers, share)


def _are_ids(array: Array) -> bool:
    if array.dtype.kind == "f":
        return False
    low, high = int(array.min()), int(array.max())
    return low > -LARGEST and high < LARGEST and high - low < WIDEST


def _fit_ids(tensor: Tensor, array: Array, sizes: Sizes, share: float) -> Ids:
    here = _content(tensor, array, sizes)
    low, high = _range(tensor, array, here)
    none, free = np.zeros(1, np.float32), Bounds(-np.inf, 0.0, np.inf)
    blank = Ids(low, high, none, none[:0], free, free)
    paired = len(low) == 1 and tensor.shape[-1:] not in ((), (1,))
    rows = np.arange(len(array))
    measured = []
    for fold in np.array_split(np.random.default_rng(0).permutation(rows), FOLDS):
        others = np.setdiff1d(rows, fold)
        if not len(fold) or not len(others):
            continue
        known = _counted(blank, array[others], here[others], paired)
        folded = {axis: each[fold] for axis, each in sizes.items()}
        measured += [known.measure(row) for row in contents(tensor, array[fold], folded)]
    ids = _counted(blank, array, here, paired)
    found = np.array(measured or [(ids.surprise.usual, ids.paired.usual)])
    sides = 4
    return replace(
        ids,
        surprise=_bounds(found[:, 0], ids.surprise.usual, share / sides),
        paired=_bounds(found[:, 1], ids.paired.usual, share / sides),
    )


def _content(tensor: Tensor, array: Array, sizes: Sizes) -> NDArray[np.bool_]:
    """Which values of an input's `array` (n, ...) are no padding."""
    here = np.ones(array.shape, np.bool_)
    for axis, at in tensor.axes.items():
        shape = [1] * array.ndim
        shape[at + 1] = -1
        places = np.arange(array.shape[at + 1]).reshape(shape)
        here &= places < sizes[axis].reshape(-1, *[1] * (array.ndim - 1))
    return here


def _range(
    tensor: Tensor, array: Array, here: NDArray[np.bool_]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The least and the largest ids: of each column if columns and their values are few, else of
    all together."""
    if not tensor.axes and prod(array.shape[1:]) <= MOST_COLUMNS:
        columns = array.reshape(len(array), -1)
        low, high = columns.min(axis=0).tolist(), columns.max(axis=0).tolist()
        if sum(high) - sum(low) + len(low) <= PLACES:
            return tuple(map(int, low)), tuple(map(int, high))
    ids = array[here]
    return (int(ids.min()),), (int(ids.max()),)


def _counted(ids: Ids, array: Array, here: NDArray[np.bool_], paired: bool) -> Ids:
    """`ids` with tables of those in an `array` (n, ...) that are `here`."""
    places = ids.places(array)
    here = here.reshape(places.shape)
    values = sum(ids.high) - sum(ids.low) + len(ids.low)
    table, usual = _surprises(places[here], min(values, PLACES))
    surprise = structs.replace(ids.surprise, usual=usual)
    if not paired:
        return replace(ids, table=table, surprise=surprise)
    both = here[..., :-1] & here[..., 1:]
    found = ids.paired_places(places)[both]
    pairs, usual = _surprises(found, min(values * values, PAIRS))
    bounds = structs.replace(ids.paired, usual=usual)
    return replace(ids, table=table, pairs=pairs, surprise=surprise, paired=bounds)


def _surprises(places: NDArray[np.int64], size: int) -> tuple[NDArray[np.float32], float]:
    """-ln p of each of `size` places, p being its share in `places`; and the mean of that over
    `places`. Several ids may share a place."""
    counts = np.bincount(places % size, minlength=size)
    seen = max(1, len(places))
    table = -np.log((counts + UNSEEN) / (seen + UNSEEN * size))
    return table.astype(np.float32), float((counts * table).sum() / seen)


def _bounds(found: NDArray[np.float64], usual: float, share: float) -> Bounds:
    """The range that means may have: all of those `found` (n,), without a `share` at either end."""
    middle = float(np.median(found))
    low = float(np.quantile(found, share, method="lower"))
    high = float(np.quantile(found, 1 - share, method="higher"))
    least = middle - MARGIN * (middle - low) - ROUNDING
    return Bounds(least, usual, middle + MARGIN * (high - middle) + ROUNDING)

"""Fitting the envelope of stand-ins to the queries they are trained on, see `models.envelope`."""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, prod
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from parity_models.models.envelope import (
    MAX_PROJECTION,
    Envelope,
    Ids,
    Limits,
    Numbers,
    contents,
)
from parity_models.models.queries import sizes_in
from parity_models.models.signature import Batch, Tensor

Array = NDArray[Any]
Sizes = Mapping[str, NDArray[np.int64]]

FALSE_ALARMS = 0.005
"""The largest share of honest inputs that may be called unlike."""

MARGIN = 1.1
"""Limits are this many times farther from the median than honest inputs go."""

FITTED = 2**23
"""The most values from which means, deviations and components are computed."""

MEASURED = 20_000
"""The most inputs from which limits are set, and on which false alarms are counted."""

EACH = 4096
"""Inputs of more values are described by channel where they have channels."""

FEWEST_COMPONENTS, MOST_COMPONENTS, FOLDS = 4, 32, 4

OUTLYING = 0.005
"""The share of values, at either end, that may be outliers."""

COMMON, STRAY = 0.975, 10.0
"""When limits are set, an input is left out if it is STRAY times farther from the median than the
share COMMON of inputs."""

FLOOR = 0.1
"""The least deviation, as a share of the typical one: values that vary less, as in the corners of
images, count as if they varied this much."""

NEGLIGIBLE = 1e-6

WIDEST, LARGEST = 2**20, 2**53
"""Integers that span a wider range, or are larger, are numbers, not ids."""

MOST_COLUMNS = 256
"""A row of more integers than this is a sequence: all its columns count as one."""


def fit_envelope(
    inputs: Sequence[Tensor],
    queries: Batch,
    held_out: Batch,
    outputs: Array,
    *,
    mirrored: bool = False,
) -> Envelope:
    """Fit the envelope of training queries.

    Args:
        inputs: the deployed model's.
        queries: the training queries, an array (n, ...) for each input.
        held_out: queries among which false alarms are counted.
        outputs: the deployed model's outputs (m, *output_shape).
        mirrored: queries turned left to right count as well.

    """
    sizes = sizes_in(queries, inputs)
    share = FALSE_ALARMS / len(inputs)
    some = {name: spaced(each, MEASURED) for name, each in held_out.items()}
    envelope = Envelope(
        tuple(inputs),
        tuple(_fit(each, queries[each.name], sizes, share, mirrored) for each in inputs),
        {axis: int(found.max()) for axis, found in sizes.items()},
        outputs.shape[1:],
        *reach(outputs),
        0.0,
        len(next(iter(some.values()))),
    )
    return structs.replace(envelope, false_alarms=float(envelope.unlike(some).mean()))


def _fit(tensor: Tensor, array: Array, sizes: Sizes, share: float, mirrored: bool) -> Numbers | Ids:
    """Fit one input, an `array` (n, ...), with limits that call at most a `share` of honest inputs
    unlike."""
    ids = _are_ids(array)
    if not ids:
        array = array.astype(np.float32, copy=False)
    if not (ids or tensor.axes):
        return _fit_numbers(array, share, mirrored)
    few = FITTED // max(1, prod(array.shape[1:]))
    array, sizes = spaced(array, few), {axis: spaced(each, few) for axis, each in sizes.items()}
    rows = list(contents(tensor, array, sizes))
    values = np.concatenate([row.reshape(-1) for row in rows])
    if ids:
        columns = 1 if tensor.axes or rows[0].size > MOST_COLUMNS else rows[0].size
        low, high = (each(values.reshape(-1, columns), axis=0) for each in (np.min, np.max))
        return Ids(tuple(map(int, low)), tuple(map(int, high)))
    # Where an axis is dynamic, all values are of one kind.
    center, spread = map(np.asarray, _spread(values, (), by_channel=False))
    blank = Numbers(center, spread, np.empty((0, 1), np.float32), Limits(0, 0, 0, 0))
    return structs.replace(blank, limits=_limits(_measure(blank, rows), share))


def _fit_numbers(inputs: Array, share: float, mirrored: bool) -> Numbers:
    """Fit float32 inputs (n, *shape) of fixed shape."""
    shape, values = inputs.shape[1:], prod(inputs.shape[1:])
    some = np.random.default_rng(0).permutation(spaced(inputs, FITTED // values))
    if mirrored:
        some = np.stack([some, some[..., ::-1]], axis=1).reshape(-1, *shape)
    channels = channel_axis(shape)
    alike = () if channels is None else tuple(set(range(1, some.ndim)) - {1 + channels})
    center, spread = _spread(some, alike, by_channel=channels is not None and values > EACH)
    blank = Numbers(center, spread, np.empty((0, values), np.float32), Limits(0, 0, 0, 0))
    components = _components(blank, some)
    if not len(components):
        measured = _measure(blank, spaced(inputs, MEASURED))
    else:  # each fold by components that are fitted to the others
        folds = np.array_split(some, FOLDS)
        parts = []
        for i, fold in enumerate(folds):
            others = np.concatenate(folds[:i] + folds[i + 1 :])
            if len(others):
                known = structs.replace(blank, components=_components(blank, others))
                parts.append(_measure(known, fold))
        measured = np.concatenate(parts)
    return structs.replace(blank, components=components, limits=_limits(measured, share))


def channel_axis(query_shape: tuple[int, ...]) -> int | None:
    """Return the axis of a query along which values differ in kind; None: each value is of its own
    kind.

    It is the axis of channels in images. In sequences it is the shorter axis, or the first of two
    equal ones.
    """
    if len(query_shape) < 2:
        return None
    return int(len(query_shape) == 2 and query_shape[1] < query_shape[0])


def spaced(rows: Array, most: int) -> Array:
    """Return at most `most` rows of all, but not fewer than 2 (if there are), evenly spaced."""
    return rows[:: ceil(len(rows) / max(most, 2))]


def _spread(rows: Array, alike: tuple[int, ...], *, by_channel: bool) -> tuple[Array, Array]:
    """Return mean and deviation of each value of `rows` (n, ...), or of channels, without outliers.

    The axes `alike` hold values of one kind.
    """
    axes = (0, *alike) if by_channel else (0,)
    low, high = np.quantile(rows, (OUTLYING, 1 - OUTLYING), axis=axes, keepdims=True)
    # Among values that are nearly always the same, as flags are, rare ones are not outliers.
    reach = np.where(high > low, high - low, np.inf)
    kept = np.clip(rows, low - reach, high + reach)
    center = kept.mean(axis=axes, keepdims=True, dtype=np.float64)
    spread = kept.std(axis=axes, keepdims=True, dtype=np.float64)
    if alike:
        typical = np.sqrt(np.square(spread).mean(axis=alike, keepdims=True))
        spread = np.maximum(spread, FLOOR * typical)
    constant = spread <= NEGLIGIBLE * np.abs(center)
    telling = spread[~constant]
    floor = FLOOR * np.median(telling) if telling.size else FLOOR
    spread = np.where(constant, np.maximum(floor, FLOOR * np.abs(center)), spread)
    return center[0].astype(np.float32), spread[0].astype(np.float32)


def _measure(numbers: Numbers, rows: Iterable[Array]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array([numbers.measure(row) for row in rows])


def _limits(measured: Array, false_alarms: float) -> Limits:
    # Inputs that lie far beyond all others are not what a stand-in should be asked about.
    farness = np.sqrt(np.sqrt(measured[:, 1]))
    usual, far = np.quantile(farness, (0.5, COMMON))
    measured = measured[farness <= usual + STRAY * (far - usual) + NEGLIGIBLE]
    share = false_alarms / measured.shape[1]
    reached = np.quantile(measured, 1 - share, axis=0, method="higher")
    middle = np.median(measured, axis=0)
    limits: Sequence[float] = (middle + MARGIN * (reached - middle) + NEGLIGIBLE).tolist()
    return Limits(*limits)


def _components(numbers: Numbers, rows: Array) -> Array:
    """Return weighted principal components (m, values) of the deviations of `rows` (n, *shape).

    Less the squares of its projections onto them, the energy of an input is what is unlike `rows`.
    """
    values = prod(rows.shape[1:])
    number = min(MAX_PROJECTION // values, values // 2, len(rows) // 4, MOST_COMPONENTS)
    if number < FEWEST_COMPONENTS:
        return np.empty((0, values), np.float32)
    z = ((rows - numbers.center) / numbers.spread).reshape(len(rows), values)
    z = np.clip(z, -10, 10)
    variances, directions = np.linalg.eigh(z.T.astype(np.float64) @ z / len(z))
    rest = max(variances[:-number].mean(), NEGLIGIBLE * variances.mean())
    along = np.maximum(variances[-number:], rest)
    weighted = directions[:, -number:] * np.sqrt(1 - rest / along) if rest > 0 else directions
    return np.ascontiguousarray(weighted.T, np.float32)


def reach(outputs: Array) -> tuple[Array, Array]:
    """Return the range that outputs may have: that of F's `outputs` (n, *shape), widened on either
    side by its own width."""
    one = prod(outputs.shape[1:]) > EACH
    outputs = outputs[np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)]
    low = outputs.min(axis=None if one else 0)
    high = outputs.max(axis=None if one else 0)
    span = (high - low).astype(np.float64)
    span = np.maximum(span, 1e-3 * np.abs(outputs).max() + NEGLIGIBLE)
    most = np.finfo(np.float32).max
    return (
        np.asarray(np.clip(low - span, -most, most), np.float32),
        np.asarray(np.clip(high + span, -most, most), np.float32),
    )


def _are_ids(array: Array) -> bool:
    if array.dtype.kind == "f":
        return False
    low, high = int(array.min()), int(array.max())
    return low > -LARGEST and high < LARGEST and high - low < WIDEST

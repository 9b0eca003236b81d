"""What stand-ins say in place of a deployed model, for many queries, as serving would give it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.evaluation.accuracy import draw_groups, run_parities
from parity_models.evaluation.predictor import BATCH, predictor
from parity_models.models.bundle import Bundle
from parity_models.models.gate import StandIn

Array = NDArray[Any]
Mask = NDArray[np.bool_]
Tell = Callable[[int], None]


@dataclass(frozen=True)
class StandInAnswers:
    """Outputs (m, *output shape) of a stand-in, and the rows of the inputs that they are for."""

    outputs: Array
    rows: NDArray[np.int64]


def rows_to_run(bundle: Bundle, rows: int) -> int:
    """How many rows stand-ins run for `rows` queries."""
    code = bundle.manifest.code
    of_parities = 0 if code is None else code.r * -(-rows // code.k)
    return of_parities + rows * len(bundle.manifest.backups)


def answers_of(
    bundle: Bundle,
    inputs: Array,
    predictions: Array,
    *,
    seed: int = 0,
    independent: bool = False,
    tell: Tell | None = None,
) -> dict[StandIn, StandInAnswers]:
    """What each stand-in of `bundle` says of `inputs` (n, *query shape).

    `predictions` (n, *output shape) are F's. Groups are drawn by `seed`. Every query is
    reconstructed once, as soon as it can be: with 1 to r of its group unavailable, and no more
    parity outputs than that takes. Where answers are to be `independent` of each other, one of a
    group is reconstructed, unless the slots of the code are isolated. A backup answers every query.
    """
    found: dict[StandIn, StandInAnswers] = {}
    code = bundle.code()
    if code is not None and len(inputs) >= code.k:
        alone = independent and not bundle.isolated
        found["reconstruction"] = _reconstruct(
            bundle, code, inputs, predictions, seed, alone, tell or _nobody
        )
    for role, backup in bundle.manifest.backup_roles.items():
        outputs = predictor(bundle.pinned(backup), tell=tell)(inputs)
        found[role] = StandInAnswers(outputs, np.arange(len(inputs)))
    return found


def _nobody(rows: int) -> None:
    pass


def _reconstruct(
    bundle: Bundle,
    code: Code,
    inputs: Array,
    predictions: Array,
    seed: int,
    alone: bool,
    tell: Tell,
) -> StandInAnswers:
    groups = draw_groups(len(inputs), code.k, seed)
    # The last group is filled up with queries of the first, which count only there.
    counted = np.arange(groups.size).reshape(groups.shape) < len(inputs)
    if alone:
        full = counted.all(axis=1)
        groups, counted = groups[full], counted[full]
    parity_outputs = run_parities(bundle, code, inputs, groups, BATCH, tell)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(code.k, size=len(groups))
    outputs, rows = [], []
    for slot in range(code.k):
        (here,) = np.nonzero((chosen == slot) & counted[:, slot] if alone else counted[:, slot])
        for members, lost, parities in _cases(code, slot, here, rng):
            decoded = code.decode(
                [None if lost[i] else predictions[groups[members, i]] for i in range(code.k)],
                [
                    output[members] if is_here else None
                    for output, is_here in zip(parity_outputs, parities, strict=True)
                ],
            )
            outputs.append(decoded[slot])
            rows.append(groups[members, slot])
    return StandInAnswers(np.concatenate(outputs), np.concatenate(rows))


def _cases(
    code: Code, slot: int, groups: NDArray[np.int64], rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], Mask, Mask]]:
    """Which of `groups` lack what where `slot` is unavailable: of each case the groups, the slots
    that are unavailable (k,) and the parity outputs that are here (r,)."""
    if not len(groups):
        return
    unavailable = rng.integers(1, code.r + 1, size=len(groups))
    order = rng.random((len(groups), code.k))
    order[:, slot] = -1.0
    lost = order.argsort(axis=1).argsort(axis=1) < unavailable[:, np.newaxis]
    first = rng.random((len(groups), code.r)).argsort(axis=1).argsort(axis=1)
    cases: dict[tuple[Any, ...], list[int]] = {}
    for group, is_lost, rank in zip(groups.tolist(), lost, first, strict=True):
        needed = next(
            number
            for number in range(1, code.r + 1)
            if code.decodable(tuple((~is_lost).tolist()), tuple((rank < number).tolist()))[slot]
        )
        key = (tuple(is_lost.tolist()), tuple((rank < needed).tolist()))
        cases.setdefault(key, []).append(group)
    for (is_lost, is_here), members in cases.items():
        yield np.array(members), np.array(is_lost), np.array(is_here)

"""Outputs of a bundle's models, and answers of its stand-ins, for any number of queries."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parity_models.bundle.bundle import Bundle
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.codes import Code
from parity_models.errors import DataError, UserError
from parity_models.progress import OnProgress, Progress
from parity_models.tensors.queries import as_batch, by_bucket, renamed, rows_in, take
from parity_models.tensors.signature import Array, Batch, Signature
from parity_models.trust.gate import StandIn, served

Mask = NDArray[np.bool_]

Inputs = ArrayLike | Batch
"""Queries of a bundle: an array (n, ...) for each input, or an array for the only input."""

OnRows = Callable[[int], None]
"""Called with the number of rows that have been through a model."""

Run = Callable[[Inputs], Array]
"""A model: n queries to one output (n, *output_shape)."""

BATCH = 256
"""Rows per run of a model; more would gain nothing and take more memory."""


def predictor(
    model: OnnxModel,
    name: str = "the stand-in",
    *,
    on_rows: OnRows | None = None,
    output: str | None = None,
) -> Run:
    """Return a function that runs a model, called `name` in errors, over any number of queries.

    It gives the output called `output`, or all as rows (see Layout). Queries of dynamic shape are
    run in their own buckets. The function raises DataError for queries that the model cannot run,
    and for outputs that are not finite.
    """
    signature = model.signature

    def run(queries: Inputs) -> Array:
        named = queries if isinstance(queries, Mapping) else as_batch(queries, signature)
        parts, places = [], []
        for rows, batch in by_bucket(renamed(named, signature), signature, BATCH):
            found = model.predict(batch)
            if output is not None:
                found = {output: found[output]}
            finite = {each: _finite(array, name) for each, array in found.items()}
            parts.append(finite[output] if output else signature.smallest.output.join(finite))
            places.append(rows)
            if on_rows is not None:
                on_rows(len(rows))
        outputs: Array = np.concatenate(parts)[np.argsort(np.concatenate(places))]
        return outputs

    return run


def deployed_predictor(bundle: Bundle, *, on_rows: OnRows | None = None) -> Run:
    """Return the `predictor` of the deployed model's output that stand-ins imitate.

    Raises UserError if the model has several outputs and the bundle does not say which.
    """
    manifest = bundle.manifest
    outputs = manifest.deployed.signature.outputs
    if len(outputs) > 1 and manifest.imitated is None:
        raise UserError(
            f"{bundle.path} has a model with several outputs "
            f"({', '.join(each.name for each in outputs)}) and no stand-in for any, so there is "
            "nothing to judge"
        )
    output = manifest.imitated if len(outputs) > 1 else None
    deployed = manifest.deployed
    model = load(bundle.pinned(deployed).read(), deployed.signature)
    return predictor(model, deployed.file, on_rows=on_rows, output=output)


def load(onnx: Path | bytes, signature: Signature | None) -> OnnxModel:
    """Return the model in a file or in its content, to compute on all cores."""
    return OnnxModel(onnx, signature=signature, threads=os.cpu_count() or 1)


def _finite(outputs: Array, name: str) -> Array:
    if outputs.dtype.kind == "f" and not np.isfinite(outputs).all():
        raise DataError(
            f"{name} gives NaN or infinite values for some of the queries; leave those out, "
            "or check that they are scaled as the model expects them"
        )
    return outputs


def draw_groups(rows: int, k: int, seed: int) -> Array:
    """Return rows of the queries (groups, k), each at least once, repeated only to fill the last
    group."""
    order = np.random.default_rng(seed).permutation(rows)
    return np.resize(order, (ceil(rows / k), k))


@dataclass(frozen=True)
class Answers:
    """Outputs of a stand-in as it `gave` them, (m, *output shape) or rows that include its head's,
    and the `rows` of the queries that they answer."""

    gave: Array
    rows: NDArray[np.int64]

    @property
    def outputs(self) -> Array:
        """The outputs (m, *output shape) as clients get them."""
        return served(self.gave)

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        """Return all of the `parts` in their order."""
        outputs = np.concatenate([each.gave for each in parts])
        return cls(outputs, np.concatenate([each.rows for each in parts]))


class Outputs:
    """Outputs of the models of `bundle` for n queries; each model runs over them at most once.

    The `seed` draws coding groups, and unavailable slots. `predictions` are the deployed model's
    outputs (n, *output shape), if they are known. Raises DataError if there are no queries or they
    do not fit the deployed model, and later for models whose outputs are not finite.
    """

    def __init__(
        self,
        bundle: Bundle,
        inputs: Inputs,
        *,
        seed: int = 0,
        predictions: Array | None = None,
        progress: OnProgress | None = None,
    ) -> None:
        self.bundle = bundle
        self.seed = seed
        self.queries = as_batch(inputs, bundle.manifest.deployed.signature)
        self.rows = rows_in(self.queries)
        if not self.rows:
            raise DataError("there are 0 inputs, too few")
        self.code = bundle.code()
        self._progress = progress
        self._done = 0
        self._total = self.rows * (1 + (bundle.manifest.backup is not None))
        if self.code is not None:
            self._total += self.code.r * len(self._groups)
        if predictions is not None:
            self.predictions = predictions

    @cached_property
    def predictions(self) -> Array:
        """The deployed model's outputs: (n, *output shape)."""
        return deployed_predictor(self.bundle, on_rows=self._on_rows)(self.queries)

    @property
    def backup(self) -> Array | None:
        """The outputs (n, *output shape) of the backup, if there is one."""
        return None if self._backup is None else served(self._backup)

    @cached_property
    def _backup(self) -> Array | None:
        backup = self.bundle.manifest.backup
        if backup is None:
            return None
        model = load(self.bundle.pinned(backup).read(), backup.signature)
        return predictor(model, backup.file, on_rows=self._on_rows)(self.queries)

    def answers(self, *, independent: bool = False) -> dict[StandIn, Answers]:
        """Return the answers of each stand-in, as serving would give them.

        Every query is reconstructed once, with 1 to r of its group unavailable, from the fewest
        parity outputs that suffice. If answers must be `independent` of each other, one query of a
        group is reconstructed, unless the code is isolated. The backup answers every query.
        """
        found: dict[StandIn, Answers] = {}
        if self.code is not None and self.rows >= self.code.k:
            one_of_each = independent and not self.bundle.isolated
            found["reconstruction"] = self._as_served(self.code, one_of_each)
        if self._backup is not None:
            found["backup"] = Answers(self._backup, np.arange(self.rows))
        return found

    def reconstructed(self, sets: Iterable[Sequence[int]]) -> Answers:
        """Return the reconstructions with each of these `sets` of slots unavailable in turn in
        every group, and all r parity outputs available."""
        code, parts = self._coded, []
        for lost in sets:
            for slot, outputs in self._decode(slice(None), lost, [True] * code.r).items():
                counted = self._counted[:, slot]
                parts.append(Answers(outputs[counted], self._groups[counted, slot]))
        return Answers.joined(parts)

    @property
    def _coded(self) -> Code:
        assert self.code is not None
        return self.code

    @cached_property
    def _groups(self) -> Array:
        return draw_groups(self.rows, self._coded.k, self.seed)

    @property
    def _counted(self) -> Mask:
        """The members (groups, k) that do not merely fill up the last group."""
        return np.arange(self._groups.size).reshape(self._groups.shape) < self.rows

    @cached_property
    def _parities(self) -> list[Array]:
        """The outputs (groups, *parity output shape) of the r parity models for every group."""
        code, queries = self._coded, self.queries
        models = [
            (each.file, load(self.bundle.pinned(each).read(), each.signature))
            for each in self.bundle.manifest.parity
        ]
        parts: list[list[Array]] = [[] for _ in models]
        for start in range(0, len(self._groups), BATCH):
            members = self._groups[start : start + BATCH]
            parities = code.encode([take(queries, members[:, slot]) for slot in range(code.k)])
            for (file, model), parity, outputs in zip(models, parities, parts, strict=True):
                (output,) = model(renamed(parity, model.signature)).values()
                outputs.append(_finite(output, file))
                self._on_rows(len(output))
        return [np.concatenate(outputs) for outputs in parts]

    def _decode(
        self, groups: slice | Array, lost: Sequence[int], parities: Sequence[bool]
    ) -> dict[int, Array]:
        """Return the reconstructions of `groups` by slot, with the slots `lost` unavailable and
        these `parities` available."""
        members = self._groups[groups]
        here = [
            None if slot in lost else self.predictions[members[:, slot]]
            for slot in range(self._coded.k)
        ]
        outputs = [
            each[groups] if is_here else None
            for each, is_here in zip(self._parities, parities, strict=True)
        ]
        return self._coded.decode(here, outputs)

    def _as_served(self, code: Code, one_of_each: bool) -> Answers:
        counted = self._counted
        groups = np.arange(len(counted))
        if one_of_each:
            groups = groups[counted.all(axis=1)]
        rng = np.random.default_rng(self.seed)
        chosen = rng.integers(code.k, size=len(groups))
        parts = []
        for slot in range(code.k):
            mine = groups[chosen == slot if one_of_each else counted[groups, slot]]
            for some, lost, parities in _cases(code, slot, mine, rng):
                decoded = self._decode(some, lost, parities)[slot]
                parts.append(Answers(decoded, self._groups[some, slot]))
        return Answers.joined(parts)

    def _on_rows(self, rows: int) -> None:
        self._done += rows
        if self._progress is not None:
            self._progress(Progress("measuring", self._done, self._total))


def _cases(
    code: Code, slot: int, groups: Array, rng: np.random.Generator
) -> Iterator[tuple[Array, Sequence[int], Sequence[bool]]]:
    """Draw a case for each of `groups` in which `slot` is unavailable. Yield the groups of each
    case, its unavailable slots, and which of the r parity outputs are available."""
    if not len(groups):
        return
    unavailable = rng.integers(1, code.r + 1, size=len(groups))
    order = rng.random((len(groups), code.k))
    order[:, slot] = -1.0
    lost = order.argsort(axis=1).argsort(axis=1) < unavailable[:, np.newaxis]
    first = rng.random((len(groups), code.r)).argsort(axis=1).argsort(axis=1)
    cases: dict[tuple[tuple[bool, ...], tuple[bool, ...]], list[int]] = {}
    for group, is_lost, rank in zip(groups.tolist(), lost, first, strict=True):
        available = tuple((~is_lost).tolist())
        counts = (tuple((rank < number).tolist()) for number in range(1, code.r + 1))
        here = next(each for each in counts if code.decodable(available, each)[slot])
        cases.setdefault((available, here), []).append(group)
    for (available, here), members in cases.items():
        yield np.array(members), [i for i in range(code.k) if not available[i]], here

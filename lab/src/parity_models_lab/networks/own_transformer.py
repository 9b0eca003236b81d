"""The deployed model's own transformer: its first blocks and its head.

The layers of a model that is a transformer encoder over ids of words, as BERT is, are found by what
they compute for a few rows: which full layer makes queries, keys or values, how many heads there
are, what is normalised and where, how positions are pooled. Names and operators of the graph differ
with what exported it, so little is asked of these: full layers are products with constant weights.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from parity_models.errors import TrainingError
from parity_models.models.networks.images import Shape
from parity_models.models.networks.network import Effort, NamedModule, NamedNetwork
from parity_models.models.networks.queried import Queried
from parity_models.models.networks.text import ids_of, mask_of
from parity_models.options import Option
from parity_models_lab.networks.layers import (
    TOLERANCE,
    Floats,
    OtherLayersError,
    Watched,
    alike,
    apart,
    predicts,
    standardising,
)

# The layers

Activation = Callable[[Tensor], Tensor]
Pooling = Literal["mean", "first"]

HIDDEN = -1e4
"""What is added to the scores of padding."""


def _tanh_gelu(values: Tensor) -> Tensor:
    return functional.gelu(values, approximate="tanh")


ACTIVATIONS: dict[str, Activation] = {
    "identity": lambda values: values,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "gelu-tanh": _tanh_gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
"""Functions that come between two layers."""


class Attention(nn.Module):
    """What `heads` heads gather for each position from all positions: (n, length, width) to the
    same, before the layer that brings the heads together."""

    def __init__(self, query: nn.Linear, key: nn.Linear, value: nn.Linear, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.heads = query, key, value, heads

    def forward(self, x: Tensor, here: Tensor) -> Tensor:
        """`here` (n, length) is 1 where there is content, 0 where there is padding."""
        query, key, value = (
            each(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
        shares = torch.softmax(scores + (1 - here[:, None, None]) * HIDDEN, dim=3)
        found: Tensor = (shares @ value).transpose(1, 2).flatten(2)
        return found


class Block(nn.Module):
    """Attention, and a perceptron for each position, each added to what it takes and then
    normalised.

    (Vaswani et al., NeurIPS 2017, section 3.1.)
    """

    def __init__(
        self,
        attention: Attention,
        gathered: nn.Linear,
        attended: nn.LayerNorm,
        wide: nn.Linear,
        activation: str,
        narrow: nn.Linear,
        left: nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.attention, self.gathered, self.attended = attention, gathered, attended
        self.wide, self.activation, self.narrow, self.left = wide, activation, narrow, left

    def forward(self, x: Tensor, here: Tensor) -> Tensor:
        x = self.attended(x + self.gathered(self.attention(x, here)))
        found: Tensor = self.left(x + self.narrow(ACTIVATIONS[self.activation](self.wide(x))))
        return found

    @torch.no_grad()
    def thin(self, units: int) -> None:
        """Keep so many units of the perceptron: those whose weights, in and out, are largest."""
        weighs = self.wide.weight.norm(dim=1) * self.narrow.weight.norm(dim=0)
        kept = weighs.topk(units).indices
        wide, narrow = (
            nn.Linear(self.wide.in_features, units),
            nn.Linear(units, self.narrow.out_features),
        )
        wide.weight.copy_(self.wide.weight[kept])
        wide.bias.copy_(self.wide.bias[kept])
        narrow.weight.copy_(self.narrow.weight[:, kept])
        narrow.bias.copy_(self.narrow.bias)
        self.wide, self.narrow = wide, narrow


class Head(nn.Module):
    """Full layers on what is pooled (n, width), each after an activation: to (n, outputs)."""

    def __init__(self, layers: Sequence[tuple[str, nn.Linear]]) -> None:
        super().__init__()
        self.activations = [activation for activation, _ in layers]
        self.layers = nn.ModuleList(layer for _, layer in layers)
        self.outputs = layers[-1][1].out_features if layers else None

    def forward(self, pooled: Tensor) -> Tensor:
        for activation, layer in zip(self.activations, self.layers, strict=True):
            pooled = layer(ACTIVATIONS[activation](pooled))
        return pooled


class Encoder(nn.Module):
    """Words (values, width) and positions (length, width) are added up and normalised, go through
    the blocks, and are pooled: the mean of all positions, or the first.

    Words and positions are not among the weights that are kept: they are the deployed model's.
    """

    words: Tensor
    positions: Tensor

    def __init__(
        self,
        words: Tensor,
        positions: Tensor,
        entered: nn.LayerNorm | None,
        blocks: Sequence[Block],
        pooling: Pooling,
        head: Head,
    ) -> None:
        super().__init__()
        self.register_buffer("words", words, persistent=False)
        self.register_buffer("positions", positions, persistent=False)
        self.entered = entered
        self.blocks = nn.ModuleList(blocks)
        self.pooling, self.head = pooling, head

    def thin(self, share: float) -> None:
        """Keep a share of the units of each block's perceptron, at least one."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.thin(max(1, round(share * block.wide.out_features)))

    @property
    def outputs(self) -> int:
        """How many values it gives."""
        return self.head.outputs or self.words.shape[1]

    def copied(self, blocks: int) -> "Encoder":
        """The same with the first of its blocks, to be trained; words and positions are shared."""
        first = [each for each in self.blocks if isinstance(each, Block)][:blocks]
        entered, kept, head = deepcopy((self.entered, first, self.head))
        return Encoder(self.words, self.positions, entered, kept, self.pooling, head)

    def enter(self, ids: Tensor) -> Tensor:
        """Ids (n, length), from 0 to `values` - 1, to what enters the blocks."""
        places = torch.arange(ids.shape[1], device=ids.device)
        found = functional.embedding(ids, self.words) + functional.embedding(places, self.positions)
        return found if self.entered is None else self.entered(found)

    def through(self, x: Tensor, here: Tensor) -> Tensor:
        """All blocks: (n, length, width) to the same."""
        for block in self.blocks:
            x = block(x, here)
        return x

    def pool(self, x: Tensor, here: Tensor) -> Tensor:
        """(n, length, width), and (n, slots, length) of what is to be pooled, to (n, slots,
        width)."""
        if self.pooling == "first":
            return x[:, :1].expand(-1, here.shape[1], -1)
        return here / here.sum(2, keepdim=True).clamp(min=1) @ x


# Finding them

ROWS = 8
"""Rows that the model is watched with, at most, ..."""

POSITIONS = 256
"""... so that they have about so many positions together, but two rows at least."""

LENGTH = 32
"""Positions of a row that the model is watched with, where there may be more or fewer."""

WIDTH_OF_HEAD = 64
"""What most encoders have."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Queries as an encoder takes them: ids in the input `ids`, up to `values` - 1, `padding`
    beyond their end, which the input `mask` tells, if there is one; `others` are always the same.

    They have `length` positions at most, and always if it is `fixed`. `words` (values, width) are
    the vectors that ids are looked up in.
    """

    ids: str
    mask: str | None
    others: dict[str, float]
    dtypes: dict[str, np.dtype[np.generic]]
    padding: int
    words: Floats
    length: int
    fixed: bool

    def rows(self, count: int, length: int) -> dict[str, NDArray[Any]]:
        """Queries drawn at random, of all lengths where a mask can say so; the first is full."""
        rng = np.random.default_rng(0)
        lengths = rng.integers(1, length + 1, count)
        lengths[0] = length
        here = np.arange(length) < lengths[:, None] if self.mask else np.ones((count, length), bool)
        ids = np.where(here, rng.integers(0, len(self.words), here.shape), self.padding)
        told = {self.ids: ids} | ({self.mask: here} if self.mask else {})
        told |= {name: np.full(here.shape, value) for name, value in self.others.items()}
        return {name: told[name].astype(dtype) for name, dtype in self.dtypes.items()}


@lru_cache(4)
def encoder_of(queried: Queried) -> Encoder | None:
    """Return the encoder that the deployed model is, if it is one."""
    at, mask = ids_of(queried), mask_of(queried)
    words = None if at is None else queried[at].table
    if at is None or words is None or queried.signature is None:
        return None
    ids, (size,) = queried[at].tensor, queried[at].tensor.shape
    others = (each for i, each in enumerate(queried) if i not in (at, mask))
    asked = Drawn(
        ids=ids.name,
        mask=None if mask is None else queried[mask].tensor.name,
        others={each.tensor.name: each.low for each in others},
        dtypes={each.tensor.name: each.tensor.dtype for each in queried},
        padding=int(ids.padding),
        words=words,
        length=size if isinstance(size, int) else queried.signature.axes[size].bound,
        fixed=isinstance(size, int),
    )
    return find_encoder(queried.content, asked, queried.output)


@dataclass(frozen=True, eq=False)
class Full:
    """A full layer of a graph, and the names of the tensors that it takes and gives."""

    layer: nn.Linear
    taken: str
    given: str


@torch.no_grad()
def find_encoder(content: bytes, asked: Drawn, output: str) -> Encoder | None:
    """The layers of a model of which `output` (n, values) is asked; None where it has others."""
    try:
        length = asked.length if asked.fixed else min(LENGTH, asked.length)
        inputs = asked.rows(min(ROWS, max(2, POSITIONS // length)), length)
        seen = Watched(content, inputs)
        return _Search(content, asked, seen, inputs, output).encoder()
    except OtherLayersError:
        return None


class _Search:
    """What is known of the model that is watched."""

    def __init__(
        self,
        content: bytes,
        asked: Drawn,
        seen: Watched,
        inputs: dict[str, NDArray[Any]],
        output: str,
    ) -> None:
        self.content, self.asked, self.seen, self.output = content, asked, seen, output
        self.ids = torch.from_numpy(inputs[asked.ids].astype(np.int64))
        here = inputs[asked.mask] if asked.mask else np.ones(self.ids.shape)
        self.here = torch.from_numpy(here.astype(np.float32))
        needed = set(seen.before(output))
        fulls = [each for each in _full_layers(seen) if each.given in needed]
        self.body = [each for each in fulls if seen.computed[each.taken].ndim == 3]
        self.top = [each for each in fulls if seen.computed[each.taken].ndim == 2]
        if not self.body or seen.computed[self.body[0].taken].shape[:2] != self.ids.shape:
            raise OtherLayersError

    def encoder(self) -> Encoder:
        positions, entered = self._entered()
        blocks: list[Block] = []
        x, heads = self._tensor(self.body[0].taken), None
        rest: Sequence[Full] = self.body
        while rest:
            block, rest = self._block(x, rest, heads)
            x, heads = block(x, self.here), block.attention.heads
            blocks.append(block)
        words = torch.from_numpy(self.asked.words)
        for pooling in ("mean", "first"):
            encoder = Encoder(words, positions, entered, blocks, pooling, Head(()))
            head = self._head(encoder.pool(x, self.here[:, None])[:, 0])
            if head is not None:
                encoder.head = head
                return self._checked(encoder)
        raise OtherLayersError

    def _tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.seen.computed[name])

    def _entered(self) -> tuple[Tensor, nn.LayerNorm | None]:
        """The vectors of positions (length, width), and the normalisation, of what enters the first
        block."""
        entering = self.seen.computed[self.body[0].taken]
        words, ids, here = self.asked.words, self.ids.numpy(), self.here.numpy() > 0
        if words.shape[1] != entering.shape[2]:
            raise OtherLayersError
        for name in self.seen.before(self.body[0].taken):
            tensor = self.seen.computed.get(name)
            if tensor is None or tensor.shape != entering.shape:
                continue
            added = tensor - words[ids]
            same = np.broadcast_to(added[:1], added.shape)
            if not alike(same[here], added[here]):
                continue
            positions = torch.from_numpy(self._positions(name))
            if alike(tensor, entering):
                return positions, None
            return positions, _normalisation(tensor, entering)
        raise OtherLayersError

    def _positions(self, name: str) -> Floats:
        """What the tensor `name` adds to words, at all positions that there may be."""
        inputs = self.asked.rows(2, self.asked.length)
        tensor = Watched(self.content, inputs, (name,)).computed.get(name)
        if tensor is None:
            raise OtherLayersError
        found: Floats = tensor[0] - self.asked.words[inputs[self.asked.ids][0]]
        return found

    def _block(
        self, x: Tensor, fulls: Sequence[Full], heads: int | None
    ) -> tuple[Block, Sequence[Full]]:
        """The block that takes `x`, and the full layers behind it."""
        width = x.shape[2]
        makers, fulls = _attending(fulls, width)
        if len(fulls) < 3 or {fulls[0].layer.out_features, fulls[2].layer.out_features} != {width}:
            raise OtherLayersError
        gathered, wide, narrow, *rest = fulls
        context = self._tensor(gathered.taken)
        if context.shape != x.shape:
            raise OtherLayersError
        attention = self._attention(x, makers, context, heads)
        summed = x + gathered.layer(context)
        attended = _normalisation(summed.numpy(), self.seen.computed[wide.taken])
        x = self._tensor(wide.taken)
        activation = _activation(wide.layer(x), self.seen.computed[narrow.taken])
        summed = x + narrow.layer(self._tensor(narrow.taken))
        left = self._left(summed.numpy(), narrow, rest)
        parts = (attention, gathered.layer, attended, wide.layer, activation, narrow.layer, left)
        return Block(*parts), rest

    def _attention(
        self, x: Tensor, makers: Sequence[nn.Linear], context: Tensor, heads: int | None
    ) -> Attention:
        """Which of the `makers` are of queries, keys and values, and how many heads there are."""
        width = x.shape[2]
        counts = [each for each in range(1, width) if width % each == 0] if not heads else [heads]
        counts.sort(key=lambda count: abs(width // count - WIDTH_OF_HEAD))
        tried = [
            Attention(query, key, value, count)
            for count in counts
            for query, key, value in permutations(makers)
        ]
        found = [apart(each(x, self.here).numpy(), context.numpy()) for each in tried]
        if min(found) > TOLERANCE:
            raise OtherLayersError
        return tried[int(np.argmin(found))]

    def _left(self, summed: Floats, narrow: Full, rest: Sequence[Full]) -> nn.LayerNorm:
        """The normalisation of a block's sum: to what the next takes, or, of the last one, to the
        last tensor that it can be."""
        if rest:
            return _normalisation(summed, self.seen.computed[rest[0].taken])
        found = None
        for node in self.seen.behind(narrow.given):
            for name in node.output:
                tensor = self.seen.computed.get(name)
                if tensor is not None and tensor.shape == summed.shape:
                    fitted = standardising(summed, tensor, 2)
                    found = fitted or found
        if found is None:
            raise OtherLayersError
        return _norm(*found)

    def _head(self, pooled: Tensor) -> Head | None:
        """The full layers on what is pooled; None where that is pooled in another way."""
        layers = []
        for full in self.top:
            taken = self.seen.computed[full.taken]
            if taken.shape != pooled.shape:
                return None
            try:
                activation = _activation(pooled, taken)
            except OtherLayersError:
                return None
            layers.append((activation, full.layer))
            pooled = full.layer(self._tensor(full.taken))
        said, units = pooled.numpy(), nn.functional.normalize(pooled).numpy()
        wanted = self.seen.computed.get(self.output)
        return Head(layers) if predicts(said, wanted) or predicts(units, wanted) else None

    def _checked(self, encoder: Encoder) -> Encoder:
        """`encoder`, if all of it together says what the model says."""
        x = encoder.through(encoder.enter(self.ids), self.here)
        said = encoder.head(encoder.pool(x, self.here[:, None])[:, 0])
        wanted = self.seen.computed[self.output]
        if predicts(said.numpy(), wanted) or alike(nn.functional.normalize(said).numpy(), wanted):
            return encoder
        raise OtherLayersError


def _full_layers(seen: Watched) -> list[Full]:
    """Those of a graph, in its order."""
    found = []
    for node in seen.nodes:
        weights = seen.constants.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type not in ("MatMul", "Gemm") or weights is None or weights.ndim != 2:
            continue
        told = {each.name: each for each in node.attribute}
        scaled = any(told[each].f != 1 for each in ("alpha", "beta") if each in told)
        taken = seen.computed.get(node.input[0])
        if scaled or ("transA" in told and told["transA"].i) or taken is None:
            raise OtherLayersError
        weights = weights if "transB" in told and told["transB"].i else weights.T
        bias, given = seen.constants.get(node.input[2]) if len(node.input) > 2 else None, ""
        if bias is None:
            bias, given = _bias(seen, node.output[0], len(weights))
        found.append(Full(_linear(weights, bias), node.input[0], given or node.output[0]))
    return found


def _bias(seen: Watched, name: str, size: int) -> tuple[NDArray[Any], str]:
    """What is added to the tensor `name`, and what that gives; zeros, and "", where nothing is."""
    for node in seen.nodes:
        if node.op_type == "Add" and name in node.input:
            other = seen.constants.get(node.input[0 if node.input[1] == name else 1])
            if other is not None and other.size == size:
                return other.ravel(), node.output[0]
    return np.zeros(size, np.float32), ""


def _linear(weights: NDArray[Any], bias: NDArray[Any]) -> nn.Linear:
    layer = nn.Linear(weights.shape[1], weights.shape[0])
    layer.weight.copy_(torch.tensor(weights))
    layer.bias.copy_(torch.tensor(bias))
    return layer


def _attending(fulls: Sequence[Full], width: int) -> tuple[list[nn.Linear], Sequence[Full]]:
    """The layers of queries, keys and values, in any order, which may be one; and the others."""
    first = fulls[0].layer
    if first.out_features == 3 * width:
        parts = zip(first.weight.chunk(3), first.bias.chunk(3), strict=True)
        return [_linear(weights.numpy(), bias.numpy()) for weights, bias in parts], fulls[1:]
    three = fulls[:3]
    if len(three) < 3 or any(
        each.taken != fulls[0].taken or each.layer.weight.shape != (width, width) for each in three
    ):
        raise OtherLayersError
    return [each.layer for each in three], fulls[3:]


def _activation(before: Tensor, after: Floats) -> str:
    """The function that makes one of the other."""
    if before.shape != after.shape:
        raise OtherLayersError
    found = {name: apart(run(before).numpy(), after) for name, run in ACTIVATIONS.items()}
    name = min(found, key=lambda each: found[each])
    if found[name] > TOLERANCE:
        raise OtherLayersError
    return name


def _normalisation(before: Floats, after: Floats) -> nn.LayerNorm:
    fitted = standardising(before, after, 2) if before.shape == after.shape else None
    if fitted is None:
        raise OtherLayersError
    return _norm(*fitted)


def _norm(epsilon: float, gain: Floats, shift: Floats) -> nn.LayerNorm:
    norm = nn.LayerNorm(len(gain), eps=epsilon)
    norm.weight.copy_(torch.from_numpy(gain))
    norm.bias.copy_(torch.from_numpy(shift))
    return norm


# The network


class OwnTransformer(NamedNetwork):
    """The first blocks of the deployed model, which is a transformer encoder, and its head.

    All weights start as the model's; words and positions stay so. With all blocks it agrees before
    it has learned anything. (Leaving out the last blocks: Sajjad et al., Computer Speech &
    Language, 2023.)
    """

    name = "own-transformer"
    deployed = Effort(6, 32, 2e-4, 1e-2, mirror=False, threaded=True)
    parity = Effort(6, 32, 2e-4, 1e-2, mirror=False, threaded=True)
    proposed = ("own-transformer",)

    @dataclass(frozen=True, kw_only=True)
    class Options(NamedNetwork.Options):
        """What can be set."""

        layers: Annotated[
            int, Option("How many of the model's blocks are kept, from the first.", at_least=1)
        ] = 1
        wide: Annotated[
            float,
            Option(
                "The share of the units of each block's perceptron that is kept.",
                above=0,
                at_most=1,
            ),
        ] = 1.0

    @classmethod
    def takes(cls, queried: Queried) -> bool:
        return encoder_of(queried) is not None

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        encoder = encoder_of(queried)
        blocks = 0 if encoder is None else len(encoder.blocks)
        counts = {1, blocks // 4, -(-blocks // 2)}
        return tuple(f"{cls.name}@{count}" for count in sorted(counts) if 0 < count < blocks)

    @classmethod
    def build_named(cls, options: Any, queried: Queried, outputs: Shape) -> NamedModule:
        encoder = _fitting(cls.name, queried, outputs)
        if options.layers > len(encoder.blocks):
            raise TrainingError(
                f"the model has {len(encoder.blocks)} blocks, not {options.layers}: choose "
                f"own-transformer@{len(encoder.blocks)} or fewer"
            )
        kept = encoder.copied(options.layers)
        if options.wide < 1:
            kept.thin(options.wide)
        return Shallow(kept, queried)


def _fitting(name: str, queried: Queried, outputs: Shape) -> Encoder:
    encoder = encoder_of(queried)
    if encoder is None or len(outputs) != 1 or encoder.outputs != prod(outputs):
        raise TrainingError(
            f"{name} takes ids and a mask, of a model whose layers it found: a transformer encoder "
            "like BERT, positions pooled by their mean or the first, and full layers; choose "
            "another network"
        )
    return encoder


class _Reading(NamedModule):
    """A module with an `encoder`, and what it takes of the inputs."""

    def __init__(self, encoder: Encoder, queried: Queried) -> None:
        super().__init__()
        at = ids_of(queried)
        assert at is not None
        self.encoder, self.at, self.mask = encoder, at, mask_of(queried)

    def read(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Ids (..., length), none beyond what there are, and 1 where there is content."""
        ids = inputs[self.at].long().clamp(0, len(self.encoder.words) - 1)
        here = torch.ones_like(ids) if self.mask is None else inputs[self.mask]
        return ids, here.float()


class Shallow(_Reading):
    """Ids and a mask (n, length) to (n, outputs)."""

    learned = True

    def forward(self, *inputs: Tensor) -> Tensor:
        ids, here = self.read(inputs)
        x = self.encoder.through(self.encoder.enter(ids), here)
        outputs: Tensor = self.encoder.head(self.encoder.pool(x, here[:, None])[:, 0])
        return outputs

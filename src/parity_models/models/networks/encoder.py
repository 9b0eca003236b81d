"""A transformer encoder over ids of words, as BERT's: the layers, and what they compute."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

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

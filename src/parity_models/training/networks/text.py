"""A network for texts: ids of words, and a mask of their padding."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from parity_models.errors import TrainingError
from parity_models.options import option
from parity_models.training.networks.network import Effort, Network
from parity_models.training.networks.queried import Queried, QueriedInput, Shape

FEWEST_WORDS = 32
"""Integers with fewer different values are not ids of words."""

FACTORS = (1_000_003, 8_191)
"""Factors of the ids of two neighbours, which are added up and hashed."""

BUCKETS = 2**14
"""Rows of the table of hashed words and pairs of words."""

DROPOUT = 0.1
"""The share of words left out while it learns."""


class Text(Network):
    """A bag of words and of hashed pairs of words, and a perceptron of one hidden layer on it.

    (fastText: Joulin et al., EACL 2017; deep averaging: Iyyer et al., ACL 2015.) Words begin with
    the deployed model's embeddings, if they were found, and each has a weight that is learned.
    Takes ids (n, length), a mask of that shape if there is one, and inputs that are always the
    same.
    """

    name = "text"
    deployed = Effort(40, 128, 3e-3, 5e-2, mirror=False, threaded=False)
    parity = Effort(40, 128, 3e-3, 5e-2, mirror=False, threaded=False)

    @dataclass(frozen=True, kw_only=True)
    class Options(Network.Options):
        """The size of the hidden layer."""

        units: int = option(256, "Units of the hidden layer.", ge=1, le=4096)

    @classmethod
    def takes(cls, queried: Queried) -> bool:
        return ids_of(queried) is not None

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        return ("text@32", "text@128", "text", "text@1024") if cls.takes(queried) else ()

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        ids = ids_of(queried)
        if ids is None:
            raise TrainingError(
                "text takes one input of ids (n, length), a mask of its shape, and inputs that are "
                f"always the same, not {queried}"
            )
        mask = next((i for i, each in enumerate(queried.inputs) if each.mask), None)
        return BagOfWords(options, queried.inputs[ids], ids, mask, outputs)


def ids_of(queried: Queried) -> int | None:
    """Return the place of the input that holds ids of words, if the others only mark padding."""
    content = [i for i, each in enumerate(queried.inputs) if not (each.mask or each.constant)]
    if len(content) != 1 or sum(each.mask for each in queried.inputs) > 1:
        return None
    ids = queried.inputs[content[0]]
    fits = ids.tensor.dtype.kind in "iub" and len(ids.tensor.shape) == 1 and ids.low >= 0
    return content[0] if fits and ids.values > FEWEST_WORDS else None


class BagOfWords(nn.Module):
    """Ids, and a mask at place `mask` of the inputs, to (n, *outputs)."""

    table: Tensor | None

    def __init__(
        self, options: Text.Options, ids: QueriedInput, at: int, mask: int | None, outputs: Shape
    ) -> None:
        super().__init__()
        self.at, self.mask, self.outputs = at, mask, outputs
        self.padding = ids.tensor.padding
        units, self.values = options.units, ids.values
        table = None if ids.table is None else torch.from_numpy(ids.table)
        # Not among the weights that are kept: it is the deployed model's.
        self.register_buffer("table", table, persistent=False)
        self.words = nn.Embedding(ids.values, units) if table is None else None
        self.enter: nn.Module = nn.Linear(units if table is None else table.shape[1], units)
        self.weights = nn.Embedding(ids.values, 1)
        nn.init.zeros_(self.weights.weight)
        self.single = True  # single words are hashed, too
        self.grams = nn.Embedding(BUCKETS, units)
        nn.init.zeros_(self.grams.weight)
        self.leave = nn.Linear(units, prod(outputs))

    def forward(self, *inputs: Tensor) -> Tensor:
        ids = inputs[self.at].long()
        here = (ids != int(self.padding) if self.mask is None else inputs[self.mask]).float()
        ids = ids.clamp(0, self.values - 1)
        if self.training:
            here = here * (torch.rand_like(here) >= DROPOUT)
        weights = self.weights(ids).squeeze(-1).exp() * here
        shares = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
        hidden = self.enter(_pool(shares, self._vectors(ids)))
        if self.single:
            hidden = hidden + _pool(shares, self.grams(hashed(ids)))
        both = here * _next(here)
        shares = both / both.sum(1, keepdim=True).clamp(min=1.0)
        hidden = hidden + _pool(shares, self.grams(hashed(ids, _next(ids))))
        outputs: Tensor = self.leave(hidden.relu())
        return outputs.reshape(-1, *self.outputs)

    def _vectors(self, ids: Tensor) -> Tensor:
        table = self.words.weight if self.words is not None else self.table
        assert table is not None
        return functional.embedding(ids, table)

    @torch.no_grad()
    def fold(self) -> None:
        """Compute each word's contribution to the hidden layer in advance, for an export."""
        ids = torch.arange(self.values, device=self.weights.weight.device)
        self.table = self.enter(self._vectors(ids)) + self.grams(hashed(ids))
        self.words, self.enter, self.single = None, nn.Identity(), False


def hashed(ids: Tensor, behind: Tensor | None = None) -> Tensor:
    """Return the bucket of each word of `ids` (n, length), or of it and the word `behind` it."""
    total = ids * FACTORS[0]
    if behind is not None:
        total = total + (behind + 1) * (FACTORS[0] * FACTORS[1])
    return total % BUCKETS


def _next(values: Tensor) -> Tensor:
    return torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)


def _pool(shares: Tensor, vectors: Tensor) -> Tensor:
    """(n, length) and (n, length, units) to (n, units)."""
    return torch.bmm(shares.unsqueeze(1), vectors).squeeze(1)

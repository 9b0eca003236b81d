"""A network for texts: ids of words, and a mask of their padding."""

from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from parity_models.errors import TrainingError
from parity_models.models.networks.network import Effort, NamedModule, Network
from parity_models.models.networks.queried import Queried, QueriedInput, Shape
from parity_models.options import Option

FEWEST_WORDS = 32
"""Integers with fewer different values are no words."""

FACTORS = (1_000_003, 8_191, 131)
"""Factors of the ids of neighbours, which are added up and hashed."""


class Text(Network):
    """A bag of words and of hashed n-grams, and a perceptron of one hidden layer on it.

    (fastText: Joulin et al., EACL 2017; deep averaging: Iyyer et al., ACL 2015.) Words begin with
    the vectors that the deployed model looks them up in, where they were found, and each has a
    weight that is learned. Takes ids (n, length), a mask of that shape if there is one, and inputs
    that are always the same. For serving, words are looked up as they enter the hidden layer.
    """

    name = "text"
    deployed = Effort(40, 128, 3e-3, 5e-2, mirror=False, threaded=False)
    parity = Effort(40, 128, 3e-3, 5e-2, mirror=False, threaded=False)

    @dataclass(frozen=True, kw_only=True)
    class Options(Network.Options):
        """Sizes of the bag and of the perceptron."""

        units: Annotated[int, Option("Units of the hidden layer.", at_least=1, at_most=4096)] = 256
        ngrams: Annotated[
            int,
            Option("Words of the longest n-grams; 0: words without a hash.", at_least=0, at_most=3),
        ] = 2
        buckets: Annotated[
            int, Option("Rows of the table of hashed n-grams.", at_least=1, at_most=2**20)
        ] = 2**14
        dropout: Annotated[
            float, Option("The share of words left out while it learns.", at_least=0, below=1)
        ] = 0.1

    @classmethod
    def takes(cls, queried: Queried) -> bool:
        return ids_of(queried) is not None

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        return ("text@32", "text@128", "text", "text@1024") if cls.takes(queried) else ()

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> NamedModule:
        ids = ids_of(queried)
        if ids is None:
            raise TrainingError(
                "text takes one input of ids (n, length), a mask of its shape, and inputs that are "
                f"always the same, not {queried}"
            )
        return BagOfWords(options, queried[ids], ids, mask_of(queried), outputs)


def ids_of(queried: Queried) -> int | None:
    """Return the place of the input that holds ids of words, if the others only mark padding."""
    content = [i for i, each in enumerate(queried) if not (each.mask or each.constant)]
    if len(content) != 1 or sum(each.mask for each in queried) > 1:
        return None
    ids = queried[content[0]]
    fits = ids.whole and len(ids.tensor.shape) == 1 and ids.low >= 0
    return content[0] if fits and ids.values > FEWEST_WORDS else None


def mask_of(queried: Queried) -> int | None:
    """Return the place of the input that marks padding, if there is one."""
    return next((i for i, each in enumerate(queried) if each.mask), None)


class BagOfWords(NamedModule):
    """Ids, and a mask at place `mask` of the inputs, to (n, *outputs)."""

    table: Tensor | None

    def __init__(
        self, options: Text.Options, ids: QueriedInput, at: int, mask: int | None, outputs: Shape
    ) -> None:
        super().__init__()
        self.options, self.at, self.mask, self.outputs = options, at, mask, outputs
        self.padding = ids.tensor.padding
        units, self.values = options.units, ids.values
        table = None if ids.table is None else torch.from_numpy(ids.table)
        # Not among the weights that are kept: it is the deployed model's.
        self.register_buffer("table", table, persistent=False)
        self.words = nn.Embedding(ids.values, units) if table is None else None
        self.enter = nn.Linear(units if table is None else table.shape[1], units)
        self.weights = nn.Embedding(ids.values, 1)
        nn.init.zeros_(self.weights.weight)
        self.grams = nn.Embedding(options.buckets, units) if options.ngrams else None
        if self.grams is not None:
            nn.init.zeros_(self.grams.weight)
        self.leave = nn.Linear(units, prod(outputs))

    def forward(self, *inputs: Tensor) -> Tensor:
        ids, here = known(inputs, self.at, self.mask, self.padding, self.values)
        if self.training and self.options.dropout:
            here = here * (torch.rand_like(here) >= self.options.dropout)
        weights = self.weights(ids).squeeze(-1).exp() * here
        shares = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
        vectors = self.words(ids) if self.words else functional.embedding(ids, self._table)
        hidden = self.enter(_pool(shares, vectors))
        if self.grams is not None:
            single = hashed(ids, here, 1, self.options.buckets)[0]
            hidden = hidden + _pool(shares, self.grams(single))
            for order in range(2, self.options.ngrams + 1):
                hidden = hidden + _mean(self.grams, ids, here, order, self.options.buckets)
        outputs: Tensor = self.leave(hidden.relu())
        return outputs.reshape(-1, *self.outputs)

    @property
    def _table(self) -> Tensor:
        assert self.table is not None
        return self.table

    def served(self) -> nn.Module:
        return _Served(self)


class _Served(nn.Module):
    """A bag whose words are looked up as what they add to the hidden layer, times their weight, and
    that weight."""

    @torch.no_grad()
    def __init__(self, bag: BagOfWords) -> None:
        super().__init__()
        self.options, self.at, self.mask, self.padding = bag.options, bag.at, bag.mask, bag.padding
        self.values, self.outputs = bag.values, bag.outputs
        vectors = bag.words.weight if bag.words else bag._table
        entering = bag.enter(vectors)
        if bag.grams is not None:
            ids = torch.arange(bag.values)[None]
            single = hashed(ids, torch.ones_like(ids), 1, bag.options.buckets)[0]
            entering = entering + bag.grams(single[0])
        weights = bag.weights.weight.exp()
        self.words = nn.Parameter(torch.cat([entering * weights, weights], dim=1))
        self.grams = bag.grams
        self.leave = bag.leave

    def forward(self, *inputs: Tensor) -> Tensor:
        ids, here = known(inputs, self.at, self.mask, self.padding, self.values)
        pooled = _pool(here, functional.embedding(ids, self.words))
        hidden = pooled[:, :-1] / pooled[:, -1:].clamp(min=1e-6)
        for order in range(2, self.options.ngrams + 1):
            assert self.grams is not None
            hidden = hidden + _mean(self.grams, ids, here, order, self.options.buckets)
        outputs: Tensor = self.leave(hidden.relu())
        return outputs.reshape(-1, *self.outputs)


def known(
    inputs: tuple[Tensor, ...], at: int, mask: int | None, padding: float, values: int
) -> tuple[Tensor, Tensor]:
    """The ids, none beyond what there are, and 1 where there is one, 0 where there is padding."""
    ids = inputs[at].long()
    here = ids != int(padding) if mask is None else inputs[mask]
    return ids.clamp(0, values - 1), here.float()


def hashed(ids: Tensor, here: Tensor, order: int, buckets: int) -> tuple[Tensor, Tensor]:
    """For each place (n, length) the bucket of the n-gram of this order that begins there, and 1
    where all of it is there."""
    total, whole = ids * FACTORS[0], here
    for behind in range(1, order):
        ids, here = _next(ids), _next(here)
        total, whole = total + (ids + 1) * (FACTORS[0] * FACTORS[behind]), whole * here
    return total % buckets, whole


def _next(values: Tensor) -> Tensor:
    return torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)


def _pool(shares: Tensor, vectors: Tensor) -> Tensor:
    """(n, length) and (n, length, units) to (n, units)."""
    return torch.bmm(shares.unsqueeze(1), vectors).squeeze(1)


def _mean(table: nn.Embedding, ids: Tensor, here: Tensor, order: int, buckets: int) -> Tensor:
    """The mean vector of the n-grams of this order: (n, units)."""
    places, whole = hashed(ids, here, order, buckets)
    shares = whole / whole.sum(1, keepdim=True).clamp(min=1.0)
    return _pool(shares, table(places))

"""The deployed model's own transformer: its first blocks, or all of them for k queries at once."""

from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from parity_models.errors import TrainingError
from parity_models.models.networks.encoder import Encoder
from parity_models.models.networks.images import Shape
from parity_models.models.networks.network import Effort, GroupNetwork, NamedModule, NamedNetwork
from parity_models.models.networks.queried import Queried
from parity_models.models.networks.text import ids_of, mask_of
from parity_models.options import Option


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
        return _encoder(queried) is not None

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        encoder = _encoder(queried)
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


class Superposition(GroupNetwork):
    """k queries at once through the blocks of the deployed model, which is a transformer encoder.

    What enters the blocks for each query is turned by a matrix of its slot, its key; the sum of all
    goes through the blocks once. Of what goes in and what comes out, each slot pools the positions
    at which its query has words, turns that back, and has a head. Weights start as the model's,
    keys as rotations drawn at random, but for the first, which at first turns nothing; all are
    learned, but for words and positions. (DataMUX: Murahari et al., NeurIPS 2022.)
    """

    name = "superposition"
    parity = Effort(20, 32, 5e-4, 1e-2, mirror=False, threaded=True)

    @classmethod
    def takes(cls, queried: Queried) -> bool:
        return _encoder(queried) is not None

    @classmethod
    def build_group(cls, options: Any, queried: Queried, outputs: Shape, k: int) -> NamedModule:
        encoder = _fitting(cls.name, queried, outputs)
        return Superposed(encoder.copied(len(encoder.blocks)), queried, k)


def _encoder(queried: Queried) -> Encoder | None:
    at = ids_of(queried)
    return None if at is None else queried[at].encoder


def _fitting(name: str, queried: Queried, outputs: Shape) -> Encoder:
    encoder = _encoder(queried)
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


class Superposed(_Reading):
    """Ids and a mask (n, k, length) to (n, k, outputs)."""

    def __init__(self, encoder: Encoder, queried: Queried, k: int) -> None:
        super().__init__(encoder, queried)
        width = encoder.words.shape[1]
        turns = [nn.init.orthogonal_(torch.empty(width, width)) for _ in range(1, k)]
        turns.insert(0, torch.eye(width))
        self.keys = nn.Parameter(torch.stack(turns))
        self.slots = nn.ModuleList(Demultiplexer(each, deepcopy(encoder.head)) for each in turns)
        del encoder.head  # each slot has its own

    def forward(self, *inputs: Tensor) -> Tensor:
        ids, here = self.read(inputs)
        k = len(self.keys)
        entering = self.encoder.enter(ids.flatten(0, 1)).unflatten(0, (-1, k))
        bound = (entering * here[..., None]) @ self.keys  # (n, k, length, width)
        mixed = bound.sum(1) / k**0.5
        x = torch.cat([self.encoder.through(mixed, here.amax(1)), mixed], dim=2)
        pooled = self.encoder.pool(x, here)  # (n, k, 2 * width)
        slots = enumerate(self.slots)
        return torch.stack([slot(pooled[:, place]) for place, slot in slots], dim=1)


class Demultiplexer(nn.Module):
    """What is pooled for a slot (n, 2 * width), from behind and from before the blocks, to (n,
    outputs): what its `key` turned is turned back, and a perceptron takes off the other queries."""

    def __init__(self, key: Tensor, head: nn.Module) -> None:
        super().__init__()
        width = len(key)
        self.back = nn.Linear(2 * width, width, bias=False)
        self.wide, self.narrow = nn.Linear(2 * width, width), nn.Linear(width, width)
        self.head = head
        with torch.no_grad():
            # x @ key @ key.T is x, for a rotation.
            self.back.weight.copy_(torch.cat([key, torch.zeros_like(key)], dim=1))
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        found = self.back(pooled) + self.narrow(functional.gelu(self.wide(pooled)))
        outputs: Tensor = self.head(found)
        return outputs

"""Small transformer encoders over ids and a mask: like BERT's, and unlike them."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from parity_models.models.bundle import Bundle, NewModel, write_bundle
from parity_models.models.export import export
from parity_models.models.signature import Axis, Signature
from parity_models.models.signature import Tensor as Named

WORDS, WIDTH, HEADS, BLOCKS, CLASSES, LENGTH = 60, 16, 2, 2, 5, 12
TAKEN = tuple(Named(name, "INT64", ("length",)) for name in ("ids", "mask"))
GIVEN = Named("scores", "FP32", (CLASSES,))
SIGNATURE = Signature(TAKEN, (GIVEN,), {"length": Axis((4, 8, LENGTH))})


def sentences(rows: int, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Ids and mask (rows, LENGTH), from two words to LENGTH of them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, LENGTH + 1, rows)
    lengths[0] = LENGTH
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int64)
    return {"ids": rng.integers(1, WORDS, mask.shape) * mask, "mask": mask}


class BlockModel(nn.Module):
    """A block as BERT has it, with one layer for queries, keys and values (`joint`), or with its
    normalisations `first`."""

    def __init__(self, activation: Callable[[Tensor], Tensor], first: bool, joint: bool) -> None:
        super().__init__()
        # Keys before queries, which no graph need have in the usual order.
        self.makers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(0 if joint else 3))
        self.joint = nn.Linear(WIDTH, 3 * WIDTH) if joint else None
        self.gather = nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, eps=1e-12) for _ in range(2))
        self.activation, self.first = activation, first

    def forward(self, x: Tensor, away: Tensor) -> Tensor:
        attended, left = self.norms
        if self.first:
            x = x + self._attend(attended(x), away)
            found: Tensor = x + self.narrow(self.activation(self.wide(left(x))))
        else:
            x = attended(x + self._attend(x, away))
            found = left(x + self.narrow(self.activation(self.wide(x))))
        return found

    def _attend(self, x: Tensor, away: Tensor) -> Tensor:
        made = self.joint(x).chunk(3, 2) if self.joint else [each(x) for each in self.makers]
        key, query, value = (each.unflatten(2, (HEADS, -1)).transpose(1, 2) for each in made)
        scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5 + away
        found: Tensor = self.gather((scores.softmax(3) @ value).transpose(1, 2).flatten(2))
        return found


class EncoderModel(nn.Module):
    """Words and positions through blocks; of `pooled` positions a `deep` head or a plain one."""

    def __init__(
        self,
        pooled: str = "mean",
        deep: bool = False,
        activation: Callable[[Tensor], Tensor] = functional.gelu,
        first: bool = False,
        joint: bool = False,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.positions = nn.Embedding(WORDS, WIDTH), nn.Embedding(64, WIDTH)
        self.kinds, self.norm = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)
        self.blocks = nn.ModuleList(BlockModel(activation, first, joint) for _ in range(BLOCKS))
        self.dense = nn.Linear(WIDTH, WIDTH) if deep else None
        self.head = nn.Linear(WIDTH, CLASSES)
        self.pooled = pooled
        _distinct(self)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.kinds(torch.zeros_like(ids))
        x = self.norm(x + self.positions(torch.arange(ids.shape[1])))
        away = (1 - mask[:, None, None].float()) * torch.finfo(torch.float32).min
        for block in self.blocks:
            x = block(x, away)
        return self.top(x, mask.float()[..., None])

    def top(self, x: Tensor, here: Tensor) -> Tensor:
        if self.pooled == "mean":
            pooled = (x * here).sum(1) / here.sum(1).clamp(min=1e-9)
        elif self.pooled == "first":
            pooled = x[:, 0]
        else:
            pooled = (x - 1e4 * (1 - here)).amax(1)
        if self.dense is not None:
            pooled = torch.tanh(self.dense(pooled))
        outputs: Tensor = self.head(pooled)
        return outputs


def _distinct(model: nn.Module) -> None:
    """Have attention matter, and no two layers alike."""
    for name, each in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(each, 1 if name.endswith("weight") else 0, 0.3)
        elif each.ndim == 2 and "Embedding" not in name:
            nn.init.normal_(each, std=0.4)


ALIKE: dict[str, Callable[[], nn.Module]] = {
    "sentence": EncoderModel,
    "classifier": partial(EncoderModel, "first", deep=True, activation=torch.relu),
    "one layer": partial(EncoderModel, joint=True),
}
UNLIKE: dict[str, Callable[[], nn.Module]] = {
    "normalised first": partial(EncoderModel, first=True),
    "largest": partial(EncoderModel, "largest"),
}


@cache
def exported(name: str) -> bytes:
    """One of these models as an ONNX file."""
    return export((ALIKE | UNLIKE)[name](), SIGNATURE.inputs, SIGNATURE.outputs[0].name)


def write_encoder(folder: Path) -> Bundle:
    """A bundle of the first of these models in `deployed`, and queries in inputs.npz."""
    deployed = NewModel(exported("sentence"), "own", signature=SIGNATURE)
    np.savez(folder / "inputs.npz", **sentences(600))  # type: ignore[arg-type]
    return write_bundle(folder / "deployed", deployed=deployed)

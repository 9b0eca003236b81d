"""Models that classify rows of integers: a convolution over the vectors of these."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from parity_models.models.export import export
from parity_models.models.signature import Signature
from parity_models.models.signature import Tensor as Named

VALUES, LENGTH, CLASSES = 20, 48, 6
TAKEN = Named("content", "INT32", (LENGTH,))
SIGNATURE = Signature((TAKEN,), (Named("scores", "FP32", (CLASSES,)),))


def contents(rows: int, seed: int = 0) -> NDArray[np.int32]:
    """Rows of integers (rows, LENGTH), each of a few different ones."""
    rng = np.random.default_rng(seed)
    most = rng.integers(2, VALUES, (rows, 1))
    return (rng.integers(0, 10**6, (rows, LENGTH)) % most).astype(np.int32)


class FileModel(nn.Module):
    """Like magika: ones and zeros times a matrix, blocks of two, standardised over positions, a
    convolution, the largest value of each map, standardised; probabilities."""

    def __init__(self, width: int = 4, maps: int = 16, window: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Linear(VALUES, width)
        self.before = nn.LayerNorm(LENGTH // 2)
        self.convolve = nn.Conv1d(2 * width, maps, window)
        self.after = nn.LayerNorm(maps)
        self.head = nn.Linear(maps, CLASSES)
        for norm in (self.before, self.after):
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias, 0, 0.3)
        nn.init.normal_(self.head.weight)

    def forward(self, content: Tensor) -> Tensor:
        ones = functional.one_hot(content.long(), VALUES).float()
        vectors = functional.gelu(self.dense(ones), approximate="tanh")
        blocks = vectors.reshape(content.shape[0], LENGTH // 2, -1).transpose(1, 2)
        found = functional.gelu(self.convolve(self.before(blocks)), approximate="tanh").amax(2)
        probabilities: Tensor = self.head(self.after(found)).softmax(1)
        return probabilities


class CharacterModel(nn.Module):
    """Like Kim's (EMNLP 2014), with one size of window: a lookup, a padded convolution, the largest
    value of each map; logits."""

    def __init__(self, mean: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vectors = nn.Embedding(VALUES, 5)
        self.convolve = nn.Conv1d(5, 12, 3, padding=1)
        self.head = nn.Linear(12, CLASSES)
        self.mean = mean

    def forward(self, content: Tensor) -> Tensor:
        maps = self.convolve(self.vectors(content.long()).transpose(1, 2)).relu()
        outputs: Tensor = self.head(maps.mean(2) if self.mean else maps.amax(2))
        return outputs


class DeepModel(CharacterModel):
    """The same with another layer before the convolution, which sees neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(LENGTH, LENGTH)

    def forward(self, content: Tensor) -> Tensor:
        vectors = self.mix(self.vectors(content.long()).transpose(1, 2))
        outputs: Tensor = self.head(self.convolve(vectors).relu().amax(2))
        return outputs


ALIKE: dict[str, Callable[[], nn.Module]] = {"files": FileModel, "characters": CharacterModel}
UNLIKE: dict[str, Callable[[], nn.Module]] = {
    "means": partial(CharacterModel, mean=True),
    "deep": DeepModel,
}


def exported(model: nn.Module) -> bytes:
    return export(model, SIGNATURE.inputs, SIGNATURE.outputs[0].name)

"""Small networks for what is no image: words, bytes, categories beside numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

BIGRAMS = 1 << 16
"""Rows of the table that pairs of words are hashed into."""

MIXED = 7919
"""A prime that mixes the first word of a pair into the hash."""


class WordBag(nn.Module):
    """ids and mask (n, length) to outputs, from the mean of words and of pairs of words.

    Words start with the model's own embeddings (words, width).
    """

    def __init__(self, table: Tensor, outputs: int, pairs: int = 128, hidden: int = 1024) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(table, freeze=False, sparse=True)
        self.pairs = nn.Embedding(BIGRAMS, pairs, sparse=True)
        nn.init.zeros_(self.pairs.weight)
        self.deep = nn.Sequential(
            nn.Dropout(0.1),
            nn.Linear(table.shape[1] + pairs, hidden),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(hidden, outputs),
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        here = mask.float().unsqueeze(-1)
        both = (mask[:, 1:] * mask[:, :-1]).float().unsqueeze(-1)
        words = (self.words(ids) * here).sum(1) / here.sum(1).clamp(min=1)
        hashed = (ids[:, :-1] * MIXED + ids[:, 1:]) % BIGRAMS
        pairs = (self.pairs(hashed) * both).sum(1) / both.sum(1).clamp(min=1)
        outputs: Tensor = self.deep(torch.cat([words, pairs], 1))
        return outputs


class ByteConvolutions(nn.Module):
    """bytes (n, length) from 0 to 256 to outputs: a convolution over blocks of four, then the
    largest value of each channel."""

    def __init__(self, outputs: int, width: int = 12, channels: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(257, width)
        self.width = width
        self.convolve = nn.Conv1d(4 * width, channels, 5, padding=2)
        self.deep = nn.Sequential(
            nn.LayerNorm(2 * channels),
            nn.Linear(2 * channels, 256),
            nn.GELU(),
            nn.Linear(256, outputs),
        )

    def forward(self, content: Tensor) -> Tensor:
        blocks = self.embed(content).flatten(1).unflatten(1, (-1, 4 * self.width))
        found = nn.functional.gelu(self.convolve(blocks.transpose(1, 2)))
        # Either half of a file by itself: its beginning says most.
        halves = found.unflatten(2, (2, -1)).amax(3).flatten(1)
        outputs: Tensor = self.deep(halves)
        return outputs


class SmallFeatures(nn.Module):
    """categories (n, kinds) and numbers (n, numbers) to outputs."""

    def __init__(
        self, sizes: Sequence[int], numbers: int, outputs: int, width: int = 16, hidden: int = 64
    ) -> None:
        super().__init__()
        begins = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("begins", begins)
        self.embed = nn.Embedding(sum(sizes), width)
        self.deep = nn.Sequential(
            nn.Linear(len(sizes) * width + numbers, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        vectors = self.embed(categories + self.begins).flatten(1)
        outputs: Tensor = self.deep(torch.cat([vectors, numbers], 1))
        return outputs

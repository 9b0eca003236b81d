"""Features of texts: words, pairs of words and character n-grams, hashed into a fixed number of
buckets by a hash of this module, which is the same on every machine and in every version of Python.

(Hashed features: Weinberger et al., ICML 2009; character n-grams of words: Bojanowski et al.,
TACL 2017.)
"""

import re
import unicodedata
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

HASHED_TEXT = "hashed-text"
"""The network's name, in manifests, of a model that takes these features."""

_Size = Annotated[int, msgspec.Meta(ge=1, le=16)]

_BASE = 0x9E3779B97F4A7C15
"""Odd, so it has an inverse modulo 2**64."""

_MIXER = 0xD6E8FEB86659FD93

_BETWEEN_WORDS = re.compile(r"[^\w]+")


class TextFeatures(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """How a stand-in reads the texts of the input called `name`, whose rows have this `shape`.

    There are 2**`bits` buckets. N-grams have one of the lengths `grams`, and runs of words have
    `words` words at most. Of a text, the first `limit` characters count.
    """

    name: str = "text"
    shape: Annotated[tuple[Literal[1], ...], msgspec.Meta(max_length=1)] = (1,)
    bits: Annotated[int, msgspec.Meta(ge=1, le=24)] = 16
    grams: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=8)] = (2, 3, 4)
    words: _Size = 2
    limit: Annotated[int, msgspec.Meta(ge=1, le=2**16)] = 4096
    version: Literal[1] = 1

    @property
    def buckets(self) -> int:
        return 1 << self.bits

    def normal(self, text: str) -> str:
        """Return the text as it is hashed: words in one case, with a space around each."""
        folded = unicodedata.normalize("NFKC", text[: self.limit]).casefold()
        return f" {_BETWEEN_WORDS.sub(' ', folded).strip()[: self.limit]} "

    def ids(self, text: str) -> NDArray[np.int64]:
        """Return the bucket of each feature of a text; at least one."""
        encoded = self.normal(text).encode("utf-32-le", "surrogatepass")
        characters = np.frombuffer(encoded, "<u4")
        size = len(characters)
        forward, backward = _powers(self.limit + 3)
        # Differences of these sums, times a power, are the polynomial hashes of all substrings.
        sums = np.zeros(size + 1, np.uint64)
        np.cumsum((characters + np.uint64(_MIXER)) * backward[:size], out=sums[1:])
        spaces = np.flatnonzero(characters == 32)
        hashes = [
            (sums[1 + spaces[run:]] - sums[first]) * forward[first]
            for run in range(1, self.words + 1)
            for first in [spaces[:-run]]
        ]
        hashes += [
            (sums[n:] - sums[: size + 1 - n]) * forward[: size + 1 - n] + np.uint64(n)
            for n in self.grams
            if n <= size
        ]
        mixed = np.concatenate(hashes)
        for _ in range(2):
            mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(_MIXER)
        return (mixed >> np.uint64(64 - self.bits)).astype(np.int64)


@cache
def _powers(count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the first powers of the hash's base, and of its inverse, modulo 2**64."""

    def powers(base: int) -> NDArray[Any]:
        found = [1]
        while len(found) < count:
            found.append(found[-1] * base % 2**64)
        return np.array(found, np.uint64)

    return powers(_BASE), powers(pow(_BASE, -1, 2**64))

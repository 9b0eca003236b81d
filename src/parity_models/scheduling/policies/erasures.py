"""The part of a code that scheduling uses."""

from dataclasses import dataclass
from typing import Protocol


class Erasures(Protocol):
    """A code's size, and what can be decoded, by masks alone; codes.Code fits."""

    @property
    def k(self) -> int:
        """Queries in a group."""

    @property
    def r(self) -> int:
        """Parity queries for each group."""

    def decodable(
        self, available: tuple[bool, ...], parities: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        """Return for each of k slots whether its missing prediction can be reconstructed now.

        `available` (k,) marks predictions that are here, `parities` (r,) parity outputs.
        """


class NoCode:
    """The code of a bundle without one: no slots, no rows."""

    k = r = 0

    def decodable(
        self, available: tuple[bool, ...], parities: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        """Return nothing, as there are no slots."""
        return ()


@dataclass(frozen=True)
class StandIns:
    """The stand-ins of a bundle: parity models for a `code`, and `backups`, by their roles."""

    code: Erasures | None = None
    backups: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.backups) or self.code is not None


def rows_needed(code: Erasures) -> list[int]:
    """Return how many parity queries reconstruct 1, 2, ... of k queries, the others available."""
    rows = []
    for missing in range(1, code.k + 1):
        available = (False,) * missing + (True,) * (code.k - missing)
        for count in range(1, code.r + 1):
            parities = (True,) * count + (False,) * (code.r - count)
            if all(code.decodable(available, parities)[:missing]):
                rows.append(count)
                break
        else:
            break
    return rows

"""What scheduling asks of a code."""

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
        """For each of k slots: is its prediction unavailable, and can be reconstructed now?

        `available` (k,) says whose prediction is here, `parities` (r,) which parity outputs are.
        """

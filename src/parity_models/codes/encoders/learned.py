"""What encoders with a network of their own share."""

from collections.abc import Sequence
from typing import Any

from parity_models.codes.coder import Array
from parity_models.codes.encoders.encoder import Encoder
from parity_models.codes.networks import Shape, untrained


class LearnedEncoder(Encoder):
    """A network makes the parity queries, which look to parity models like queries.

    It takes (n, k, *query_shape) and gives (n, r, *query_shape), and is trained together with the
    parity models.
    """

    @property
    def network_shapes(self) -> tuple[Shape, Shape]:
        return (self.k, *self.query_shape), (self.r, *self.parity_shape)

    def shape(self) -> Shape:
        return self.query_shape

    def fill(self, queries: Sequence[Array], out: Array, xp: Any) -> None:
        if self.network is None:
            raise untrained(f"{self.name} encoder")
        batch = queries[0].shape[: queries[0].ndim - len(self.query_shape)]
        stacked = xp.stack([xp.reshape(one, (-1, *self.query_shape)) for one in queries], axis=1)
        parities = self.network(stacked)
        for j in range(self.r):
            out[j, ...] = xp.reshape(parities[:, j, ...], (*batch, *self.parity_shape))

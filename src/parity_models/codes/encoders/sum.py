"""The sum encoder."""

from collections.abc import Sequence
from typing import Any

from parity_models.codes.coder import Array
from parity_models.codes.encoders.encoder import Encoder
from parity_models.codes.weights import parity_weights


class SumEncoder(Encoder):
    """P_j = Σ_i w_ji X_i, with all ones for r = 1 (Kosaian et al., SOSP 2019, section 3.2)."""

    name = "sum"
    floating = True
    symmetric = True

    def shape(self) -> tuple[int, ...]:
        return self.query_shape

    def fill(self, queries: Sequence[Array], out: Array, xp: Any) -> None:
        row = out[0, ...]
        xp.add(queries[0], queries[1], out=row)
        for query in queries[2:]:
            row += query
        for j in range(1, self.r):
            row = out[j, ...]
            weights = parity_weights(self.k, self.r)[j]
            xp.multiply(queries[0], float(weights[0]), out=row)
            for query, weight in zip(queries[1:], weights[1:], strict=True):
                row += query * float(weight)

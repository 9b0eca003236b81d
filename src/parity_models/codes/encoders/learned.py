"""Encoders that are learned: mlp and convolution."""

from collections.abc import Sequence
from typing import Any

from parity_models.codes.coder import Array, Shape, network_class, untrained
from parity_models.codes.encoders.encoder import Encoder
from parity_models.errors import CodeError


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


class MLPEncoder(LearnedEncoder):
    """A multi-layer perceptron over the k queries, flattened: for queries of any shape."""

    name = "mlp"

    def new_network(self) -> Any:
        return network_class("PerceptronEncoder")(self.k, self.r, self.query_shape)


class ConvolutionalEncoder(LearnedEncoder):
    """Dilated convolutions over the k images, stacked as channels: for images."""

    name = "convolution"

    def shape(self) -> Shape:
        if len(self.query_shape) != 3:
            raise CodeError(
                "the convolution encoder needs images of shape (channels, height, width), got "
                f"queries of shape {self.query_shape}; use the mlp, stack or sum encoder"
            )
        return self.query_shape

    def new_network(self) -> Any:
        return network_class("DilatedEncoder")(self.k, self.r, self.query_shape)

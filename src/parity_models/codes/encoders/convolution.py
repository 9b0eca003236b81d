"""The convolution encoder."""

from typing import Any

from parity_models.codes.encoders.learned import LearnedEncoder
from parity_models.codes.networks import Shape, network_class
from parity_models.errors import CodeError


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

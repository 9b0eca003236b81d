"""The mlp encoder."""

from typing import Any

from parity_models.codes.encoders.learned import LearnedEncoder
from parity_models.codes.networks import network_class


class MLPEncoder(LearnedEncoder):
    """A multi-layer perceptron over the k queries, flattened: for queries of any shape."""

    name = "mlp"

    def new_network(self) -> Any:
        return network_class("PerceptronEncoder")(self.k, self.r, self.query_shape)

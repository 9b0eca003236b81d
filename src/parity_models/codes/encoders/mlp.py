"""The mlp encoder."""

from parity_models.codes.encoders.learned import LearnedEncoder


class MLPEncoder(LearnedEncoder):
    """A multi-layer perceptron over the k queries, flattened: for queries of any shape."""

    name = "mlp"

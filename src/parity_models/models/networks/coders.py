"""The networks of learned encoders and decoders.

All of them start as what they replace, the sum and subtraction, and learn a correction to it.
(Architectures after Kosaian, Rashmi, Venkataraman, Learning-Based Coded Computation, IEEE JSAIT
2020, and Yu, Koltun, Multi-Scale Context Aggregation by Dilated Convolutions, ICLR 2016.)
"""

from math import prod

import torch
from torch import Tensor, nn

from parity_models.codes.coder import Shape
from parity_models.codes.weights import parity_weights
from parity_models.errors import TrainingError

HIDDEN = 256
"""Units of each hidden layer of a perceptron."""

CHANNELS = 16
"""Channels between the convolutions of an encoder."""

DILATIONS = (1, 1, 2, 4, 8)
"""Each doubles how far a pixel of the parity query sees, up to 17 pixels."""

MAX_WEIGHTS = 2**26


class CorrectedSum(nn.Module):
    """(n, k, *shape) to (n, r, *shape): the sum, and a `correction` learned from all k queries."""

    weights: Tensor

    def __init__(self, k: int, r: int, *correction: nn.Module) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(parity_weights(k, r), dtype=torch.float32))
        self.correction = nn.Sequential(*correction)

    def forward(self, queries: Tensor) -> Tensor:
        sums = torch.einsum("rk,nk...->nr...", self.weights, queries)
        parities: Tensor = sums + self.correction(queries)
        return parities


class PerceptronEncoder(CorrectedSum):
    """The correction is a perceptron's. Raises TrainingError for queries that are too large."""

    def __init__(self, k: int, r: int, shape: Shape) -> None:
        if (k + r) * prod(shape) * HIDDEN > MAX_WEIGHTS:
            raise TrainingError(
                f"the mlp encoder would need more than {MAX_WEIGHTS:,} weights for k={k} queries "
                f"of shape {shape}; use the convolution, stack or sum encoder"
            )
        super().__init__(
            k,
            r,
            nn.Flatten(),
            nn.Linear(k * prod(shape), HIDDEN),
            nn.ReLU(),
            _zeroed(nn.Linear(HIDDEN, r * prod(shape))),
            nn.Unflatten(1, (r, *shape)),
        )


class DilatedEncoder(CorrectedSum):
    """The correction is that of dilated convolutions over k images."""

    def __init__(self, k: int, r: int, shape: Shape) -> None:
        layers: list[nn.Module] = [nn.Flatten(1, 2)]
        before = k * shape[0]
        for dilation in DILATIONS:
            layers.append(nn.Conv2d(before, CHANNELS, 3, padding=dilation, dilation=dilation))
            layers.append(nn.ReLU())
            before = CHANNELS
        layers.append(_zeroed(nn.Conv2d(before, r * shape[0], 1)))
        super().__init__(k, r, *layers, nn.Unflatten(1, (r, shape[0])))


class PerceptronDecoder(nn.Module):
    """(n, *taken) to (n, *given): a perceptron's corrections of what subtraction gives."""

    def __init__(self, taken: Shape, given: Shape) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(prod(taken), HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            _zeroed(nn.Linear(HIDDEN, prod(given))),
            nn.Unflatten(1, given),
        )

    def forward(self, evidence: Tensor) -> Tensor:
        corrections: Tensor = self.layers(evidence)
        return corrections


def _zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """Return a last layer that gives zeros at first."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer

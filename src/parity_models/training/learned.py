"""The networks of learned encoders and decoders, trained together with the parity models.

All of them start as what they replace, the sum and subtraction, and learn a correction to it.
(Architectures after Kosaian, Rashmi, Venkataraman, Learning-Based Coded Computation, IEEE JSAIT
2020, and Yu, Koltun, Multi-Scale Context Aggregation by Dilated Convolutions, ICLR 2016.)
"""

from collections.abc import Iterator
from functools import singledispatch
from math import prod

import torch
from torch import Tensor, nn

from parity_models.codes import (
    Code,
    ConvolutionalEncoder,
    Decoder,
    Encoder,
    MLPDecoder,
    MLPEncoder,
    Networks,
)
from parity_models.codes.weights import parity_weights
from parity_models.errors import TrainingError

HIDDEN = 256
"""Units of each hidden layer of a perceptron."""

CHANNELS = 16
"""Channels between the convolutions of an encoder."""

DILATIONS = (1, 1, 2, 4, 8)
"""Each doubles how far a pixel of the parity query sees, up to 17 pixels."""

MAX_WEIGHTS = 2**26


class CodedNetworks(nn.Module):
    """The r parity models of a code, which it iterates over, and its learned coders."""

    def __init__(self, models: nn.ModuleList, code: Code) -> None:
        super().__init__()
        self.models = models
        self.coders = nn.ModuleDict()
        if "encoder" in code.network_shapes:
            self.coders["encoder"] = _new_network(code.encoder)
        if "decoder" in code.network_shapes:
            self.coders["decoder"] = _new_network(code.decoder)
        networks = Networks(**dict(self.coders.items()))
        self.code = Code(code.spec, code.query_shape, code.output_shape, networks)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.models)


@singledispatch
def _new_network(coder: Encoder | Decoder) -> nn.Module:
    """The network of a learned encoder or decoder, with its first weights."""
    network: nn.Module = coder.new_network()
    return network


@_new_network.register
def _(encoder: ConvolutionalEncoder) -> nn.Module:
    return _ConvolutionalEncoder(encoder.k, encoder.r, encoder.query_shape)


@_new_network.register
def _(encoder: MLPEncoder) -> nn.Module:
    values = prod(encoder.query_shape)
    if (encoder.k + encoder.r) * values * HIDDEN > MAX_WEIGHTS:
        raise TrainingError(
            f"the mlp encoder would need more than {MAX_WEIGHTS:,} weights for k={encoder.k} "
            f"queries of shape {encoder.query_shape}; use the convolution, stack or sum encoder"
        )
    return _MLPEncoder(encoder.k, encoder.r, encoder.query_shape)


@_new_network.register
def _(decoder: MLPDecoder) -> nn.Module:
    return _MLPDecoder(*decoder.network_shapes)


class _WeightedSum(nn.Module):
    """(n, k, *shape) to (n, r, *shape): what the sum encoder makes of queries."""

    weights: Tensor

    def __init__(self, k: int, r: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(parity_weights(k, r), dtype=torch.float32))

    def forward(self, queries: Tensor) -> Tensor:
        return torch.einsum("rk,nk...->nr...", self.weights, queries)


class _MLPEncoder(nn.Module):
    def __init__(self, k: int, r: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.sum = _WeightedSum(k, r)
        self.correction = nn.Sequential(
            nn.Flatten(),
            nn.Linear(k * prod(shape), HIDDEN),
            nn.ReLU(),
            _zeroed(nn.Linear(HIDDEN, r * prod(shape))),
            nn.Unflatten(1, (r, *shape)),
        )

    def forward(self, queries: Tensor) -> Tensor:
        parities: Tensor = self.sum(queries) + self.correction(queries)
        return parities


class _ConvolutionalEncoder(nn.Module):
    def __init__(self, k: int, r: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.sum = _WeightedSum(k, r)
        layers: list[nn.Module] = [nn.Flatten(1, 2)]
        before = k * shape[0]
        for dilation in DILATIONS:
            layers += [
                nn.Conv2d(before, CHANNELS, 3, padding=dilation, dilation=dilation),
                nn.ReLU(),
            ]
            before = CHANNELS
        layers += [
            _zeroed(nn.Conv2d(before, r * shape[0], 1)),
            nn.Unflatten(1, (r, shape[0])),
        ]
        self.correction = nn.Sequential(*layers)

    def forward(self, queries: Tensor) -> Tensor:
        parities: Tensor = self.sum(queries) + self.correction(queries)
        return parities


class _MLPDecoder(nn.Module):
    def __init__(self, taken: tuple[int, ...], given: tuple[int, ...]) -> None:
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
    """A last layer that at first gives nothing."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer

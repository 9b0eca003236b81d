"""Encoders: k queries in, r parity queries out. One encoder, one file."""

from parity_models.codes.encoders.concatenation import ConcatenationEncoder
from parity_models.codes.encoders.encoder import Encoder
from parity_models.codes.encoders.learned import (
    ConvolutionalEncoder,
    LearnedEncoder,
    MLPEncoder,
)
from parity_models.codes.encoders.stack import StackEncoder
from parity_models.codes.encoders.sum import SumEncoder
from parity_models.registry import Registry

ENCODERS = Registry[Encoder](
    "encoder",
    Encoder,
    SumEncoder,
    ConcatenationEncoder,
    StackEncoder,
    MLPEncoder,
    ConvolutionalEncoder,
)
"""The encoders."""

__all__ = [
    "ENCODERS",
    "ConcatenationEncoder",
    "ConvolutionalEncoder",
    "Encoder",
    "LearnedEncoder",
    "MLPEncoder",
    "StackEncoder",
    "SumEncoder",
]

"""Erasure codes over queries: k queries in, r parity queries out; reconstructions back.

Arrays in, arrays out, batched. The same code runs on NumPy arrays (serving) and on torch
tensors (training): it uses the namespace of the arrays it is given and imports no framework.
"""

from parity_models.codes.code import Code, CodeSpec, NamedShape
from parity_models.codes.coder import NO_NETWORKS, CoderKind, Networks
from parity_models.codes.decoders import (
    DECODERS,
    Decoder,
    MLPDecoder,
    SeparateDecoder,
    SubtractionDecoder,
)
from parity_models.codes.encoders import (
    ENCODERS,
    ConcatenationEncoder,
    ConvolutionalEncoder,
    Encoder,
    LearnedEncoder,
    MLPEncoder,
    StackEncoder,
    SumEncoder,
)

__all__ = [
    "DECODERS",
    "ENCODERS",
    "NO_NETWORKS",
    "Code",
    "CodeSpec",
    "CoderKind",
    "ConcatenationEncoder",
    "ConvolutionalEncoder",
    "Decoder",
    "Encoder",
    "LearnedEncoder",
    "MLPDecoder",
    "MLPEncoder",
    "NamedShape",
    "Networks",
    "SeparateDecoder",
    "StackEncoder",
    "SubtractionDecoder",
    "SumEncoder",
]

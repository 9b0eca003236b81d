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
from parity_models.codes.training_free import (
    BerrutCode,
    LagrangeCode,
    LinearCode,
    NestedRegressionCode,
    TrainingFreeCode,
)

__all__ = [
    "DECODERS",
    "ENCODERS",
    "NO_NETWORKS",
    "BerrutCode",
    "Code",
    "CodeSpec",
    "CoderKind",
    "ConcatenationEncoder",
    "ConvolutionalEncoder",
    "Decoder",
    "Encoder",
    "LagrangeCode",
    "LearnedEncoder",
    "LinearCode",
    "MLPDecoder",
    "MLPEncoder",
    "NamedShape",
    "NestedRegressionCode",
    "Networks",
    "SeparateDecoder",
    "StackEncoder",
    "SubtractionDecoder",
    "SumEncoder",
    "TrainingFreeCode",
]

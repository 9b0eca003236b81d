"""Erasure codes over queries: k queries in, r parity queries out; reconstructions back.

Arrays in, arrays out, batched. The same code runs on NumPy arrays (serving) and on torch
tensors (training): it uses the namespace of the arrays it is given and imports no framework.
"""

from parity_models.codes.code import Code, CodeSpec, NamedShape
from parity_models.codes.decoders import DECODERS, Decoder, SeparateDecoder, SubtractionDecoder
from parity_models.codes.encoders import (
    ENCODERS,
    ConcatenationEncoder,
    Encoder,
    StackEncoder,
    SumEncoder,
)

__all__ = [
    "DECODERS",
    "ENCODERS",
    "Code",
    "CodeSpec",
    "ConcatenationEncoder",
    "Decoder",
    "Encoder",
    "NamedShape",
    "SeparateDecoder",
    "StackEncoder",
    "SubtractionDecoder",
    "SumEncoder",
]

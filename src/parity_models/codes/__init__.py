"""Erasure codes over queries: k queries in, r parity queries out; reconstructions back.

Arrays in, arrays out, batched. The same code runs on NumPy arrays (serving) and on torch
tensors (training): it uses the namespace of the arrays it is given and imports no framework.
"""

from parity_models.codes.code import Code, CodeSpec
from parity_models.codes.decoders import DECODERS, Decoder
from parity_models.codes.encoders import ENCODERS, Encoder

__all__ = ["DECODERS", "ENCODERS", "Code", "CodeSpec", "Decoder", "Encoder"]

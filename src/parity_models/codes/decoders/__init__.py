"""Decoders: what is available of a group in, reconstructions of the rest out. One decoder, one
file."""

from parity_models.codes.decoders.decoder import Decoder
from parity_models.codes.decoders.mlp import MLPDecoder
from parity_models.codes.decoders.separate import SeparateDecoder
from parity_models.codes.decoders.subtraction import SubtractionDecoder
from parity_models.registry import Registry

DECODERS = Registry[Decoder]("decoder", Decoder, SubtractionDecoder, SeparateDecoder, MLPDecoder)
"""The decoders."""

__all__ = [
    "DECODERS",
    "Decoder",
    "MLPDecoder",
    "SeparateDecoder",
    "SubtractionDecoder",
]

"""From a torch network to an ONNX model that takes batches of any size."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn

INPUT, OUTPUT = "input", "output"
"""Names of the tensors in every exported model."""


def export_onnx(network: nn.Module, input_shape: tuple[int, ...]) -> bytes:
    """The content of an ONNX file that computes what `network` does in evaluation mode.

    It maps a float32 tensor "input" (n, *input_shape) to "output" (n, ...), for any n.
    """
    # A copy: the caller's network stays on its device and in its mode.
    frozen = deepcopy(network).cpu().eval()
    with _quiet():
        program = torch.onnx.export(
            frozen,
            # Two rows, because a batch of one would be taken for a constant.
            (torch.zeros(2, *input_shape),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter says about its own internals; errors still come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""From a torch network to an ONNX file that takes batches of any size."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

INPUT, OUTPUT = "input", "output"
"""Names of the tensors in every exported file."""


def export_onnx(network: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
    """Write `network`, in evaluation mode, to `path` as one ONNX file.

    The file maps a float32 tensor "input" (n, *input_shape) to "output" (n, ...) for any n.
    """
    # A copy: the caller's network stays on its device, in its mode and memory format.
    frozen = deepcopy(network).cpu().to(memory_format=torch.contiguous_format).eval()
    with _quiet():
        torch.onnx.export(
            frozen,
            # A batch of one would be taken for a constant.
            (torch.zeros(2, *input_shape),),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            dynamo=True,
            verbose=False,
        )


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

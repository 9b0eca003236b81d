"""From a torch network to an ONNX model that takes batches of any size."""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from parity_models.models.exporter_operators import operators_known
from parity_models.models.signature import Signature

INPUT, OUTPUT = "input", "output"
"""Names of the tensors in every exported model."""


def export_onnx(network: nn.Module, input_shape: tuple[int, ...]) -> bytes:
    """The content of an ONNX file that computes what `network` does in evaluation mode.

    It maps a float32 tensor "input" (n, *input_shape) to "output" (n, ...), for any n.
    """
    # A copy: the caller's network stays on its device and in its mode.
    frozen = deepcopy(network).cpu().eval()
    with _quiet(), operators_known(), torch.no_grad():
        program = torch.onnx.export(
            frozen,
            # Two rows, because a batch of one would be taken for a constant.
            (torch.zeros(2, *input_shape),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=_nested(frozen, ({0: torch.export.Dim("batch")},)),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def export_named(network: nn.Module, signature: Signature) -> bytes:
    """The content of an ONNX file that computes what `network` does in evaluation mode.

    It maps the inputs of `signature`, by their names and data types, to its one output.
    """
    frozen = deepcopy(network).cpu().eval()
    batch = torch.export.Dim("batch")
    # Sizes of 0 and 1 would be taken for constants.
    axes = {name: torch.export.Dim(f"axis{i}", min=2) for i, name in enumerate(signature.axes)}
    sizes = {name: 3 + 2 * i for i, name in enumerate(signature.axes)}
    specs = [each.at(sizes) for each in signature.inputs]
    examples = tuple(torch.from_numpy(each.zeros(2)) for each in specs)
    dynamic = tuple(
        {0: batch, **{1 + at: axes[name] for name, at in each.axes.items()}}
        for each in signature.inputs
    )
    with _quiet(), operators_known(), torch.no_grad():
        program = torch.onnx.export(
            frozen,
            examples,
            input_names=[each.name for each in signature.inputs],
            output_names=[signature.outputs[0].name],
            dynamic_shapes=_nested(frozen, dynamic),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def _nested(network: nn.Module, dynamic: tuple[Any, ...]) -> tuple[Any, ...]:
    """The dynamic axes of each input, as the arguments of `network` are: one for each, or all in
    one *inputs."""
    first = next(iter(inspect.signature(network.forward).parameters.values()))
    return (dynamic,) if first.kind is inspect.Parameter.VAR_POSITIONAL else dynamic


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

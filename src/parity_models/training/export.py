"""A torch network as an ONNX model that takes batches of any size, and as weights in a bundle."""

import inspect
import warnings
from collections.abc import Sequence
from copy import deepcopy

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from parity_models.bundle.bundle import Bundle
from parity_models.errors import BundleError
from parity_models.tensors.signature import Tensor
from parity_models.training.networks import build_network
from parity_models.training.networks.text import BagOfWords

INPUT, OUTPUT = "input", "output"
"""Default names of the tensors of a model with one input."""

WEIGHTS = "deployed.safetensors"
"""The file of the deployed model's weights in a bundle, which parity models start from."""


def floats(shape: tuple[int, ...]) -> Tensor:
    """Return an input of float32 rows of a shape, called "input"."""
    return Tensor(INPUT, "FP32", shape)


def export(network: nn.Module, inputs: Sequence[Tensor], *outputs: str) -> bytes:
    """Return the content of an ONNX file that computes what `network` does in evaluation mode.

    It maps the `inputs` (n, *shape), by their names and data types and for any n and sizes of
    dynamic axes, to `outputs`, by default one called "output".
    """
    # A copy: the caller's network stays on its device and in its mode.
    frozen = deepcopy(network).cpu().eval()
    for module in list(frozen.modules()):
        if isinstance(module, BagOfWords):
            module.fold()
    names = dict.fromkeys(axis for each in inputs for axis in each.axes)
    # Sizes of 0 and 1 would be taken for constants.
    axes = {name: torch.export.Dim(f"axis{i}", min=2) for i, name in enumerate(names)}
    specs = [each.at({name: 3 + 2 * i for i, name in enumerate(names)}) for each in inputs]
    batch = torch.export.Dim("batch")
    dynamic = tuple(
        {0: batch, **{1 + at: axes[name] for name, at in each.axes.items()}} for each in inputs
    )
    first = next(iter(inspect.signature(frozen.forward).parameters.values()))
    takes_any = first.kind is inspect.Parameter.VAR_POSITIONAL
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about its own internals
        program = torch.onnx.export(
            frozen,
            tuple(torch.from_numpy(each.zeros(2)) for each in specs),
            input_names=[each.name for each in inputs],
            output_names=outputs or [OUTPUT],
            dynamic_shapes=(dynamic,) if takes_any else dynamic,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def load_deployed(bundle: Bundle) -> nn.Module:
    """Return the deployed model of `bundle` as a network, in evaluation mode.

    The bundle has weights. Raises BundleError if they do not fit its network, or have changed.
    """
    deployed, content = bundle.manifest.deployed, bundle.content(bundle.manifest.stored[WEIGHTS])
    rows = deployed.signature.smallest
    with torch.device("meta"):  # without initial weights, which would be thrown away
        network = build_network(deployed.network, rows.input.shape, rows.output.shape)
    try:
        network.load_state_dict(load(content), assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(
            f"{bundle.path / WEIGHTS} does not fit the network {deployed.network} that the bundle "
            f"names: {error}"
        ) from error
    return network.eval()

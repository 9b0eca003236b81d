"""The deployed model's weights, kept in a bundle so that it can be trained against."""

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from parity_models.errors import BundleError
from parity_models.models.bundle import Bundle
from parity_models.models.networks import build_network

WEIGHTS = "deployed.safetensors"


def save_weights(network: nn.Module) -> bytes:
    """The content of a safetensors file with the network's weights."""
    return save({name: value.cpu().contiguous() for name, value in network.state_dict().items()})


def load_deployed(bundle: Bundle) -> nn.Module:
    """The deployed model of `bundle` as a network, in evaluation mode.

    Raises BundleError if the bundle does not hold its weights or they do not fit its network.
    """
    deployed = bundle.manifest.deployed
    path = bundle.path / WEIGHTS
    if WEIGHTS not in (stored.file for stored in bundle.manifest.files):
        raise BundleError(
            f"{bundle.path} holds no {WEIGHTS}, which a parity model is trained against; "
            "name a folder that parm train wrote"
        )
    with torch.device("meta"):  # without initial weights, which would be thrown away
        network = build_network(deployed.network, deployed.input.shape, deployed.output.shape)
    try:
        network.load_state_dict(load(path.read_bytes()), assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BundleError(
            f"{path} does not fit the network {deployed.network} that the bundle names: {error}"
        ) from error
    return network.eval()

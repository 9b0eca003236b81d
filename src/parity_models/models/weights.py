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
    """Return the content of a safetensors file with the network's weights."""
    return save({name: value.cpu().contiguous() for name, value in network.state_dict().items()})


def has_weights(bundle: Bundle) -> bool:
    """Whether `bundle` holds the deployed model's weights, as those of parm-lab train do."""
    return WEIGHTS in (stored.file for stored in bundle.manifest.files)


def load_deployed(bundle: Bundle) -> nn.Module:
    """Return the deployed model of `bundle` as a network, in evaluation mode.

    Raises BundleError if its weights are not there or do not fit its network.
    """
    deployed = bundle.manifest.deployed
    path, signature = bundle.path / WEIGHTS, deployed.signature
    with torch.device("meta"):  # without initial weights, which would be thrown away
        network = build_network(deployed.network, signature.input.shape, signature.output.shape)
    try:
        network.load_state_dict(load(path.read_bytes()), assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BundleError(
            f"{path} does not fit the network {deployed.network} that the bundle names: {error}"
        ) from error
    return network.eval()

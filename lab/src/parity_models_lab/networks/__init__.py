"""Networks of the paper, and of measured examples, which the wheel does without."""

from parity_models.models.networks import NETWORKS
from parity_models_lab.networks.lenet import LeNet5
from parity_models_lab.networks.mimo_conv import MIMOConv
from parity_models_lab.networks.own_layers import OwnLayersNetwork
from parity_models_lab.networks.own_transformer import OwnTransformer
from parity_models_lab.networks.published import VGG11, ResNet152
from parity_models_lab.networks.quadratic import Quadratic

__all__ = [
    "VGG11",
    "LeNet5",
    "MIMOConv",
    "OwnLayersNetwork",
    "OwnTransformer",
    "Quadratic",
    "ResNet152",
]

NETWORKS.register(LeNet5, VGG11, ResNet152, Quadratic, MIMOConv, OwnLayersNetwork, OwnTransformer)

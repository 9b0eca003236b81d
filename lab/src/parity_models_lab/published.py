"""Training as published, to compare with (Kosaian et al., SOSP 2019, section 4.1)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from parity_models.codes import Code, CodeSpec
from parity_models.errors import TrainingError
from parity_models.models.networks import Effort, family
from parity_models.models.networks.network import tiles
from parity_models.training.networks import Factory, NetworkPlan, find_network, parity_network
from parity_models_lab.networks import NETWORKS

ENCODERS = ("sum", "concatenation")


@dataclass(frozen=True)
class Published(Effort):
    """Adam with a constant learning rate, and the squared error of parity outputs."""

    style: ClassVar[str] = "published"
    from_deployed: ClassVar[bool] = False
    decoded: ClassVar[bool] = False

    def optimizer(self, weights: "torch.optim.optimizer.ParamsT") -> Optimizer:
        return torch.optim.Adam(weights, weight_decay=self.weight_decay, fused=True)

    def rate_at(self, spent: float) -> float:
        return self.learning_rate


def as_published(recipe: Effort) -> Published:
    """Return `recipe` with the paper's optimiser and batches, nothing mirrored."""
    fields = vars(recipe) | {"batch": 64, "learning_rate": 1e-3, "weight_decay": 1e-5}
    return Published(**fields | {"mirror": False})


def published_network(network: str | Factory, code: Code) -> NetworkPlan:
    """Return the network called `network` for parity queries, as `parity_network` does.

    It sees no more places apart than the images are tiled to. Networks of this package start from
    random weights drawn as the paper's code draws them. Raises TrainingError as `check_published`
    does.
    """
    check_published(code.spec)
    usual, places = parity_network(network, code), tiles(code)
    recipe = replace(as_published(usual.recipe), epochs=150, batch=64 if code.k == 2 else 32)
    name, kind, options = find_network(network)
    if family(name) not in NETWORKS.names:  # a user's own is drawn as they like
        return replace(usual, recipe=recipe)

    def make() -> nn.Module:
        return kind.build_parity(options, code, places).apply(draw_weights)

    return NetworkPlan(name, make, recipe, places)


def check_published(spec: CodeSpec) -> None:
    """Raise TrainingError for a code that the paper does not have."""
    if spec.encoder not in ENCODERS or spec.decoder != "subtraction":
        raise TrainingError(
            f"the published recipe is for {' and '.join(ENCODERS)} with subtraction, not "
            f"{spec.encoder} with {spec.decoder}; leave the recipe out for the best known here"
        )


def draw_weights(layer: nn.Module) -> None:
    """Draw a layer's weights as the paper's training code does."""
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
    elif isinstance(layer, nn.Conv1d | nn.Conv2d):
        nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("relu"))
    else:
        return
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)

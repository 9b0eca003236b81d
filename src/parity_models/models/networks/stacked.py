"""The base of modules for k stacked queries, and copying weights from another module."""

from abc import ABC, abstractmethod

import torch
from torch import nn


class Stacked(nn.Module, ABC):
    """Takes parity queries of k stacked queries and gives (n, k, *outputs), all slots by one last
    layer."""

    k: int

    @abstractmethod
    def start_from(self, deployed: nn.Module, *, first: bool) -> bool:
        """Begin with the weights of the deployed model; return whether any layers are alike.

        Parity models that start alike stay alike, and their mean is no better than each: one that
        is not the `first` of its code may begin with other weights here and there.
        """


@torch.no_grad()
def copy_weights(to: nn.Module, of: nn.Module, share: int = 1, *, shared: bool = True) -> bool:
    """Copy the weights of one module to another of its class; return whether there were any.

    A layer that has `share` inputs for each one of the original's gives each its share of the
    weight, so that it begins as the original does with their mean; unless such layers are not to
    be `shared`. Layers of other shapes stay as they are.
    """
    copied = False
    if type(to) is not type(of):
        return copied
    own = to.state_dict()
    for name, weights in of.state_dict().items():
        mine = own.get(name)
        if mine is None:  # of the same class, but with fewer layers
            continue
        larger = mine.ndim == weights.ndim > 1 and mine.shape[1] == share * weights.shape[1]
        if larger and shared:
            weights = weights.repeat_interleave(share, 1) / share
        if mine.shape == weights.shape:
            mine.copy_(weights)
            copied = True
    return copied

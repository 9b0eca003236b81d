"""Queries as tensors on the device: turned left to right, and run through a model."""

import torch
from torch import Tensor, nn

from parity_models.training.rows import DeviceQueries, run, tensor

BATCH = 128
"""Rows per call when a model only predicts: more of them would not fit a CPU's caches."""


def mirror(queries: Tensor, which: Tensor) -> Tensor:
    """`queries` (n, ..., width), those where `which` (n,) holds turned left to right."""
    which = which.view(-1, *[1] * (queries.ndim - 1))
    return torch.where(which, queries.flip(-1), queries)


def mirror_boxes(boxes: Tensor) -> Tensor:
    """Where `boxes` (n, 4), left, top, right, bottom, are in the images turned left to right."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack([1 - right, top, 1 - left, bottom], dim=-1)


@torch.no_grad()
def predict(module: nn.Module, queries: DeviceQueries, mirrored: bool = False) -> Tensor:
    """Outputs (n, *output_shape) of `module`, in evaluation mode, for `queries` (n, ...)."""
    module.eval()
    parts = (queries[start : start + BATCH] for start in range(0, len(queries), BATCH))
    return torch.cat([run(module, tensor(part).flip(-1) if mirrored else part) for part in parts])


def predict_both_ways(module: nn.Module, queries: DeviceQueries, mirrored: bool) -> Tensor:
    """Outputs (ways, n, *output_shape): for `queries` as they are and, if `mirrored`, turned."""
    ways = (False, True) if mirrored else (False,)
    return torch.stack([predict(module, queries, mirrored=turned) for turned in ways])

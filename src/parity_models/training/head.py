"""The agreement head of a backup: from an output, the log-odds that the deployed model agrees.

For scores of classes, confidence tells as much. Vectors, maps and numbers have no confidence, so
without a head a gate lets all of them answer or none. The labels are F's own predictions for
queries that the backup did not learn from. (Calibrate-Then-Delegate, arXiv 2604.14251, learns the
value of asking the larger model likewise.)
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from parity_models.trust.calibration import surest_share

UNITS, DROPOUT = 64, 0.2
"""The hidden layer, and the share of features and units that are left out while it learns."""

PASSES, BATCH, RATE, DECAY = 20, 64, 3e-3, 0.3
"""Passes over the queries, queries of a step, the highest learning rate, and the weight decay."""

FOLDS = 4
"""Folds of the cross-validation that judges a head."""

FEWEST = 200
"""The fewest queries that a head learns from; FEWEST // 10 must agree, and as many disagree."""

LEADING = 8
"""The largest scores of classes that a head looks at."""

PLACES = 8
"""A map is reduced to this many rows and columns."""

BETTER = 0.02
"""The least further coverage that makes a head worth having."""

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


class Head(nn.Module):
    """A perceptron on features of outputs (n, *output_shape), like `examples`: gives (n, 1)."""

    shift: Tensor
    inverse: Tensor

    def __init__(self, examples: Tensor, *, of_classes: bool) -> None:
        super().__init__()
        self._of_classes = of_classes
        features = self.features(examples)
        self.register_buffer("shift", features.mean(dim=0))
        self.register_buffer("inverse", 1 / features.std(dim=0).clamp_min(1e-6))
        self.layers = nn.Sequential(
            nn.Dropout(DROPOUT),
            nn.Linear(features.shape[1], UNITS),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(UNITS, 1),
        )

    def features(self, outputs: Tensor) -> Tensor:
        """Return the features (n, features) of outputs (n, *output_shape), as they are before a
        softmax or scaling to length 1."""
        flat = outputs.flatten(1).float()
        if self._of_classes:
            largest = flat.topk(min(LEADING, flat.shape[1])).values
            return torch.cat([flat, flat.logsumexp(1, keepdim=True) - largest], dim=1)
        if outputs.ndim == 4:
            maps = outputs.float()
            pooled = [functional.adaptive_avg_pool2d(each, PLACES) for each in (maps, maps**2)]
            flat = torch.cat([each.flatten(1) for each in pooled], dim=1)
        return torch.cat([flat, flat.norm(dim=1, keepdim=True)], dim=1)

    def forward(self, outputs: Tensor) -> Tensor:
        """Return the log-odds that F agrees with each of the outputs (n, *output_shape): (n, 1)."""
        said: Tensor = self.layers((self.features(outputs) - self.shift) * self.inverse)
        return said


def fit_head(outputs: Tensor, agreed: Mask, *, of_classes: bool, seed: int = 0) -> Head:
    """Train a head on outputs (n, *output_shape), and whether F agreed with each (n,)."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        head = Head(outputs, of_classes=of_classes).to(outputs.device)
        right = torch.from_numpy(agreed).to(outputs).unsqueeze(1)
        optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY)
        steps = PASSES * -(-len(outputs) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        for _ in range(PASSES):
            for rows in torch.randperm(len(outputs)).to(outputs.device).split(BATCH):
                loss = functional.binary_cross_entropy_with_logits(head(outputs[rows]), right[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return head.eval()


def choose_head(
    outputs: Tensor,
    agreed: Mask,
    confidence: Floats | None,
    levels: Sequence[float],
    *,
    of_classes: bool,
    seed: int = 0,
) -> Head | None:
    """Return a head if it lets more of a backup's outputs answer than the confidence does.

    The share is the mean at the `levels`, estimated by cross-validation: each output is judged by a
    head that did not learn from it. `outputs` (n, *output_shape) are for queries that the backup
    did not learn from; F `agreed` with some (n,). Without a `confidence` (n,), all or none answer.
    """
    if len(agreed) < FEWEST or min(agreed.sum(), (~agreed).sum()) < FEWEST // 10:
        return None

    def covered(share: Callable[[float], float]) -> float:
        return float(np.mean([share(level) for level in levels]))

    said = np.empty(len(agreed))
    for fold in np.array_split(np.random.default_rng(seed).permutation(len(agreed)), FOLDS):
        rest = np.setdiff1d(np.arange(len(agreed)), fold)
        head = fit_head(outputs[rest], agreed[rest], of_classes=of_classes, seed=seed)
        with torch.no_grad():
            said[fold] = head(outputs[fold])[:, 0].double().cpu().numpy()
    if confidence is None:
        without = covered(lambda level: float(agreed.mean() >= level))
    else:
        without = covered(lambda level: surest_share(confidence, agreed, level))
    if covered(lambda level: surest_share(said, agreed, level)) < without + BETTER:
        return None
    return fit_head(outputs, agreed, of_classes=of_classes, seed=seed)

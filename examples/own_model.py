"""Any model of your own, here a small network on handwritten digits, ready for `parm parity`.

python examples/own_model.py own
parm parity --model own/model.onnx --inputs own/inputs.npy --out own/bundle --k 2 --seconds 30
parm evaluate own/bundle --inputs own/test.npy --labels own/test-labels.npy
parm serve own/bundle --instances 4
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional


def train(inputs: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """A convolutional network for images (n, 1, 8, 8), trained for some seconds."""
    model = nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128 * 16, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(8):
        for rows in torch.randperm(len(inputs)).split(32):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    inputs = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    order = np.random.default_rng(0).permutation(len(inputs))
    rest, test = order[400:], order[:400]

    torch.manual_seed(0)
    model = train(torch.from_numpy(inputs[rest]), torch.from_numpy(labels[rest]))

    # What parm needs: the model as ONNX with a free batch axis, and queries without labels.
    torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        folder / "model.onnx",
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    np.save(folder / "inputs.npy", inputs[rest])

    # Only to measure the accuracy of reconstructions.
    np.save(folder / "test.npy", inputs[test])
    np.save(folder / "test-labels.npy", labels[test])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "own"))

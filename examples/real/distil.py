"""A backup of one's own for any of these models: a small network that learns what the model says.

python examples/real/distil.py real/banking77 --passes 40
parm bundle real/banking77/model.onnx --inputs real/banking77/inputs.npz \
    --backup real/banking77/backup.onnx --out real/banking77/bundle
parm calibrate real/banking77/bundle --inputs real/banking77/held-out.npz
parm evaluate real/banking77/bundle --inputs real/banking77/test.npz \
    --labels real/banking77/labels.npy

The folder is one that another example has written. Which network it is follows from the inputs: ids
and a mask, bytes, or categories and numbers. Labels are not needed. One query in ten is held out,
to be calibrated with.
"""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from networks import ByteConvolutions, SmallFeatures, WordBag
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

TEMPERATURE = 2.0
BATCH = 128
RATE = 3e-3
KEPT = "predictions.npy"
"""What the model says of inputs.npz, kept for the next time."""

Named = dict[str, NDArray[np.generic]]


def predictions(folder: Path, queries: Named) -> NDArray[np.float32]:
    """The model's predictions for `queries`, from a file if they are there already."""
    kept = folder / KEPT
    if kept.exists():
        return np.load(kept)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    output = session.get_outputs()[0]
    lengths = used(queries)
    order = np.argsort(lengths, kind="stable")
    parts = []
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        feeds = cut({name: each[rows] for name, each in queries.items()}, int(lengths[rows].max()))
        parts.append(session.run([output.name], feeds)[0])
    found: NDArray[np.float32] = np.concatenate(parts)[np.argsort(order, kind="stable")]
    np.save(kept, found)
    return found


def used(queries: Named) -> NDArray[np.int64]:
    """How long each query of texts is; of others, all are of one length."""
    mask = queries.get("attention_mask")
    rows = len(next(iter(queries.values())))
    lengths: NDArray[np.int64] = np.ones(rows, np.int64) if mask is None else mask.sum(axis=1)
    return lengths


def cut(queries: Named, length: int) -> Named:
    """Texts without the padding that all of them have."""
    texts = "attention_mask" in queries
    return {name: each[:, :length] if texts else each for name, each in queries.items()}


def network_for(folder: Path, queries: Named, answers: NDArray[np.float32]) -> nn.Module:
    outputs = answers.shape[1]
    if "attention_mask" in queries:
        tables = [
            onnx.numpy_helper.to_array(each)
            for each in onnx.load(folder / "model.onnx").graph.initializer
            if len(each.dims) == 2 and "word_embeddings" in each.name
        ]
        return WordBag(torch.from_numpy(tables[0].copy()), outputs)
    if "categories" in queries:
        sizes = (queries["categories"].max(axis=0) + 1).tolist()
        return SmallFeatures(sizes, queries["numbers"].shape[1], outputs)
    return ByteConvolutions(outputs)


def loss_for(answers: NDArray[np.float32]) -> tuple[str, float]:
    """What predictions are: probabilities, embeddings of length 1, or logits, and their spread."""
    if (answers >= 0).all() and np.allclose(answers.sum(1), 1, atol=1e-3):
        return "probabilities", 1.0
    if np.allclose(np.square(answers).sum(1), 1, atol=1e-3):
        return "embeddings", 1.0
    return "logits", float(answers.std())


def loss(kind: str, spread: float, said: Tensor, right: Tensor) -> Tensor:
    """How far the network's scores (n, classes) or vectors are from the model's predictions."""
    if kind == "embeddings":
        return (1 - functional.cosine_similarity(said, right)).mean()
    if kind == "probabilities":
        return functional.kl_div(said.log_softmax(1), right, reduction="batchmean")
    soft = (right / TEMPERATURE).softmax(1)
    apart = functional.kl_div((said / TEMPERATURE).log_softmax(1), soft, reduction="batchmean")
    return TEMPERATURE**2 * apart + 0.1 * functional.mse_loss(said / spread, right / spread)


class Answering(nn.Module):
    """The network with its answers made what the model's are."""

    def __init__(self, network: nn.Module, kind: str) -> None:
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, *queries: Tensor) -> Tensor:
        said = self.network(*queries)
        if self.kind == "probabilities":
            return said.softmax(1)
        return functional.normalize(said) if self.kind == "embeddings" else said


def optimizers_of(network: nn.Module) -> list[torch.optim.Optimizer]:
    """Large tables of embeddings have one of their own, which touches only the rows in a batch."""
    tables = [
        each.weight for each in network.modules() if isinstance(each, nn.Embedding) and each.sparse
    ]
    known = {id(each) for each in tables}
    others = [each for each in network.parameters() if id(each) not in known]
    adam = torch.optim.AdamW(others, lr=RATE, weight_decay=0.01)
    return [adam, torch.optim.SparseAdam(tables, lr=RATE)] if tables else [adam]


def fit(
    network: nn.Module, queries: Named, answers: NDArray[np.float32], kind: str, passes: int
) -> None:
    """Train for so many passes over the queries, with a rate that rises and falls within them."""
    spread = float(answers.std())
    lengths = used(queries)
    optimizers = optimizers_of(network)
    steps = passes * -(-len(answers) // BATCH)
    done = 0
    for number in range(passes):
        for rows in batches(lengths):
            rate = RATE * min(10 * done / steps, 1.0) * 0.5 * (1 + np.cos(np.pi * done / steps))
            feeds = cut({name: each[rows] for name, each in queries.items()}, lengths[rows].max())
            said = network(*(torch.from_numpy(each) for each in feeds.values()))
            network.zero_grad()
            loss(kind, spread, said, torch.from_numpy(answers[rows])).backward()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate + 1e-7
                optimizer.step()
            done += 1
        print(f"pass {number + 1} of {passes}", flush=True)


def batches(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """All rows, in batches drawn at random; texts of about one length together, as they need little
    padding then."""
    order = torch.randperm(len(lengths)).numpy()
    found: list[NDArray[np.int64]] = []
    for start in range(0, len(order), 32 * BATCH):
        pool = order[start : start + 32 * BATCH]
        near = pool[np.argsort(lengths[pool], kind="stable")]
        found += [near[i : i + BATCH] for i in range(0, len(near), BATCH)]
    return [found[i] for i in torch.randperm(len(found)).tolist()]


def export(network: nn.Module, queries: Named, path: Path) -> None:
    axes = {0: torch.export.Dim("batch")}
    if "attention_mask" in queries:
        # As MiniLM calls it: the axes of a stand-in have the names that the model's have.
        axes[1] = torch.export.Dim("sequence_length", min=2)
    torch.onnx.export(
        network.eval(),
        tuple(torch.from_numpy(each[:2]) for each in queries.values()),
        path,
        input_names=list(queries),
        output_names=["answers"],
        dynamic_shapes=((axes,) * len(queries),),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def main(folder: Path, passes: int) -> None:
    with np.load(folder / "inputs.npz") as file:
        queries: Named = dict(file)
    answers = predictions(folder, queries)
    kept = len(answers) * 9 // 10
    np.savez_compressed(
        folder / "held-out.npz", **{name: each[kept:] for name, each in queries.items()}
    )
    learned = {name: each[:kept] for name, each in queries.items()}
    kind, _ = loss_for(answers)
    torch.manual_seed(0)
    network = network_for(folder, queries, answers)
    fit(network, learned, answers[:kept], kind, passes)
    export(Answering(network, kind), learned, folder / "backup.onnx")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what another example has written")
    parser.add_argument("--passes", type=int, default=20, help="over the queries")
    told = parser.parse_args()
    main(told.folder, told.passes)

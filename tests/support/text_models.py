"""A small transformer over ids and a mask, and a bundle of it: several inputs and outputs, and a
dynamic axis."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parity_models import CodeSpec, ServeOptions, Server, export_repository
from parity_models.bundle.bundle import NewModel, open_bundle, write_bundle
from parity_models.bundle.servable import read_servable
from parity_models.serving.options import EngineChoice
from parity_models.tensors.signature import Axis, cut, padded
from parity_models.trust.envelope import Envelope

WORDS, WIDTH, CLASSES = 50, 8, 3
BUCKETS = Axis((4, 8, 16))
STACK = CodeSpec("stack", "separate", 2, encoder_options={"new_axis": True})


class TextModel(nn.Module):
    """ids and mask (n, length) to logits (n, 3) and hidden (n, length, 8), padding ignored."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(ids)
        away = (1 - mask.float()).unsqueeze(1) * -1e4
        scores = self.query(x) @ self.key(x).transpose(1, 2) / WIDTH**0.5 + away
        hidden = x + torch.softmax(scores, -1) @ self.value(x)
        here = mask.float().unsqueeze(-1)
        pooled = (hidden * here).sum(1) / here.sum(1).clamp(min=1)
        return self.head(pooled), hidden


def write_text_folder(folder: Path, model: TextModel) -> None:
    """Write the model with both of its outputs, a bundle of it in `deployed`, and queries of any
    length in inputs.npz."""
    file = export_text(model, folder / "text.onnx", ("logits", "hidden"))
    content, signature = read_servable(file, {"length": BUCKETS})
    write_bundle(folder / "deployed", deployed=NewModel(content, "own", signature=signature))
    queries = texts(2000, 16)
    np.savez(folder / "inputs.npz", ids=queries["ids"], mask=queries["mask"])


class WordBag(nn.Module):
    """A backup of it: the same inputs to logits, from the mean of embeddings alone."""

    def __init__(self, model: TextModel) -> None:
        super().__init__()
        self.words, self.head = model.words, model.head

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        here = mask.float().unsqueeze(-1)
        pooled = (self.words(ids) * here).sum(1) / here.sum(1).clamp(min=1)
        logits: Tensor = self.head(pooled)
        return logits


class SlotBags(nn.Module):
    """A parity model of it, under stack (along a new axis) and separate: the bag, in each slot."""

    def __init__(self, bag: WordBag) -> None:
        super().__init__()
        self.bag = bag

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        slots: Tensor = self.bag(ids.flatten(0, 1), mask.flatten(0, 1))
        return slots.reshape(-1, ids.shape[1], CLASSES)


def export_text(network: nn.Module, path: Path, outputs: Sequence[str], *slots: int) -> Path:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2)
    examples = tuple(torch.ones(2, *slots, 5, dtype=torch.int64) for _ in range(2))
    dynamic = {0: batch, 1 + len(slots): length}
    torch.onnx.export(
        network.eval(),
        examples,
        path,
        input_names=["ids", "mask"],
        output_names=list(outputs),
        dynamic_shapes=(dynamic, dynamic),
        dynamo=True,
        verbose=False,
        external_data=False,
    )
    return path


@cache
def _exported(name: str) -> bytes:
    """The file of the model, its backup or its parity model: an export takes seconds."""
    network = TextModel()
    bag = WordBag(network)
    part: nn.Module = {"text": network, "bag": bag, "slots": SlotBags(bag)}[name]
    outputs = {"text": ("logits", "hidden"), "bag": ("logits",), "slots": ("slots",)}[name]
    slots = (2,) if name == "slots" else ()
    with TemporaryDirectory() as folder:
        return export_text(part, Path(folder, "model.onnx"), outputs, *slots).read_bytes()


def write_text_bundle(
    folder: Path, *, backed: bool = False, coded: bool = False, envelope: Envelope | None = None
) -> Path:
    """A bundle of it, and the files; the bag is its backup, and in each slot of a parity model for
    two queries."""

    def made(name: str) -> NewModel:
        file = folder / f"{name}.onnx"
        file.write_bytes(_exported(name))
        content, signature = read_servable(file, {"length": BUCKETS})
        return NewModel(content, name, slotwise=name == "slots", signature=signature)

    return write_bundle(
        folder / "bundle",
        deployed=made("text"),
        backup=made("bag") if backed else None,
        parity=[made("slots")] if coded else [],
        code=STACK if coded else None,
        imitated="logits" if backed or coded else None,
        envelope=envelope,
    ).path


def add_to_repository(bundle: Path, repository: Path) -> None:
    """Export the bundle's model into a repository that is there already, as "text"."""
    own = repository.with_name("text-repository")
    export_repository(open_bundle(bundle), own, "text")
    (own / "text").rename(repository / "text")


async def assert_served_upstream(bundle: Path, *urls: str) -> None:
    """A server in front of these upstreams gives what the model says, at each length."""
    engine = EngineChoice("remote", {"deployed": ",".join(f"{url}/text" for url in urls)})
    opened = open_bundle(bundle)
    signature = opened.manifest.deployed.signature
    async with Server(opened, ServeOptions(port=0, engine=engine)) as server:
        for length in (2, 7, 16) * len(urls):
            queries = texts(3, length)
            answers = await server.deployment.frontend.infer(padded(queries, signature, [length]))
            found = cut(answers.outputs, signature, [length])
            for name, values in expected(queries).items():
                np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4)


def texts(rows: int, length: int, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, rows)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    return {"ids": rng.integers(1, WORDS, (rows, length)) * mask, "mask": mask}


def imitated(queries: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Return the output of its stand-ins in place of the logits."""
    with torch.no_grad():
        bag = WordBag(TextModel()).eval()
        logits: NDArray[Any] = bag(*(torch.from_numpy(each) for each in queries.values())).numpy()
    return logits


def expected(queries: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the model's outputs at the queries' own length."""
    with torch.no_grad():
        outputs = TextModel().eval()(*(torch.from_numpy(each) for each in queries.values()))
    return dict(zip(("logits", "hidden"), (each.numpy() for each in outputs), strict=True))

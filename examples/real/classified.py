"""Shared by the examples that classify texts: MiniLM-L3 and a classifier as one graph.

The classifier is trained on the embeddings of the training texts. The model maps ids and a mask to
a score for each class.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from minilm import EMBEDDING, find_encoder, find_tokenizer, predict, tokenize
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression

LOGITS = "logits"

Texts = tuple[Sequence[str], Sequence[str]]
"""Texts, and the class of each."""


def with_classifier(
    encoder: onnx.ModelProto, weights: NDArray[np.float32], bias: NDArray[np.float32]
) -> onnx.ModelProto:
    """Return encoder and classifier, weights (384, classes) and bias (classes,), as one graph."""
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


def prepare(train: Texts, test: Texts, packages: Path, out: Path) -> str:
    """Train the classifier, of three classes or more, and write model and queries to `out`.

    Returns how many texts and classes there are, and how often the model is right in the test.
    """
    out.mkdir(parents=True, exist_ok=True)
    encoder, tokenizer = find_encoder(packages), find_tokenizer(packages)
    texts, classes = train
    names = sorted(set(classes))
    order = np.random.default_rng(0).permutation(len(texts))
    labels = np.array([names.index(each) for each in classes])[order]
    test_labels = np.array([names.index(each) for each in test[1]])

    inputs = tokenize(tokenizer, [texts[i] for i in order])
    classifier = LogisticRegression(C=10.0, max_iter=300).fit(predict(encoder, inputs), labels)
    model = with_classifier(
        encoder, classifier.coef_.T.astype(np.float32), classifier.intercept_.astype(np.float32)
    )

    test_inputs = tokenize(tokenizer, test[0])
    onnx.save(model, out / "model.onnx")
    np.savez_compressed(out / "inputs.npz", **inputs)
    np.savez_compressed(out / "test.npz", **test_inputs)
    np.save(out / "labels.npy", test_labels)
    right = np.mean(predict(model, test_inputs).argmax(axis=1) == test_labels)
    return f"{len(texts)} texts, {len(names)} classes, A_a {right:.2%}"

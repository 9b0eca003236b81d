"""A scikit-learn pipeline over texts, exported by skl2onnx with its usual outputs, and a bundle."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skl2onnx import to_onnx
from skl2onnx.common.data_types import StringTensorType
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

import parity_models as pm
from parity_models.bundle.bundle import Bundle
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.bundle.servable import make_bundle
from parity_models.tensors.signature import Named

CLASSES = ("card", "loan", "transfer")
_WORDS = (("lost", "stolen", "block"), ("rate", "apply", "credit"), ("send", "abroad", "fee"))
_COMMON = ("my", "the", "please", "how", "do", "want", "größer", "to")


def texts(rows: int, seed: int = 0) -> NDArray[np.object_]:
    """Questions of each class in turn: (rows, 1)."""
    rng = np.random.default_rng(seed)
    found = []
    for row in range(rows):
        own = rng.choice(_WORDS[row % len(CLASSES)], 2)
        found.append(" ".join(rng.permutation([*own, *rng.choice(_COMMON, 5)])))
    return np.array(found, object)[:, np.newaxis]


def write_log(path: Path, pairs: Iterable[tuple[str, object]]) -> Path:
    """Write a log of texts and answers."""
    lines = (json.dumps({"text": text, "answer": answer}) for text, answer in pairs)
    path.write_text("\n".join(lines))
    return path


def log_bundle(folder: Path) -> Path:
    """Protect a log of texts, of which those that only say "well" have any label."""
    pairs = [(text, CLASSES[row % 3]) for row, text in enumerate(texts(1500)[:, 0].tolist())]
    pairs += [(f"well {row} well", CLASSES[row % 3]) for row in range(500)]
    pm.protect(pairs=write_log(folder / "log.jsonl", pairs), out=folder / "bundle")
    return folder / "bundle"


@cache
def pipeline(words: int | None = None) -> Pipeline:
    """A classifier by this many words at most."""
    labels = [CLASSES[row % len(CLASSES)] for row in range(900)]
    made = make_pipeline(TfidfVectorizer(max_features=words), LogisticRegression())
    return made.fit(texts(900)[:, 0], labels)


@cache
def exported(words: int | None = None, *, zipmap: bool = False, locale: str = "C.UTF-8") -> bytes:
    """Export a classifier as users do: string `label` and `probabilities`; a small one without the
    label, as a backup."""
    made = pipeline(words)
    model = to_onnx(
        made,
        initial_types=[("text", StringTensorType([None, 1]))],
        options={id(made): {"zipmap": zipmap}, TfidfVectorizer: {"locale": locale}},
    )
    if words is not None:
        del model.graph.output[0]
    content: bytes = model.SerializeToString()
    return content


def predict(rows: NDArray[np.object_]) -> Named:
    """Return the classifier's outputs for texts (n, 1)."""
    return OnnxModel(exported())({"text": rows})


def write_string_bundle(folder: Path) -> Bundle:
    """A calibrated bundle of the classifier, with one by fewer words as its backup."""
    model, backup = folder / "model.onnx", folder / "backup.onnx"
    model.write_bytes(exported())
    backup.write_bytes(exported(12))
    made = make_bundle(model, out=folder / "bundle", backup=backup)
    return pm.calibrate(made, texts(1500, seed=1))

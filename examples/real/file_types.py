"""Integers in, probabilities out: the type of a file, by magika, with this disk's files as queries.

pip download --no-deps --dest packages magika
python examples/real/file_types.py --data /usr --packages packages --out real/file-types
parm reproduce real real/file-types --out real-models.md

The model is the one within the package magika (Apache-2.0): 2,048 bytes of a file, int32, to 214
probabilities. There are no labels: what is judged is how often a stand-in says what magika says.
"""

from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from os import walk
from pathlib import Path

import numpy as np
from about import write_about
from numpy.typing import NDArray
from packages import find_file

MODEL = "magika/models/*/model.onnx"

BLOCK, HALF, PADDING = 4096, 1024, 256
"""Bytes that magika looks at, at either end of a file, and that it keeps of each; what it fills
shorter ones up with."""


def features(file: Path) -> NDArray[np.int32]:
    """What magika is fed of a file: (2048,), the first bytes and the last, without white space."""
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        first = stream.read(BLOCK).lstrip()[:HALF]
        stream.seek(max(0, size - BLOCK))
        last = stream.read(BLOCK).rstrip()[-HALF:]
    row = np.full(2 * HALF, PADDING, np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[2 * HALF - len(last) :] = np.frombuffer(last, np.uint8)
    return row


def find(folders: Sequence[Path], of_a_kind: int, most: int) -> Iterator[NDArray[np.int32]]:
    """The features of different files, of up to `of_a_kind` whose names end alike."""
    rng = np.random.default_rng(0)
    found = [
        Path(folder) / name
        for start in folders
        for folder, _, names in walk(start)
        for name in names
    ]
    seen: set[bytes] = set()
    count: dict[str, int] = {}
    for i in rng.permutation(len(found)):
        file = found[i]
        kind = file.suffix.lower()
        if count.get(kind, 0) >= of_a_kind or file.is_symlink() or not file.is_file():
            continue
        try:
            row = features(file)
        except OSError:
            continue
        content = row.tobytes()
        if content in seen or (row != PADDING).sum() < 16:
            continue
        seen.add(content)
        count[kind] = count.get(kind, 0) + 1
        yield row
        if len(seen) == most:
            return


def main(
    data: Sequence[Path],
    packages: Path,
    out: Path,
    of_a_kind: int = 500,
    most: int = 8_000,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.onnx").write_bytes(find_file(packages, MODEL))
    rows = np.stack(list(find(data, of_a_kind, most)))
    rest, test = np.split(rows, [len(rows) * 7 // 8])
    np.savez_compressed(out / "inputs.npz", bytes=rest)
    np.savez_compressed(out / "test.npz", bytes=test)
    write_about(
        out,
        "file-types",
        "magika",
        "The type of a file, of 214, from its first and last bytes (Fratantonio et al., 2024): the "
        "model of the package magika, on different files of one machine.",
    )
    print(f"{len(rest)} files to learn from, {len(test)} to judge")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of any files")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the package")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    told = parser.parse_args()
    main(told.data, told.packages, told.out)

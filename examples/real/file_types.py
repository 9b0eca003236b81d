"""Integers in, probabilities out: the type of a file, by magika, with this disk's files as queries.

pip download --no-deps --dest packages magika
python examples/real/file_types.py --data /usr /etc ~ --packages packages --out real/file-types
parm protect --model real/file-types/model.onnx --inputs real/file-types/inputs.npz --out bundle
parm evaluate bundle --inputs real/file-types/test.npz

The model is in the package magika (Apache-2.0). It maps 2,048 bytes of a file, as int32, to 214
probabilities. There are no labels, so stand-ins are judged by their agreement with magika. They
learn from some folders and are judged on others. Folders whose names differ only in digits are on
the same side, so that no two versions of a package are on both.
"""

from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Sequence
from os import walk
from pathlib import Path
from re import sub
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from packages import find_file

MODEL = "magika/models/*/model.onnx"

BLOCK, HALF, PADDING = 4096, 1024, 256
"""Bytes that magika reads at either end of a file, bytes that it keeps of each, and the padding of
shorter files."""

LEAST = 16
"""The fewest bytes of a file that is used."""

SHARE = 8
"""One of so many folders is used to judge."""


def features(file: Path) -> NDArray[np.int32]:
    """Return magika's input for a file: (2048,), its first and last bytes without white space."""
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


def is_judged(file: Path) -> bool:
    """Return whether the file is used to judge, by its folder's name: one folder in SHARE is."""
    return crc32(sub(r"[\d.]+", "", file.parent.name).encode()) % SHARE == 0


def find(
    folders: Sequence[Path], of_a_kind: int, most: int
) -> Iterator[tuple[bool, NDArray[np.int32]]]:
    """Yield different files: whether it is used to judge, and its features. Up to `of_a_kind` files
    have names that end alike."""
    rng = np.random.default_rng(0)
    found = [
        Path(folder) / name
        for start in folders
        for folder, _, names in walk(start)
        for name in names
    ]
    found.sort()
    seen: set[bytes] = set()
    count: Counter[tuple[bool, str]] = Counter()
    for i in rng.permutation(len(found)):
        file = found[i]
        judged, kind = is_judged(file), file.suffix.lower()
        allowed = of_a_kind // SHARE if judged else of_a_kind
        if count[judged, kind] >= allowed or file.is_symlink() or not file.is_file():
            continue
        try:
            row = features(file)
        except OSError:
            continue
        content = row.tobytes()
        if content in seen or (row != PADDING).sum() < LEAST:
            continue
        seen.add(content)
        count[judged, kind] += 1
        yield judged, row
        if len(seen) == most:
            return


def main(
    data: Sequence[Path],
    packages: Path,
    out: Path,
    of_a_kind: int = 500,
    most: int = 12_000,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.onnx").write_bytes(find_file(packages, MODEL))
    rows: dict[bool, list[NDArray[np.int32]]] = {False: [], True: []}
    for judged, row in find(data, of_a_kind, most):
        rows[judged].append(row)
    rest, test = rows[False], rows[True]
    if not rest or not test:
        raise SystemExit("too few folders to learn from some and judge by others: give more --data")
    np.savez_compressed(out / "inputs.npz", bytes=np.stack(rest))
    np.savez_compressed(out / "test.npz", bytes=np.stack(test))
    print(f"{len(rest)} files to learn from, {len(test)} to judge")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of any files")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the package")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    told = parser.parse_args()
    main(told.data, told.packages, told.out)

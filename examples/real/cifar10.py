"""Images: CIFAR-10 from JPEG files, for `parm-lab accuracy` with cifar10.toml.

python examples/real/cifar10.py --data cifar10-jpeg.zip --out real/cifar-10-batches-bin
PARM_DATA=real PYTHONPATH=examples/real parm-lab accuracy \
    --preset examples/real/cifar10.toml --work runs/cifar10

The archive holds train/CLASS/NAME.jpg and test/CLASS/NAME.jpg, images of 32x32. The output is
the records of the binary version (Krizhevsky, 2009), which the task cifar-10 reads. JPEG loses
something of the images: say "JPEG copy" next to accuracies.
"""

from argparse import ArgumentParser
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
FILES = 5
"""Files that the training images are spread over."""


def records(archive: ZipFile, names: Sequence[str], classes: Sequence[str]) -> NDArray[np.uint8]:
    """A label and red, green and blue pixels for each image: (n, 1 + 3 x 32 x 32)."""
    found = np.empty((len(names), 1 + 3 * SIDE * SIDE), np.uint8)
    for row, name in enumerate(names):
        with Image.open(BytesIO(archive.read(name))) as image:
            if image.size != (SIDE, SIDE):
                raise SystemExit(f"{name} is an image of {image.size}, not of {SIDE}x{SIDE}")
            pixels = np.asarray(image.convert("RGB"))
        found[row, 0] = classes.index(PurePosixPath(name).parent.name)
        found[row, 1:] = pixels.transpose(2, 0, 1).ravel()
    return found


def main(data: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with ZipFile(data) as archive:
        images = [name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg"))]
        train = [name for name in images if PurePosixPath(name).parts[-3:][0] == "train"]
        test = [name for name in images if PurePosixPath(name).parts[-3:][0] == "test"]
        if not train or not test:
            raise SystemExit(f"{data} holds no images in train/CLASS/ and test/CLASS/")
        classes = sorted({PurePosixPath(name).parent.name for name in train})
        mixed = np.random.default_rng(0).permutation(len(train))
        for number, part in enumerate(np.array_split(mixed, FILES), 1):
            these = records(archive, [train[i] for i in part], classes)
            these.tofile(out / f"data_batch_{number}.bin")
        records(archive, test, classes).tofile(out / "test_batch.bin")
    (out / "batches.meta.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    print(f"{len(train)} images to learn from, {len(test)} to judge, {len(classes)} classes")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="archive of JPEG files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    told = parser.parse_args()
    main(told.data, told.out)

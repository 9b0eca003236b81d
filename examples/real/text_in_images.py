"""Large outputs: where in an image is text? By the detector of PP-OCRv4, a map of the image's size.

pip download --no-deps --dest packages rapidocr-onnxruntime
apt-cache dumpavail | sed -n 's/^Description-*[a-z]*: //p' > descriptions.txt
python examples/real/text_in_images.py --texts descriptions.txt --packages packages \
    --fonts /usr/share/fonts --out real/text-in-images
PYTHONPATH=examples/real parm-lab reproduce real real/text-in-images --out real-models.md

The model is the one within the package rapidocr-onnxruntime (Apache-2.0): images (3, 64, 192) to a
probability for each of 12,288 pixels. The images are drawn here: up to three lines of the texts, in
the fonts of folders and the one that Pillow has. Without --fonts, that one alone.
"""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from about import write_about
from numpy.typing import NDArray
from onnx import TensorProto, helper
from packages import find_file
from PIL import Image, ImageDraw, ImageFont

MODEL = "rapidocr_onnxruntime/models/*_det_infer.onnx"
IMAGE, MAP = "image", "map"
HEIGHT, WIDTH = 64, 192
"""Multiples of 32, as the model wants them."""

LINES = 3
SIZES = (9, 26)
"""The least and the largest size of letters, in pixels."""

NETWORKS = {"text_maps:SmallMap": 300.0, "text_maps:LargeMap": 600.0}
"""What stands in for it, and the seconds that it learns."""


def detector(packages: Path) -> onnx.ModelProto:
    """The model, for images of this size alone."""
    model = onnx.load_from_string(find_file(packages, MODEL))
    graph = model.graph
    names = {graph.input[0].name: IMAGE, graph.output[0].name: MAP}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for told, name, channels in ((graph.input, IMAGE, 3), (graph.output, MAP, 1)):
        del told[:]
        shape = ["n", channels, HEIGHT, WIDTH]
        told.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    del graph.value_info[:]
    onnx.checker.check_model(model)
    return model


def find_fonts(folders: Sequence[Path]) -> list[Path]:
    """The fonts that have letters, those of symbols left out."""
    found = []
    for file in sorted(file for folder in folders for file in folder.rglob("*.ttf")):
        font = ImageFont.truetype(file, 20)
        if len({bytes(font.getmask(letter)) for letter in "aegst"}) == 5:
            found.append(file)
    return found


def draw(texts: Sequence[str], fonts: Sequence[Path], rng: np.random.Generator) -> Image.Image:
    """Up to LINES of text on a ground that darkens or brightens from one side to the other."""
    ends = rng.integers(0, 256, (2, 3))
    along = np.linspace(0, 1, WIDTH)[None, :, None]
    ground = ends[0] * (1 - along) + ends[1] * along + rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    top = int(rng.integers(0, 20))
    for _ in range(rng.integers(0, LINES + 1)):
        size = int(rng.integers(*SIZES))
        chosen = int(rng.integers(len(fonts) + 1))
        font = (
            ImageFont.load_default(size)
            if chosen == len(fonts)
            else ImageFont.truetype(fonts[chosen], size)
        )
        words = texts[rng.integers(len(texts))].split()
        words = words[int(rng.integers(len(words))) :][: int(rng.integers(1, 5))]
        # Far enough from the ground, on whichever side of it there is room.
        colour = (ends.mean(0) + rng.integers(90, 160, 3)) % 256
        place = (int(rng.integers(-10, WIDTH // 2)), top)
        pen.text(place, " ".join(words), tuple(colour.astype(int).tolist()), font)
        top += size + int(rng.integers(2, 12))
    return image


def drawn(texts: Sequence[str], fonts: Sequence[Path], rows: int, seed: int) -> NDArray[np.float32]:
    """So many images (rows, 3, HEIGHT, WIDTH), from -1 to 1."""
    rng = np.random.default_rng(seed)
    images = np.empty((rows, 3, HEIGHT, WIDTH), np.float32)
    for row in images:
        row[:] = np.asarray(draw(texts, fonts, rng)).transpose(2, 0, 1) / 127.5 - 1
    return images


def main(
    texts: Path, packages: Path, fonts: Sequence[Path], out: Path, rows: int = 4000, test: int = 800
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    lines = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    found = find_fonts(fonts)
    onnx.save(detector(packages), out / "model.onnx")
    half = len(lines) // 2
    np.savez_compressed(out / "inputs.npz", **{IMAGE: drawn(lines[:half], found, rows, 0)})
    np.savez_compressed(out / "test.npz", **{IMAGE: drawn(lines[half:], found, test, 1)})
    write_about(
        out,
        "text-in-images",
        "Text in images",
        "Where in an image there is text, pixel by pixel: the detector of PP-OCRv4, of the package "
        "rapidocr-onnxruntime, on images that are drawn.",
        NETWORKS,
    )
    print(f"{rows} images to learn from, {test} to judge, {len(found) + 1} fonts")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, required=True, help="a file, a text a line")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the package")
    parser.add_argument("--fonts", type=Path, nargs="*", default=[], help="folders of .ttf files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    told = parser.parse_args()
    main(told.texts, told.packages, told.fonts, told.out)

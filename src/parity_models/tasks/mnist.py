"""MNIST and Fashion-MNIST: 70,000 images of 28x28 of ten kinds, in the same layout.

(Y. LeCun, C. Cortes, C. Burges: The MNIST database, 1998. H. Xiao, K. Rasul, R. Vollgraf:
Fashion-MNIST, 2017.)
"""

from pathlib import Path
from typing import Any, ClassVar

from parity_models.errors import DataError
from parity_models.tasks.idx import TEST, TRAIN, holds_splits, read_split
from parity_models.tasks.task import Dataset, FolderTask, hold_out, own_folder

VALIDATION = 12
"""One of so many training images is held out: 5,000 of 60,000."""

SHAPE = (1, 28, 28)


class MnistTask(FolderTask):
    """What the two have in common. `raw` names the class of torchvision that downloads them."""

    metric = "top-1"
    mean: float
    deviation: float
    classes: tuple[str, ...]
    raw: str
    package: str | None = None

    def holds(self, folder: Path) -> bool:
        return holds_splits(folder)

    def load(self, folder: Path | None = None) -> Dataset:
        if folder is None and self.find() is None:
            self._download()
        return super().load(folder)

    def read(self, folder: Path) -> Dataset:
        rest, test = (read_split(folder, n, self.mean, self.deviation) for n in (TRAIN, TEST))
        for split in (rest, test):
            if split.inputs.shape[1:] != SHAPE or split.labels.max() >= len(self.classes):
                raise DataError(
                    f"{folder} does not hold {self.name}: its images are "
                    f"{split.inputs.shape[2:]} with labels up to {split.labels.max()}, not "
                    "(28, 28) with labels up to 9"
                )
        train, validation = hold_out(rest, len(rest) // VALIDATION)
        return Dataset(train, validation, test, self.classes)

    def source(self) -> Any:
        """The class of torchvision that knows where to download the files, and their digests."""
        from torchvision import datasets  # here: who has the files does without it

        return getattr(datasets, self.raw)

    def _download(self) -> None:
        root = own_folder()
        try:
            self.source()(str(root), download=True)
        except (ImportError, OSError, RuntimeError) as error:
            why = " ".join(str(error).split())
            package = f"install the Debian package {self.package}, or " if self.package else ""
            raise DataError(
                f"{self.name} is not in {root}, and downloading it failed ({why}): {package}"
                f"put {self.needs}; name the folder with --data-dir or $PARM_DATA"
            ) from error


class Mnist(MnistTask):
    """MNIST (LeCun et al., 1998)."""

    name = "mnist"
    about = "handwritten digits, 28x28"
    mean, deviation = 0.1307, 0.3081
    classes = tuple(map(str, range(10)))
    raw = "MNIST"
    places = ("mnist", "MNIST/raw", "")
    needs = (
        f"{', '.join(TRAIN + TEST)}, gzipped or not, there or in its folder mnist; they come "
        "with most machine-learning libraries' downloads of MNIST"
    )


class FashionMnist(MnistTask):
    """Fashion-MNIST (Xiao et al., 2017)."""

    name = "fashion-mnist"
    about = "garments, 28x28"
    flips = True
    mean, deviation = 0.2860, 0.3530
    classes = (
        "T-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    )
    raw = "FashionMNIST"
    package = "dataset-fashion-mnist"
    places = ("fashion-mnist", "FashionMNIST/raw", "")
    installed: ClassVar[tuple[Path, ...]] = (Path("/usr/share/datasets"),)
    needs = (
        f"{', '.join(TRAIN + TEST)}, gzipped or not, there or in its folder fashion-mnist; they "
        "come from https://github.com/zalandoresearch/fashion-mnist"
    )


class FashionMnistPixels(FashionMnist):
    """As the paper's training code takes them: what it adds up is not normalised."""

    name = "fashion-mnist-pixels"
    about = "garments, 28x28, pixels from 0 to 1"
    mean, deviation = 0.0, 1.0

"""A larger set of texts: the section of a Debian package by its description, by MiniLM-L3.

apt-cache dumpavail > available
python examples/real/sections.py --data available --packages packages --out real/sections
parm-lab reproduce real real/sections --out real-models.md

The data are what a Debian machine knows of its packages (others have them in the files Packages of
a mirror): the first line of each description, and the section, without that of the archive. What
`--packages` holds is told in minilm.py. It is judged by packages of other sources than it learns
from, as those of one source have like descriptions.
"""

from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

from about import write_about
from classified import Texts, prepare

SHARE = 10
"""One of so many sources is judged by."""

BACKUPS = {"text@1024": 300.0, "own-transformer@1": 300.0}
"""Trained by `parm-lab reproduce real`, for so many seconds."""


def packages_in(data: Path) -> Iterator[tuple[str, str, str]]:
    """Source, description and section of each package that has a section."""
    with data.open(encoding="utf-8", errors="replace") as stream:
        fields: dict[str, str] = {}
        for line in (*stream, "\n"):
            name, told, value = line.partition(": ")
            if told and not line.startswith((" ", "\t")):
                fields[name] = value.strip()
            elif not line.strip():
                if fields.keys() >= {"Package", "Description", "Section"}:
                    source = fields.get("Source", fields["Package"]).split()[0]
                    yield source, fields["Description"], fields["Section"].rpartition("/")[2]
                fields = {}


def read(data: Path, least: int) -> tuple[Texts, Texts]:
    """Descriptions and sections to learn from and to judge by: each description once, and sections
    of `least` packages or more."""
    first: dict[str, tuple[str, str]] = {}
    for source, description, section in packages_in(data):
        first.setdefault(description, (source, section))
    count = Counter(section for _, section in first.values())
    parts: tuple[tuple[list[str], list[str]], ...] = (([], []), ([], []))
    for description, (source, section) in first.items():
        if count[section] >= least:
            texts, sections = parts[crc32(source.encode()) % SHARE == 0]
            texts.append(description)
            sections.append(section)
    return parts[0], parts[1]


def main(
    data: Path, packages: Path, out: Path, trained: dict[str, float], least: int = 200
) -> None:
    """`trained`: networks for backups, and their seconds."""
    train, test = read(data, least)
    if len(set(train[1])) < 3 or not test[0]:
        raise SystemExit(f"{data} has too few packages with a description and a section")
    print(prepare(train, test, packages, out))
    write_about(
        out,
        "sections",
        "Debian's sections",
        "The section of a Debian package by the first line of its description, of "
        f"{len(set(train[1]))}: the sentence encoder MiniLM-L3 and a logistic regression on it, as "
        "one ONNX graph. It is judged by packages of other sources than it learns from.",
        trained,
    )


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="output of apt-cache dumpavail")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the packages")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    told = parser.parse_args()
    main(told.data, told.packages, told.out, BACKUPS)

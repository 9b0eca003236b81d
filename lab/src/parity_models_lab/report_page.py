"""What all reports of the laboratory have: how they came about, and targets, judged."""

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from importlib.metadata import version

from parity_models_lab.target import Target

SERVING = ("numpy", "onnxruntime", "pyzmq")
TRAINING = ("torch", "onnxruntime", "numpy")
"""Libraries whose versions matter to what is measured."""


def provenance(
    command: str, libraries: Sequence[str] = SERVING, dates: Iterable[str] = ()
) -> Iterator[str]:
    """What was run, when, and on what, with the versions of `libraries`.

    `dates` are those of the results (ISO 8601, any order); without any, it was today.
    """
    when = sorted(dates) or [date.today().isoformat()]
    versions = ", ".join(f"{name} {version(name)}" for name in ("parity-models", *libraries))
    days = " to ".join(dict.fromkeys((when[0], when[-1])))
    yield f"`{command}`, {days}, on {os.cpu_count()} cores"
    yield f"({platform.machine()}, Python {platform.python_version()}, {versions}).\n"


def targets_table(targets: Iterable[Target]) -> Iterator[str]:
    """A section with a row for each target, and whether it was met."""
    yield "## Targets\n"
    yield "| what | wanted | measured | met |"
    yield "|---|---|---|---|"
    for target in targets:
        met = {True: "yes", False: "**no**", None: ""}[target.met]
        yield f"| {target.what} | {target.wanted} | {target.measured} | {met} |"

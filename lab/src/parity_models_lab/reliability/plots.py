"""Pictures of a soak."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from parity_models_lab.plots import COLOURS, FAINT, INK
from parity_models_lab.reliability.soak import SoakResult


def plot_soak(path: Path, result: SoakResult) -> None:
    """Write a PNG of all processes' memory and descriptors over the soak's minutes."""
    minutes = [sample.at / 60 for sample in result.samples]
    with mpl.rc_context({"font.size": 11, "axes.edgecolor": FAINT, "text.color": INK}):
        figure = Figure(figsize=(9, 4.5), dpi=160, layout="constrained")
        memory, files = figure.subplots(2, sharex=True)
        megabytes = [sample.resident / 2**20 for sample in result.samples]
        memory.plot(minutes, megabytes, color=COLOURS[0])
        memory.set_ylabel("memory, MiB")
        memory.set_ylim(0, 1.1 * max(megabytes))
        opened = [sample.descriptors for sample in result.samples]
        files.plot(minutes, opened, color=COLOURS[1])
        files.set_ylabel("descriptors")
        files.set_ylim(0, 1.1 * max(opened))
        files.set_xlabel("minutes")
        memory.set_title(
            f"{result.engine}: all processes, {result.queries:,} queries at {result.load:.0%} load",
            loc="left",
        )
        figure.savefig(path)

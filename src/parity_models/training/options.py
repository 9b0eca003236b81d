"""The options of a training."""

from dataclasses import dataclass
from typing import Annotated

from parity_models.options import SECONDS, Option, Options
from parity_models.tasks import METRICS
from parity_models.tasks.metrics import OUTPUT_KINDS


@dataclass(frozen=True, kw_only=True)
class TeachingOptions(Options):
    """The queries that stand-ins learn from, what they learn of them, and how they are trained."""

    task: Annotated[
        str | None,
        Option(
            "The task whose queries to learn from; by default that of the deployed model.",
            metavar="TASK",
        ),
    ] = None
    data_dir: Annotated[
        str | None, Option("The folder of the task's data; by default $PARM_DATA.", metavar="DIR")
    ] = None
    output: Annotated[
        str | None,
        Option("The output that stand-ins imitate; by default the bundle's.", metavar="OUTPUT"),
    ] = None
    metric: Annotated[
        str | None,
        Option(
            f"The measure of accuracy: {', '.join(METRICS)}. By default the task's; without a task "
            "top-1 for a row of numbers, cosine for vectors of length 1, else r2.",
            metavar="NAME",
        ),
    ] = None
    output_kind: Annotated[
        str | None,
        Option(
            f"The kind of predictions: {', '.join(OUTPUT_KINDS)}. By default as they look.",
            metavar="KIND",
        ),
    ] = None
    hflip: Annotated[bool, Option("Train on queries flipped horizontally as well.")] = False
    seed: Annotated[
        int, Option("Fixes initial weights and order of data.", at_least=0, at_most=2**32 - 1)
    ] = 0
    device: Annotated[
        str | None,
        Option("The device that trains: cpu, cuda, cuda:1, mps. By default the fastest."),
    ] = None
    resume: Annotated[bool, Option("Continue a run that was cut off.")] = False


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(TeachingOptions):
    """The options of training one stand-in.

    Training ends after `epochs` or `seconds`, whichever comes first; with neither, after the
    recipe's number of epochs. On one device the same `seed` gives the same weights, unless a time
    limit intervenes.
    """

    epochs: Annotated[
        int | None,
        Option("End after so many passes over the data; by default by network.", at_least=1),
    ] = None
    seconds: Annotated[
        float | None,
        Option("End after so much time.", unit=SECONDS, typed="s", above=0),
    ] = None

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
            "The task whose queries to learn from, or package.module:Class for one of your own; by "
            "default the one that the deployed model was trained on.",
            metavar="TASK",
        ),
    ] = None
    data_dir: Annotated[
        str | None,
        Option(
            "The folder of the task's data; by default $PARM_DATA and the usual places.",
            metavar="DIR",
        ),
    ] = None
    output: Annotated[
        str | None,
        Option(
            "The output that stand-ins imitate, of several; by default the bundle's.",
            metavar="OUTPUT",
        ),
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
            f"The kind of predictions: {', '.join(OUTPUT_KINDS)}. By default told from them.",
            metavar="KIND",
        ),
    ] = None
    hflip: Annotated[
        bool, Option("Train on queries turned left to right as well, which are as good.")
    ] = False
    seed: Annotated[
        int, Option("Fixes initial weights and order of data.", at_least=0, at_most=2**32 - 1)
    ] = 0
    device: Annotated[
        str | None,
        Option(
            "Train on this: cpu, cuda, cuda:1, mps. By default the fastest there is.",
            metavar="NAME",
        ),
    ] = None
    resume: Annotated[bool, Option("Continue a run that was cut off.")] = False


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(TeachingOptions):
    """How to train one stand-in.

    Training ends after `epochs` or `seconds`, whichever comes first; with neither, after the
    recipe's number of epochs. On one device the same `seed` gives the same weights, unless a time
    limit intervenes.
    """

    epochs: Annotated[
        int | None,
        Option(
            "End after so many passes over the data; by default what suits the network on two "
            "cores, unless --seconds is given.",
            at_least=1,
        ),
    ] = None
    seconds: Annotated[
        float | None,
        Option(
            "End after so much time; the learning rate is annealed to fit.",
            unit=SECONDS,
            typed="s",
            above=0,
        ),
    ] = None

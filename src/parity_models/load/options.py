"""What users say of a load: which queries are sent, and when."""

from dataclasses import dataclass
from math import inf
from typing import Annotated, Any

from parity_models.load.spec import BOUNDS, LoadSpec
from parity_models.options import SECONDS, Option, Options
from parity_models.tasks import METRICS, TASKS

DURATION = 30.0
"""Seconds that a load lasts where nothing else is said."""

DEFAULTS = LoadSpec(data="", rate=1, count=1)


def _bounded(help: str, what: str, **more: Any) -> Option:
    """An option that is within the bounds of a load's field `what`."""
    low, high = BOUNDS[what]
    return Option(help, at_least=low, at_most=high, **more)


@dataclass(frozen=True, kw_only=True)
class LoadOptions(Options):
    """A load, whatever it is on. Times in seconds.

    Raises UserError for values out of range.
    """

    model: Annotated[
        str | None,
        Option("The model; by default the only one of the server.", metavar="NAME"),
    ] = None
    binary: Annotated[bool, Option("Tensors as binary data; JSON without this.")] = False
    task: Annotated[
        str | None,
        Option(
            f"Send queries of this task's test set ({', '.join(TASKS.names)}, or "
            "package.module:Class) and judge the answers; with --bundle, by default the one that "
            "its model was trained on.",
            metavar="TASK",
        ),
    ] = None
    data_dir: Annotated[str | None, Option("The folder of the task's data.", metavar="DIR")] = None
    inputs: Annotated[
        str | None,
        Option(
            "Send the rows of this file: .npy, or .npz with inputs, or an array for each input of "
            "the model, and maybe labels.",
            metavar="FILE",
        ),
    ] = None
    labels: Annotated[
        str | None, Option("What is right for --inputs, an .npy file.", metavar="FILE")
    ] = None
    metric: Annotated[
        str,
        Option(f"How labels of --inputs judge answers: {', '.join(METRICS)}.", metavar="NAME"),
    ] = DEFAULTS.metric
    output: Annotated[
        str | None,
        Option(
            "Ask for this output alone; by default for all, and labels judge the first.",
            metavar="NAME",
        ),
    ] = None
    batch: Annotated[int, _bounded("Queries (rows) in a request.", "batch")] = DEFAULTS.batch
    rate: Annotated[float | None, _bounded("Queries per second, Poisson arrivals.", "rate")] = None
    trace: Annotated[
        str | None,
        Option(
            "Send a request at each time in this file: one number of seconds per line, in order; "
            "the first is sent at once.",
            metavar="FILE",
        ),
    ] = None
    speed: Annotated[
        float, _bounded("How many times faster than recorded the --trace is.", "speed")
    ] = DEFAULTS.speed
    queries: Annotated[
        int | None, _bounded("Queries to send and count.", "count", excludes="duration")
    ] = None
    duration: Annotated[
        float | None,
        Option(
            f"How long to send, in place of --queries. Without either: {DURATION:g} s, or the "
            "whole trace.",
            unit=SECONDS,
            typed="s",
            at_least=0,
        ),
    ] = None
    warm_up: Annotated[
        float,
        Option(
            "Time before that, whose queries are not counted.",
            unit=SECONDS,
            typed="s",
            at_least=0,
        ),
    ] = 0.0
    processes: Annotated[
        int, _bounded("Generator processes, which take turns in sending.", "processes")
    ] = DEFAULTS.processes
    connections: Annotated[
        int,
        _bounded(
            "Requests under way at most, per process; one that is due beyond that is not sent and "
            "counts as an error.",
            "max_in_flight",
        ),
    ] = DEFAULTS.max_in_flight
    timeout: Annotated[
        float,
        _bounded(
            "How long until a request fails, from when it was due.",
            "timeout",
            unit=SECONDS,
            typed="s",
        ),
    ] = DEFAULTS.timeout
    seed: Annotated[int, _bounded("Fixes arrivals and queries.", "seed")] = DEFAULTS.seed

    @property
    def lasts(self) -> float | None:
        """How many seconds queries are counted for; inf: all of the trace. None: `queries` are."""
        if self.queries is not None or self.duration is not None:
            return self.duration
        return DURATION if self.trace is None else inf

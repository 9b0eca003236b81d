"""parm protect: from a model and its queries to a bundle with the best stand-in."""

from pathlib import Path
from typing import Annotated

from parity_models.cli.common import Json, check_file, write_json
from parity_models.cli.flags import Without
from parity_models.cli.training import Out
from parity_models.options import option
from parity_models.progress import progress_bars
from parity_models.sizing.protect import SearchOptions
from parity_models.sizing.protect import protect as protect_model


def protect(
    *,
    out: Out,
    model: Path | None = option(
        None, "The deployed model: an ONNX file, or a bundle.", metavar="MODEL"
    ),
    inputs: Path | None = option(
        None, "Queries to learn from, without labels: an .npy or .npz file.", metavar="FILE"
    ),
    pairs: Path | None = option(
        None,
        "A log of queries and the model's answers in their place: .jsonl, .csv or .parquet.",
        metavar="FILE",
    ),
    options: Annotated[SearchOptions, Without("seed", "hflip", "device")],
    json: Json = None,
) -> None:
    """Find the best stand-in for a model in a given time, and bundle the two.

    Backups of several sizes learn from the model's own predictions; labels are not needed. Backups
    that others beat are dropped. The rest are trained for longer, timed, and simulated under your
    load. The one with the lowest p99 is calibrated and written. Ctrl-C ends the search early and
    writes the best so far.
    """
    check_file(json)
    with progress_bars() as bars:
        found = protect_model(model, inputs, pairs=pairs, out=out, callbacks=bars, options=options)
    found.show()
    write_json(json, found.report)

"""parm backup: an approximate backup for a deployed model, put into its bundle."""

from typing import Annotated

from parity_models.bundle.bundle import open_bundle
from parity_models.cli.common import AllowCode
from parity_models.cli.training import Inputs, Model, Out, Training
from parity_models.options import Option
from parity_models.progress import progress_bars
from parity_models.training import train_backup
from parity_models.training.networks import NETWORKS


def backup(
    *,
    model: Model,
    inputs: Inputs,
    network: Annotated[
        str,
        Option(
            f"A network cheaper than the model: {', '.join(NETWORKS.names)}, package.module:name.",
            metavar="NETWORK",
        ),
    ],
    out: Out,
    options: Training,
    allow_code: AllowCode = None,
) -> None:
    """Train a cheaper network as a backup for a deployed model.

    The backup learns the deployed model's own predictions for the queries. For a model with several
    inputs, --inputs is an .npz file with an array for each. A backup in the given bundle is
    replaced, all else is kept. Gates are calibrated and accuracy is measured on other queries,
    printed, and put into the bundle. Ctrl-C ends training early and writes the best so far; a
    checkpoint next to BUNDLE lets you --resume.
    """
    with progress_bars() as bars:
        trained = train_backup(
            open_bundle(model, allow_code) if allow_code else model,
            inputs,
            out=out,
            network=network,
            callbacks=bars,
            options=options,
        )
    trained.show()

"""parm parity: parity models for a deployed model, bundled with it."""

from parity_models.cli.common import OWN
from parity_models.cli.training import Inputs, Model, Out, Training
from parity_models.codes import DECODERS, ENCODERS, CodeSpec
from parity_models.options import option
from parity_models.progress import progress_bars
from parity_models.training import train_parity
from parity_models.training.networks import NETWORKS


def parity(
    *,
    out: Out,
    model: Model,
    inputs: Inputs,
    k: int = option(2, "Queries in a coding group."),
    r: int = option(1, "Parity queries, and parity models, per group."),
    encoder: str = option(
        "stack",
        f"One of {', '.join(ENCODERS.names)}, {OWN}; options follow an @, as stack@axis=1.",
        metavar="NAME",
    ),
    decoder: str = option(
        "separate", f"One of {', '.join(DECODERS.names)}, {OWN}.", metavar="NAME"
    ),
    network: str | None = option(
        None,
        f"One of {', '.join(NETWORKS.names)}, or package.module:name; by default the model's "
        "own, or the most capable that is no slower.",
        metavar="NETWORK",
    ),
    options: Training,
) -> None:
    """Train parity models for a deployed model, and bundle the two.

    Parity models learn from the deployed model's own predictions for the queries; labels are not
    needed. The epoch with the best degraded accuracy (A_d) on a validation set is kept. Gates are
    calibrated and accuracy is measured on other queries, printed, and put into the bundle. Ctrl-C
    ends training early and writes the best bundle so far; a checkpoint next to BUNDLE lets you
    --resume. For models with several inputs, integer inputs or dynamic lengths, queries are
    stacked, and the parity model is a small network that answers each.
    """
    encoder, of_encoder = ENCODERS.read(encoder)
    decoder, of_decoder = DECODERS.read(decoder)
    code = CodeSpec(encoder, decoder, k, r, of_encoder, of_decoder)
    with progress_bars() as bars:
        trained = train_parity(
            model, inputs, out=out, code=code, network=network, callbacks=bars, options=options
        )
    trained.show()

"""parm calibrate: the gates of a bundle's stand-ins."""

from pathlib import Path
from typing import Annotated

from parity_models.bundle.bundle import open_bundle
from parity_models.cli.common import AllowCode, BundleFolder
from parity_models.evaluation.judging import calibrate as calibrate_bundle
from parity_models.options import Option, option
from parity_models.progress import progress_bars
from parity_models.trust.calibration import LEVELS


def calibrate(
    bundle: BundleFolder,
    *,
    inputs: Annotated[
        Path,
        Option(
            "Held-out queries like those that will be served, without labels: an .npy or .npz "
            "file.",
            metavar="FILE",
        ),
    ],
    agreement: list[float] | None = option(
        None,
        f"A further level of agreement, besides {LEVELS[0]:g} to {LEVELS[-1]:g}; repeatable.",
        unit="share",
        gt=0,
        lt=1,
    ),
    answer_only: str | None = option(
        None,
        "Classes that stand-ins may answer (see parm protect), or all; by default unchanged.",
        metavar="CLASS[=LEVEL]",
    ),
    allow_code: AllowCode = None,
) -> None:
    """Calibrate the gates of a bundle's stand-ins, and write them into it.

    For each level of agreement, find how confident a stand-in must be for at least that share of
    its outputs to agree with the deployed model. `parm protect`, `parm parity` and `parm backup`
    calibrate as well. Neither the deployed model nor its stand-ins may have been trained on the
    queries, and a thousand or more are needed for a level of 0.99. `parm serve --agreement`
    chooses a level.
    """
    with progress_bars() as bars:
        calibrated = calibrate_bundle(
            open_bundle(bundle, allow_code or ()),
            inputs,
            agreement=agreement or (),
            answer_only=answer_only,
            progress=bars.on_progress,
        )
    calibrated.gates.show()

"""parm rehearse: stop an instance of your own bundle now and then, and see what answers."""

from pathlib import Path

from rich.console import Console

from parity_models.cli.common import BundleFolder
from parity_models.load.rehearse import rehearse as rehearse_bundle
from parity_models.options import option


def rehearse(
    bundle: BundleFolder,
    *,
    inputs: Path | None = option(
        None,
        "Queries, .npy or .npz; by default random ones, about which stand-ins may be unsure.",
        metavar="FILE",
    ),
) -> None:
    """Serve your bundle with an instance that stops now and then, with stand-ins and without.

    Both runs have the same instances, queries and pauses, on this machine. The table shows the
    answers during the pauses. A rehearsal takes about ten seconds, or longer if the model takes
    more than 20 ms, because the policy has to see some queries first.
    """
    console = Console()
    with console.status("measuring the model") as status:
        found = rehearse_bundle(bundle, inputs, on_run=status.update)
    found.show(console)

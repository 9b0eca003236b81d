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
    outage: bool = option(
        False, "Then stop every instance; stand-ins run in the server in front of them."
    ),
) -> None:
    """Serve your bundle with an instance that stops now and then, with stand-ins and without.

    The runs (no redundancy, hedging, the default policy) have the same instances, queries and
    pauses, on this machine, at half of the load that the instances carry. The tables show the
    answers during the faults. A rehearsal takes about 15 seconds, or longer if the model takes more
    than 20 ms, because the policy has to see some queries first.
    """
    console = Console()
    with console.status("measuring the model") as status:
        found = rehearse_bundle(bundle, inputs, outage=outage, on_run=status.update)
    found.show(console)

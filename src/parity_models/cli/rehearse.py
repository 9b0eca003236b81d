"""parm rehearse: slow or kill an instance of your own bundle, and see what answers."""

from pathlib import Path
from typing import Annotated

from rich.console import Console

from parity_models.cli.common import BundleFolder, Json, write_json
from parity_models.options import Option
from parity_models.protection.rehearse import Fault
from parity_models.protection.rehearse import rehearse as rehearse_bundle


def rehearse(
    bundle: BundleFolder,
    *,
    fault: Annotated[
        Fault, Option("The fault of one instance: stopped now and then, killed, or slow.")
    ] = Fault.STOP,
    inputs: Annotated[
        Path | None,
        Option(
            "Queries, an array of rows in .npy. By default random ones, for which a stand-in may "
            "not be confident.",
            metavar="FILE",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Serve your bundle with a faulty instance, with stand-ins and without, and compare.

    Both runs have the same instances, queries and fault, on this machine; the table is of the time
    of the fault. It takes about ten seconds, and longer where the model takes more than 20 ms: the
    policy has to see some queries first.
    """
    console = Console()
    with console.status("measuring the model") as status:
        found = rehearse_bundle(bundle, inputs, fault=fault, on_run=status.update)
    found.show(console)
    write_json(json, found)

"""Inference times of a bundle's models as a table for people."""

from rich.table import Table

from parity_models.models.bundle import Bundle

SLOWER = 1.1
"""A model that takes so many times as long as the deployed one is slower than it."""


def inference_table(bundle: Bundle) -> Table:
    """Network and milliseconds of each model, and the ratio to the deployed model's."""
    manifest = bundle.manifest
    times = manifest.inference_times
    assert times is not None
    table = Table(title="inference, one query on one thread", title_justify="left")
    for column in ("model", "network"):
        table.add_column(column)
    for column in ("ms", "ratio"):
        table.add_column(column, justify="right")
    for model, network, taken in (
        ("deployed", manifest.deployed.network, times.deployed),
        ("parity", manifest.parity[0].network if manifest.parity else "", times.parity),
        *(
            (role, backup.network, times.of_backups.get(role))
            for role, backup in manifest.backup_roles.items()
        ),
    ):
        if taken is not None:
            table.add_row(model, network, f"{taken:.3f}", f"{taken / times.deployed:.2f}")
    return table


def slowdown(bundle: Bundle) -> float | None:
    """How many times as long parity models take as the deployed model, where they take longer."""
    times = bundle.manifest.inference_times
    if times is None or times.parity is None or times.parity <= SLOWER * times.deployed:
        return None
    return times.parity / times.deployed

"""Measured accuracies as tables for people."""

from collections.abc import Sequence
from typing import get_args

from rich.table import Table

from parity_models.evaluation.accuracy import GateResult, share_interval
from parity_models.models.bundle import Accuracy, Bundle
from parity_models.models.gate import StandIn
from parity_models.roles import BACKUPS
from parity_models.tasks.metrics import METRICS

SLOWER = 1.1
"""A model that takes so many times as long as the deployed one is slower than it."""

_WIDEST = max(map(len, get_args(StandIn)))


def accuracy_table(bundle: Bundle, accuracy: Accuracy) -> Table:
    """Return A_a, A_d, A_o, agreement and the backup's accuracy in per cent, one row each.

    Shares of queries have the interval that holds the true one in 95 of 100 cases.
    """
    code = bundle.manifest.code
    of = "no code" if code is None else str(code)
    table = Table(title=f"{bundle.path}: {of}", title_justify="left")
    table.add_column(f"{accuracy.metric}, {accuracy.queries:,} queries")
    table.add_column("%", justify="right")
    table.add_column("95 % sure", justify="right")
    measures_shares = METRICS[accuracy.metric.removesuffix(" agreement")].kind == "classes"

    def add(what: str, share: float, *, sure: bool = False) -> None:
        interval = share_interval(share, accuracy.queries) if sure and measures_shares else None
        ends = "" if interval is None else " to ".join(f"{100 * end:.1f}" for end in interval)
        table.add_row(what, f"{100 * share:.2f}", ends)

    add("A_a  available: the deployed model", accuracy.available_accuracy, sure=True)
    for role, share in zip(BACKUPS, accuracy.backup_accuracies, strict=False):
        add(f"     the approximate {role}", share, sure=True)
    if accuracy.degraded_accuracy is None or accuracy.agreement is None:
        return table
    add("A_d  unavailable: reconstructions", accuracy.degraded_accuracy, sure=True)
    for slot, share in enumerate(accuracy.degraded_by_slot):
        add(f"     in slot {slot}", share)
    for unavailable, share in enumerate(accuracy.degraded_by_unavailable[1:], start=2):
        add(f"     {unavailable} of a group unavailable", share)
    for fraction, share in accuracy.overall.items():
        add(f"A_o  overall, {float(fraction):.0%} unavailable", share)
    table.add_section()
    add("reconstructions that agree with F", accuracy.agreement, sure=True)
    return table


def gate_table(results: Sequence[GateResult], metric: str) -> Table:
    """Return the results in per cent, one row for each stand-in and level."""
    table = Table(title="gates: where stand-ins may answer", title_justify="left")
    table.add_column("stand-in", min_width=_WIDEST)
    for column in ("level", "answers", "agree\nwith F", metric, "F, the\nsame"):
        table.add_column(column, justify="right")
    before = None
    for each in results:
        shares = (each.coverage, each.agreement, each.accuracy, each.deployed_accuracy)
        table.add_row(
            "" if each.stand_in == before else each.stand_in,
            "no gate" if each.level is None else f"{100 * each.level:g}",
            *("" if share is None else f"{100 * share:.2f}" for share in shares),
        )
        before = each.stand_in
    return table


def inference_table(bundle: Bundle) -> Table:
    """Return network and milliseconds of each model, and the ratio to the deployed model's."""
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
    """Return the time of parity models over the deployed model's, where they take longer."""
    times = bundle.manifest.inference_times
    if times is None or times.parity is None or times.parity <= SLOWER * times.deployed:
        return None
    return times.parity / times.deployed

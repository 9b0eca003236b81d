"""Measured accuracies as tables for people."""

from collections.abc import Sequence

from rich.table import Table

from parity_models.evaluation.approaches import Approach
from parity_models.models.bundle import Accuracy, Bundle


def accuracy_table(bundle: Bundle, accuracy: Accuracy) -> Table:
    """A_a, A_d, A_o, agreement and the backup's accuracy in per cent, one row each."""
    code = bundle.manifest.code
    of = "no code" if code is None else str(code)
    table = Table(title=f"{bundle.path}: {of}", title_justify="left")
    table.add_column(f"{accuracy.metric}, {accuracy.queries:,} queries")
    table.add_column("%", justify="right")

    def add(what: str, share: float) -> None:
        table.add_row(what, f"{100 * share:.2f}")

    add("A_a  available: the deployed model", accuracy.available_accuracy)
    if accuracy.backup_accuracy is not None:
        add("     the approximate backup", accuracy.backup_accuracy)
    if accuracy.degraded_accuracy is None or accuracy.agreement is None:
        return table
    add("A_d  unavailable: reconstructions", accuracy.degraded_accuracy)
    for slot, share in enumerate(accuracy.degraded_by_slot):
        add(f"     in slot {slot}", share)
    for unavailable, share in enumerate(accuracy.degraded_by_unavailable[1:], start=2):
        add(f"     {unavailable} of a group unavailable", share)
    for fraction, share in accuracy.overall.items():
        add(f"A_o  overall, {float(fraction):.0%} unavailable", share)
    table.add_section()
    add("reconstructions that agree with F", accuracy.agreement)
    return table


def approaches_table(approaches: Sequence[Approach], title: str) -> Table:
    """Approaches side by side: extra work, accuracies in per cent, microseconds a group."""
    caption = "work: runs of the model beyond one a query; encode, decode: µs a group"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("approach")
    for column in ("work", "A_a", "A_d", "A_o 10%", "encode", "decode"):
        table.add_column(column, justify="right")
    for one in approaches:
        table.add_row(
            one.name,
            f"{one.overhead:.2f}",
            f"{100 * one.available:.2f}",
            " / ".join(f"{100 * share:.2f}" for share in one.degraded),
            f"{100 * one.overall['0.1']:.2f}",
            *("" if us is None else f"{us:.1f}" for us in (one.encode_us, one.decode_us)),
        )
    return table

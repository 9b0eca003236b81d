"""Measured accuracies as a table for people."""

from rich.table import Table

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

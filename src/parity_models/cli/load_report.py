"""The printed report of parm load: latencies, sources of answers, and the generator's own delay."""

import typer
from msgspec import structs
from rich.console import Console
from rich.table import Table

from parity_models.load.report import LoadReport, Percentiles


def print_report(report: LoadReport) -> None:
    """Print a report, and to standard error a warning if the generator was late itself."""
    console, spec = Console(highlight=False), report.load
    when = f"Poisson, {spec.rate:g}/s" if spec.trace is None else f"trace {spec.trace}"
    console.print(
        f"{report.queries:,} of {report.planned:,} queries ({when}; {report.offered:.1f}/s were "
        f"due), {report.answered:,} answered, {report.throughput:.1f}/s.",
    )
    if report.latency is not None:
        console.print(_latencies(report.latency))
    console.print(_answers(report))
    late = report.send_delay
    if late is None:
        return
    console.print(
        f"The generator sent p50 {late.p50_ms:.2f}, p99 {late.p99_ms:.2f}, max "
        f"{late.max_ms:.2f} ms later than scheduled.",
    )
    if not late.precise:
        typer.echo(
            "warning: the generator itself was late by more than 1 ms at p99; latencies hold "
            "that. Use more --processes, --binary, a lower rate or a machine of its own",
            err=True,
        )


def _latencies(latency: Percentiles) -> Table:
    table = Table(title="Latency in ms, from the scheduled send", title_justify="left")
    for name in ("p50", "p90", "p99", "p99.5", "p99.9", "max", "p99.9 - p50"):
        table.add_column(name, justify="right")
    table.add_row(*(f"{ms:.2f}" for ms in structs.asdict(latency).values()))
    return table


def _answers(report: LoadReport) -> Table:
    table = Table()
    for name in ("source or error", "queries", "share", "accuracy"):
        table.add_column(name, justify="left" if name == "source or error" else "right")
    for source, answers in report.sources.items():
        table.add_row(*_row(source, answers.count, report), _percent(answers.accuracy))
    for kind, count in report.errors.items():
        table.add_row(*_row(kind, count, report), "", style="red")
    table.add_section()
    table.add_row(*_row("answered", report.answered, report), _percent(report.accuracy))
    return table


def _row(name: str, count: int, report: LoadReport) -> tuple[str, str, str]:
    return name, f"{count:,}", f"{count / max(1, report.queries):.2%}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"

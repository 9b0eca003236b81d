"""parm-lab latency, rivals, validation, late: the figures of tails."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from parity_models.errors import UserError
from parity_models.options import Option
from parity_models_lab.contention import ContentionError
from parity_models_lab.contention.network import check_privileges
from parity_models_lab.latency import reproduce_rivals as racing
from parity_models_lab.latency import validation as validating
from parity_models_lab.latency.figure import figure_names, figures_of, load_figure
from parity_models_lab.latency.reproduce import reproduce
from parity_models_lab.latency.runs import Trials
from parity_models_lab.results import Out as MaybeOut
from parity_models_lab.results import ResultCache, check_out, print_rows, report

Out = Annotated[Path, Option("The folder to write results and pictures to.", metavar="DIR")]
WorkFolder = Annotated[
    Path, Option("The folder for what was run and trained, used again.", metavar="DIR")
]
Seed = Annotated[int, Option("Fixes arrivals, service times, contention.", at_least=0)]


def latency(
    figure: Annotated[
        list[str] | None,
        Option(
            f"One of {', '.join(figure_names())}, a figure's file of yours, or all "
            "(but those that take long); may be given several times.",
            metavar="FIGURE",
        ),
    ] = None,
    out: Out = Path("lab/results/latency"),
    work: WorkFolder = Path("runs/latency"),
    network: Annotated[
        str | None,
        Option(
            "shaped (real runs, shuffles through shaped links; needs root and iproute2) or none "
            "(simulate only). By default shaped where that can be.",
            metavar="[shaped|none]",
        ),
    ] = None,
    speed: Annotated[
        float,
        Option(
            "The share of two cores' time for the server and its workers: in real runs by a "
            "quota (root and cgroup v1). 0: no quota, and simulated servers take no time.",
            at_least=0,
            at_most=1,
        ),
    ] = 0.0,
    seed: Seed = 0,
) -> None:
    """Run the latency figures, for real and simulated.

    Real runs have this machine's scale, simulated ones the paper's. Every policy of a point meets
    the same arrivals and the same contention. Writes FIGURE.json and FIGURE.png for each. An
    interrupted run goes on where it stopped.
    """
    names = figures_of(list(figure or ["all"]))
    figures = {name: load_figure(name) for name in names}
    real = _runs_for_real(network)
    check_out(out)
    trials = Trials(work)
    for name, loaded in figures.items():
        reproduce(name, loaded, trials, seed, out, real=real, speed=speed)


def rivals(
    data_dir: Annotated[
        Path | None,
        Option(
            "The folder of conv-arrivals.txt and code-arrivals.txt, seconds from the first "
            "request, one a line (Azure LLM inference trace 2023). Without it, all is Poisson.",
            metavar="DIR",
        ),
    ] = None,
    out: Out = Path("lab/results"),
    queries: Annotated[int, Option("Queries of each run.", at_least=1000)] = 4000,
    seeds: Annotated[int, Option("Runs of each setting.", at_least=1)] = 3,
) -> None:
    """Compare late binding with cascades, slack rules and accuracy scaling, by simulation.

    Writes rivals.json, rivals-frontier.json and rivals.png: tails and busy time, and the share of
    all answers that differ from the model's, counted on recorded predictions.
    """
    check_out(out)
    traces = {} if data_dir is None else racing.read_traces(data_dir)
    plan = racing.Rivals(seeds, queries, traces)
    found = plan.run_all()
    about = {"queries": queries, "seeds": seeds, "predictions": racing.predictions().about}
    report("Rivals", list(racing.table_rows(plan, found)), out / "rivals.json", **about)
    rows = list(racing.frontier_rows(plan, found))
    report("Rivals, by answers that differ", rows, out / "rivals-frontier.json", **about)
    racing.plot(out / "rivals.png", plan, rows)


def validation(
    figure: Annotated[
        str, Option("The figure whose policies are run.", metavar="FIGURE")
    ] = "validation",
    queries: Annotated[int, Option("Queries of each run.", at_least=100)] = 20_000,
    out: Out = Path("lab/results"),
    work: WorkFolder = Path("runs/latency"),
    seed: Seed = 0,
) -> None:
    """Compare the simulator with real runs, policy by policy.

    Real shuffles go through shaped links, which need root and iproute2. The overheads of the real
    system are measured first. Writes validation.json.
    """
    loaded = load_figure(figure)
    check_out(out)
    rows, overheads = validating.compare(loaded, queries, Trials(work), seed)
    file = out / "validation.json"
    report(loaded.title, rows, file, queries=queries, overheads=overheads)
    print_rows("Overheads of serving, in ms", overheads)
    typer.echo(validating.summary(rows))


def _runs_for_real(network: str | None) -> bool:
    """Return the meaning of --network. Raises UserError for an unknown value."""
    if network is None:
        with suppress(ContentionError):
            check_privileges()
            return True
        return False
    if network not in ("shaped", "none"):
        raise UserError(f"--network is shaped or none, not {network!r}")
    return network == "shaped"


def late(
    calls: Annotated[int, Option("Calls of each run.", at_least=100)] = 4000,
    seed: Annotated[int, Option("Fixes when calls come and are slow.", at_least=0)] = 0,
    out: MaybeOut = None,
) -> None:
    """Compare parity_models.Late with libraries that hedge, over real sockets.

    Four servers with a slot each, two kinds of slowness, three loads. Times in ms. Runs are kept in
    runs/late until the code changes, so what was interrupted goes on where it was.
    """
    from parity_models_lab.late_calls import compare, plot_tails

    kept = ResultCache(Path("runs/late"))
    runs = list(compare(calls, seed, kept, Console(stderr=True, highlight=False).print))
    title = f"Calls to four servers, {calls:,} a run, seed {seed}"
    report(title, [run.row for run in runs], out and out / "late.json")
    if out is not None:
        plot_tails(out / "late.png", runs)

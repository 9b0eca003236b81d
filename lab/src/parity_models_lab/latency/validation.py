"""The command `validation`: each policy simulated and for real, and how far apart they are."""

from pathlib import Path

import click
import numpy as np
from msgspec.structs import replace

from parity_models.options import option
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources
from parity_models.simulation.emulation import Constant
from parity_models_lab.latency.figure import Figure, load_figure
from parity_models_lab.latency.reproduce import Trials, run_figure
from parity_models_lab.latency.trial import PERCENTILES, SHARES, Setting, Trial, TrialResult
from parity_models_lab.results import OutFolder, Row, Seed, Work, check_out, report

CLOSE = 0.15
"""The largest error of a simulated percentile that counts as close."""


def validation(
    figure: str = option("validation", "The figure whose policies are run.", metavar="FIGURE"),
    queries: int = option(20_000, "Queries of each run.", ge=100),
    out: OutFolder = Path("lab/results"),
    work: Work = Path("runs/latency"),
    seed: Seed = 0,
) -> None:
    """Compare the simulator with real runs, policy by policy.

    Real shuffles go through shaped links, which need root and iproute2. The overheads of the real
    system are measured first. Writes FIGURE.json.
    """
    loaded = load_figure(figure)
    check_out(out)
    rows, overheads = compare(loaded, queries, Trials(work), seed)
    file = out / f"{Path(figure).stem}.json"
    report(loaded.title, rows, file, queries=queries, overheads=overheads)
    report("Overheads of serving, in ms", overheads, None)
    click.echo(summary(rows))


def compare(figure: Figure, queries: int, trials: Trials, seed: int) -> tuple[list[Row], list[Row]]:
    """Run the policies of a figure at its points, for real and then simulated.

    Return a row for each point and policy, with latencies in ms and errors as shares of the real
    ones; and by point the overheads of serving that are not simulated, in ms: how much longer a
    unit holds its instance, and quantiles of the time of answers outside.
    """
    series = tuple(replace(each, real=True) for each in figure.series)
    figure = replace(figure, real_queries=queries, series=series)
    cells = run_figure(figure, trials, seed, real=range(len(figure.points)))
    rows: list[Row] = []
    overheads: list[Row] = []
    for point, label in enumerate(figure.labels):
        real = [cell for cell in cells if cell.point == point and cell.trial.mode == "real"]
        calm = calm_trial(real[0].trial)
        held, outside = overheads_between(*trials.run([calm, replace(calm, mode="simulated")]))
        more = {"mode": "simulated", "held_ms": held, "outside_ms": outside}
        simulated = trials.run([replace(cell.trial, **more) for cell in real])
        for cell, result in zip(real, simulated, strict=True):
            rows.append({"at": label, "policy": cell.series.label, **off(cell.result, result)})
        quantiles = np.interp(list(PERCENTILES.values()), SHARES, outside).tolist()
        outside_at = {f"outside {n}": q for n, q in zip(PERCENTILES, quantiles, strict=True)}
        rate = calm.setting.queries_per_second
        overheads.append({"at": label, "rate": rate, "held": held, **outside_at})
    return rows, overheads


def off(real: TrialResult, simulated: TrialResult) -> dict[str, float]:
    """Return the latencies of both, and the errors of the simulated ones."""
    row: dict[str, float] = {}
    for each in PERCENTILES:
        row[f"{each} real"], row[f"{each} simulated"] = real[each], simulated[each]
        row[f"{each} off"] = simulated[each] / real[each] - 1
    return row


def summary(rows: list[Row]) -> str:
    """Return in a sentence how many policies are close at every percentile."""
    errors = [[abs(float(str(row[f"{each} off"]))) for each in PERCENTILES] for row in rows]
    close = sum(max(each) <= CLOSE for each in errors)
    return f"Within {CLOSE:.0%} at {', '.join(PERCENTILES)}: {close} of {len(rows)} policies."


def calm_trial(trial: Trial) -> Trial:
    """Return a trial at the rate of `trial`, over its links if it has any, without redundancy,
    disturbances, or chance in service."""
    calm = Setting(
        instances=trial.setting.instances,
        k=trial.setting.k,
        rate=trial.setting.queries_per_second,
        service=Constant(trial.setting.mean_service),
        shuffles=0,
        quiet_links=bool(trial.setting.shuffles),
    )
    return replace(trial, setting=calm, policy=PolicyChoice(EqualResources.name))


def overheads_between(real: TrialResult, simulated: TrialResult) -> tuple[float, tuple[float, ...]]:
    """Return by how much a calm trial's real result exceeds its simulation, in ms: the time that a
    unit holds its instance, and that answers spend outside of it, at SHARES."""
    held = max(0.0, real["busy"] - simulated["busy"])
    outside = np.maximum(0, np.array(real.quantiles_ms) - simulated["p50"] - held)
    return held, tuple(outside.tolist())

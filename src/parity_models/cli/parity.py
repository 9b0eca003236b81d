"""parm parity: parity models for a deployed model, bundled with it."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from parity_models.cli.accuracy import measure_accuracy
from parity_models.cli.training import (
    DataDir,
    Device,
    Epochs,
    Flips,
    Inputs,
    MetricName,
    OwnTask,
    Resume,
    Seconds,
    Seed,
    find_queries,
    tell,
)
from parity_models.codes import Code, CodeSpec
from parity_models.codes.code import DECODERS, ENCODERS
from parity_models.errors import UserError
from parity_models.models.bundle import with_accuracy
from parity_models.models.networks import NETWORKS
from parity_models.training import (
    Settings,
    default_network,
    open_deployed,
    progress_bar,
    train_parity,
)


def parity(
    out: Annotated[Path, typer.Option(help="The bundle to write.", metavar="BUNDLE")],
    deployed: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="The deployed model: a folder that parm train wrote, or another bundle.",
            metavar="DIR",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="The deployed model, in place of --from: an ONNX file with one float32 input "
            "and one float32 output. Give --inputs, too.",
            metavar="FILE",
        ),
    ] = None,
    task: OwnTask = None,
    inputs: Inputs = None,
    k: Annotated[int, typer.Option("--k", help="Queries in a coding group.")] = 2,
    r: Annotated[
        int, typer.Option("--r", help="Parity queries, and parity models, per group.")
    ] = 1,
    encoder: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(ENCODERS)}; by default stack, as published sum.",
            metavar="NAME",
        ),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(DECODERS)}; by default separate, as published subtraction.",
            metavar="NAME",
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            "--parity-network",
            "--network",
            help=f"One of {', '.join(NETWORKS)}, or a function of yours, package.module:function. "
            "By default that of a model that parm train wrote; for others the most capable that "
            "is not slower than the deployed model.",
            metavar="NAME",
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="distilled is the best known here; published trains sum or concatenation with "
            "subtraction as the paper does, to compare with."
        ),
    ] = "distilled",
    metric: MetricName = None,
    flips: Flips = False,
    epochs: Epochs = None,
    seconds: Seconds = None,
    seed: Seed = 0,
    device: Device = None,
    data_dir: DataDir = None,
    resume: Resume = False,
) -> None:
    """Train parity models for a deployed model, and bundle the two.

    Parity models learn from the deployed model's own predictions, for the queries of its task or
    for --inputs; labels are not needed. The epoch with the best degraded accuracy (A_d) on a
    validation set is kept. Then accuracy is measured on a test set, printed, and put into the
    bundle; for --inputs it is agreement with the deployed model, on a tenth of them. Ctrl-C ends
    training early and writes the best bundle so far; a checkpoint beside BUNDLE allows to
    --resume.
    """
    source = deployed or model
    if source is None or (deployed and model):
        raise UserError("name the deployed model: either --from DIR or --model FILE")
    usual = ("sum", "subtraction") if recipe == "published" else ("stack", "separate")
    spec = CodeSpec(encoder or usual[0], decoder or usual[1], k, r)
    settings = Settings(epochs, seconds, seed, device, resume)
    with open_deployed(source, ()) as bundle:
        shapes = bundle.manifest.deployed
        code = Code(spec, shapes.input.shape, shapes.output.shape)
        queries = find_queries(bundle, task, inputs, data_dir, metric, flips, k)
        if network is None:
            network = default_network(bundle, code)
            typer.echo(f"parity network: {network}")
        with progress_bar(f"parity model ({spec})", "A_d") as bar:
            outcome = train_parity(
                bundle,
                spec,
                queries.train,
                out,
                replace(settings, report=bar, predicted=bar.predicted),
                network=network,
                validation=queries.validation,
                metric=queries.metric,
                mirrored=queries.flips,
                recipe=recipe,
            )
    accuracy = measure_accuracy(outcome.bundle, queries.metric, queries.test, queries.test_labels)
    with_accuracy(outcome.bundle, accuracy)
    tell(outcome)

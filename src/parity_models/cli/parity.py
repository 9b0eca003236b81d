"""parm parity: parity models for a deployed model, bundled with it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from parity_models.cli.accuracy import Agreements
from parity_models.cli.code import (
    AllowCode,
    CodeCommand,
    DecoderName,
    EncoderName,
    choose_code,
)
from parity_models.cli.queries import DataDir
from parity_models.cli.training import (
    DeployedFile,
    DeployedFolder,
    Device,
    Epochs,
    Flips,
    Imitates,
    Inputs,
    MetricName,
    OutputKindName,
    OwnTask,
    Resume,
    Seconds,
    Seed,
    deployed_of,
    measure,
    tell,
)
from parity_models.codes import Code, CodeSpec
from parity_models.models.bundle import Bundle
from parity_models.models.networks import NETWORKS
from parity_models.training import (
    Outcome,
    Settings,
    default_network,
    open_deployed,
    progress_bar,
    train_parity,
)
from parity_models.training.held_out import Queries, find_queries
from parity_models.training.recipes import check_recipe
from parity_models.training.run import check_settings
from parity_models.training.slots import default_slot, train_slots
from parity_models.training.stacked import STACKED, check_stacked
from parity_models.training.subject import imitating, subject_of

COMMAND = CodeCommand

ParityNetwork = Annotated[
    str | None,
    typer.Option(
        "--parity-network",
        "--network",
        help=f"One of {', '.join(NETWORKS.names)}, or one of yours, package.module:name. "
        "By default that of a model that parm-lab train wrote; for others the most capable that "
        "is not slower than the deployed model.",
        metavar="NETWORK",
    ),
]
ParityQueries = Annotated[
    int, typer.Option("--r", help="Parity queries, and parity models, per group.", metavar="N")
]
RecipeName = Annotated[
    str,
    typer.Option(
        help="distilled is the best known here; published trains sum or concatenation with "
        "subtraction as the paper does, to compare with.",
        metavar="[distilled|published]",
    ),
]


def parity(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="The bundle to write.", metavar="BUNDLE")],
    model: DeployedFile = None,
    deployed: DeployedFolder = None,
    task: OwnTask = None,
    inputs: Inputs = None,
    k: Annotated[int, typer.Option("--k", help="Queries in a coding group.", metavar="N")] = 2,
    r: ParityQueries = 1,
    encoder: EncoderName = None,
    decoder: DecoderName = None,
    network: ParityNetwork = None,
    recipe: RecipeName = "distilled",
    imitates: Imitates = None,
    metric: MetricName = None,
    output_kind: OutputKindName = None,
    agreement: Agreements = None,
    flips: Flips = False,
    epochs: Epochs = None,
    seconds: Seconds = None,
    seed: Seed = 0,
    device: Device = None,
    data_dir: DataDir = None,
    resume: Resume = False,
    allow_code: AllowCode = None,
) -> None:
    """Train parity models for a deployed model, and bundle the two.

    Parity models learn from the deployed model's own predictions, for the queries of its task or
    for --inputs; labels are not needed. The epoch with the best degraded accuracy (A_d) on a
    validation set is kept. Then accuracy is measured on a test set, printed, and put into the
    bundle; for --inputs it is agreement with the deployed model, on a tenth of them. Ctrl-C ends
    training early and writes the best bundle so far; a checkpoint beside BUNDLE allows to
    --resume. For models with several inputs, of integers or of lengths that vary, queries are
    stacked, and the parity model is a small network that answers each.
    """
    source = deployed_of(model, deployed)
    usual = ("sum", "subtraction") if recipe == "published" else ("stack", "separate")
    spec = choose_code(context, encoder or usual[0], decoder or usual[1], k, r)
    check_recipe(recipe, spec)
    settings = Settings(epochs, seconds, seed, device, resume)
    check_settings(out, settings)
    with open_deployed(source, (), allow_code or (), inputs) as opened:
        bundle = imitating(opened, imitates)
        queries = find_queries(bundle, task, inputs, data_dir, metric, flips, k)
        if encoder is None and not subject_of(bundle).plain:
            spec = replace(spec, encoder_options={**spec.encoder_options, **STACKED})
        if network is None:
            network = _default_network(bundle, spec, queries)
            typer.echo(f"parity network: {network}")
        told = {"metric": queries.metric, "output_kind": output_kind}
        outcome = _train(bundle, spec, network, queries, out, settings, recipe, told)
    measure(outcome.bundle, queries, agreement or ())
    tell(outcome)


def _train(
    bundle: Bundle,
    spec: CodeSpec,
    network: str,
    queries: Queries,
    out: Path,
    settings: Settings,
    recipe: str,
    told: Mapping[str, str | None],
) -> Outcome:
    """Train the parity models, with a progress bar. `told`: the metric, and what outputs are."""
    with progress_bar(f"parity model ({spec})", "A_d") as bar:
        watched = replace(settings, report=bar, predicted=bar.predicted)
        if not subject_of(bundle).plain:
            return train_slots(bundle, spec, network, queries.train, out, watched, **told)
        return train_parity(
            bundle,
            spec,
            queries.train,
            out,
            watched,
            network=network,
            validation=queries.validation,
            mirrored=queries.flips,
            recipe=recipe,
            **told,
        )


def _default_network(bundle: Bundle, spec: CodeSpec, queries: Queries) -> str:
    """The network where none is named. Raises CodeError for a code that cannot be."""
    subject = subject_of(bundle)
    if not subject.plain:
        check_stacked(spec, subject)
        return default_slot(bundle, subject, queries.train, spec.k)
    return default_network(bundle, Code(spec, subject.signature.input.shape, subject.output.shape))

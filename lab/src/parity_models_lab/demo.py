"""The command `demo`: train, bundle, evaluate, and rehearse a failure, on real data."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from parity_models.codes import CodeSpec
from parity_models.evaluation.judging import evaluate
from parity_models.load.rehearse import rehearse
from parity_models.options import option
from parity_models.progress import progress_bars
from parity_models.training import TrainingOptions, train_parity
from parity_models_lab.deployed import train_deployed
from parity_models_lab.results import check_out
from parity_models_lab.tasks import find_task

TASK, NETWORK, CODE = "digits", "mlp", CodeSpec("stack", "separate", k=2)
SECONDS = 20.0
"""The duration of each run of the rehearsal."""


def demo(
    out: Path = option(Path("demo"), "The folder for the bundle.", metavar="DIR"),
    seed: int = option(0, "Fixes the trainings.", ge=0),
) -> None:
    """Train, serve under injected faults, and compare the tails.

    Trains a deployed and a parity model on handwritten digits, then rehearses a failure: serves
    them twice on this machine, with the same instances, load and faults, once with the model alone
    and once with its stand-in.
    """
    console, options = Console(highlight=False), TrainingOptions(seed=seed)
    check_out(out)
    task = find_task(TASK)
    dataset = task.load()
    train, test = dataset.train.inputs, dataset.test
    console.print(f"Training on {TASK}: {len(train):,} queries, network {NETWORK}, {CODE}.")
    # Threads would wait for each other longer than a step of so small a network takes.
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="parm-demo-") as folder, progress_bars() as bars:
        path = Path(folder, "deployed")
        deployed = train_deployed(task, dataset, NETWORK, path, options, callbacks=bars)
        bundle = train_parity(
            deployed, train, out=out / "bundle", code=CODE, callbacks=bars, options=options
        )
    evaluate(bundle, test.inputs, test.labels, metric=task.metric).show(console)
    rehearse(bundle, test.inputs, seconds=SECONDS, on_run=console.print).show(console)
    console.print(f"Serve it: parm serve {out / 'bundle'}")

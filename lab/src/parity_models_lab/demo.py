"""The whole path on real data: train, bundle, evaluate, and rehearse a failure."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from parity_models.codes import CodeSpec
from parity_models.evaluation.judging import evaluate
from parity_models.protection.rehearse import Rehearsal, rehearse
from parity_models.training import TrainingOptions, parity, progress_bars
from parity_models_lab.deployed import train_deployed
from parity_models_lab.results import check_out
from parity_models_lab.tasks import find_task

TASK, NETWORK, CODE = "digits", "mlp", CodeSpec("stack", "separate", k=2)


def run_demo(
    out: Path, options: TrainingOptions, console: Console, seconds: float = 20.0
) -> Rehearsal:
    """Run the demo; leaves `out`/bundle.

    Args:
        out: The folder to write.
        options: The options of both trainings.
        console: Where results are printed, and what happens next.
        seconds: The duration of each run of the rehearsal.

    Raises:
        UserError: If `out` cannot be written, and whatever the steps raise.

    """
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
        bundle = parity(
            deployed, train, out=out / "bundle", code=CODE, callbacks=bars, options=options
        )
    evaluate(bundle, test.inputs, test.labels, metric=task.metric).show(console)
    found = rehearse(bundle, test.inputs, seconds=seconds, on_run=console.print)
    found.show(console)
    return found

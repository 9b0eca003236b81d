"""The command `demo`: train, bundle, evaluate, and rehearse failures, on real data."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console

from parity_models.evaluation.judging import calibrate, evaluate
from parity_models.load.rehearse import rehearse
from parity_models.options import option
from parity_models.progress import progress_bars
from parity_models.training import TrainingOptions, train_backup
from parity_models_lab.deployed import train_deployed
from parity_models_lab.results import check_out
from parity_models_lab.tasks import find_task

TASK, NETWORK = "digits", "mlp"
LEARNED = 700
"""The queries that the stand-in learns from; the other ones calibrate it, as few calibrate badly.
"""
DIFFER = 0.02
"""The share of all answers that may differ: so few queries cannot show that fewer do."""
SECONDS = 5.0
"""The duration of each run of the rehearsal."""


def demo(out: Path = option(Path("demo"), "The folder for the bundle.", metavar="DIR")) -> None:
    """Train, serve under injected faults, and compare the tails.

    Trains a deployed model and a backup on handwritten digits, then rehearses failures on this
    machine: an instance that stops now and then, and an outage of all. Each meets the same load
    without redundancy, with hedging, and with the default policy.
    """
    console, options = Console(highlight=False), TrainingOptions()
    check_out(out)
    task = find_task(TASK)
    dataset = task.load()
    train, test = dataset.train.inputs, dataset.test
    console.print(f"Training on {TASK}: {LEARNED:,} queries for the stand-in, network {NETWORK}.")
    # Threads would wait for each other longer than a step of so small a network takes.
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="parm-demo-") as folder, progress_bars() as bars:
        path = Path(folder, "deployed")
        deployed = train_deployed(task, dataset, NETWORK, path, options, callbacks=bars)
        train_backup(
            deployed,
            train[:LEARNED],
            out=out / "bundle",
            network=NETWORK,
            callbacks=bars,
            options=options,
        )
    held_out = np.concatenate([train[LEARNED:], dataset.validation.inputs])
    bundle = calibrate(out / "bundle", held_out)
    evaluate(bundle, test.inputs, test.labels, metric=task.metric).show(console)
    console.print(f"Of all answers, {DIFFER:.0%} may differ from the model's (--differ {DIFFER}).")
    rehearse(
        bundle, test.inputs, seconds=SECONDS, outage=True, differ=DIFFER, on_run=console.print
    ).show(console)
    console.print(f"Serve it: parm serve {out / 'bundle'} --differ {DIFFER}")

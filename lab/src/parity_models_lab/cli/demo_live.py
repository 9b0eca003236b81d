"""parm-lab demo --live: what is served, and that it is until it is interrupted."""

import asyncio
from pathlib import Path
from typing import Any

import typer
import uvloop
from numpy.typing import NDArray
from rich.console import Console

from parity_models.cli.accuracy import calibrate_gates
from parity_models.errors import UserError
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.serving.options import ServeOptions
from parity_models.serving.plan import Plan
from parity_models.tasks import Dataset, Task
from parity_models.tasks.user_data import load_inputs
from parity_models_lab.live.live import live
from parity_models_lab.live.stage import Scene


def serve_own(console: Console, bundle: Path, inputs: Path, port: int) -> None:
    """Show the user's bundle, asked the rows in the file `inputs`."""
    opened = open_bundle(bundle)
    for note in Plan(opened, ServeOptions()).notes:
        typer.echo(f"note: {note}", err=True)
    _serve(console, opened, load_inputs(inputs, opened.manifest.deployed.input.shape), port)


def serve_task(
    console: Console, task: Task, out: Path, port: int, *, seed: int, data_dir: Path | None
) -> None:
    """Show the bundle in the folder `out`, asked the task's test queries; train it if there is
    none."""
    dataset = task.load(data_dir)
    there = out / "bundle"
    if there.exists():
        console.print(f"Using the bundle {there}.")
        bundle = open_bundle(there)
    else:
        # Only now: whoever shows a bundle of before need not wait for PyTorch.
        from parity_models.training import Settings
        from parity_models_lab.demo import train_bundle

        console.print(f"Training on {task.name}, into {there}.")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {out}: {error.strerror}") from error
        bundle = train_bundle(there, task, dataset, Settings(seed=seed))
    _serve(console, gated(bundle, task, dataset, seed), dataset.test.inputs, port)


def gated(bundle: Bundle, task: Task, dataset: Dataset, seed: int = 0) -> Bundle:
    """The bundle, calibrated if it was not, so that the page shows what a gate promises beside what
    it keeps."""
    code = bundle.manifest.code
    if bundle.manifest.calibration or code is None:
        return bundle
    _, held_out = dataset.validation.part(code.k)
    return calibrate_gates(bundle, task.metric, held_out, (), seed)


def _serve(console: Console, bundle: Bundle, inputs: NDArray[Any], port: int) -> None:
    scene = Scene()
    console.print(
        f"Starting both sides: two servers of {scene.workers} instances each.", highlight=False
    )

    async def until_interrupted() -> None:
        async with live(bundle, inputs, scene, port=port) as url:
            console.print(f"Watch it at {url} (Ctrl-C ends it)")
            await asyncio.Event().wait()

    try:
        uvloop.run(until_interrupted())
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(130) from None

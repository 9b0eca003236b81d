"""parm-lab data: the data of tasks, what is here of them and what can be made."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from parity_models.tasks import TASKS, Split, choose_task
from parity_models_lab.cli.options import DataDir
from parity_models_lab.tasks import PAPERS, make_boxes, make_speech
from parity_models_lab.tasks.making import Progress

data = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The data of tasks: what is here, and what can be made.",
)

Out = Annotated[Path, typer.Option(help="The folder to make.", metavar="DIR")]
Seed = Annotated[int, typer.Option(help="Fixes everything that is drawn.", min=0)]


@data.command("list")
def list_tasks(data_dir: DataDir = None) -> None:
    """List the tasks, and say which have their data here."""
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "what", "metric", "found in"):
        table.add_column(heading)
    own = (f"parity_models_lab.tasks:{each.__name__}" for each in PAPERS)
    for task in map(choose_task, [*TASKS.names, *own]):
        table.add_row(task.name, task.about, task.metric, task.find(data_dir) or "not found")
    Console().print(table)
    typer.echo("What a missing one needs: parm-lab data info TASK")


@data.command()
def info(
    task: Annotated[str, typer.Argument(help="A task, or package.module:Class.", metavar="TASK")],
    data_dir: DataDir = None,
) -> None:
    """Read a task's data and say what it holds, or what it needs."""
    chosen = choose_task(task)
    dataset = chosen.load(data_dir)
    splits = (
        ("train", dataset.train),
        ("validation", dataset.validation),
        ("test", dataset.test),
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("task", f"{chosen.name}: {chosen.about}")
    table.add_row("found in", chosen.find(data_dir) or "code of your own")
    table.add_row("metric", chosen.metric)
    for name, split in splits:
        table.add_row(name, _describe(split))
    table.add_row("prediction", f"float32 {dataset.output_shape}")
    if dataset.classes:
        table.add_row("classes", ", ".join(dataset.classes))
    Console().print(table)


@data.command("synth-speech")
def synth_speech(
    out: Out,
    speakers: Annotated[
        int, typer.Option(help="Voices; of ten one is for validation, one for test.", min=3)
    ] = 150,
    takes: Annotated[int, typer.Option(help="Times that each says each word.", min=1)] = 2,
    words: Annotated[
        str | None,
        typer.Option(
            help="Words with commas between them; by default the dataset's thirty.",
            metavar="WORD,...",
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Have espeak-ng say commands, for the speech tasks.

    The folder has the layout of Speech Commands. Accents, voices, pitches, paces and noise vary.
    Then: parm-lab train --task parity_models_lab.tasks:SmallSpeechCommands --data-dir DIR.
    """
    chosen = {} if words is None else {"words": tuple(words.split(","))}
    with _bar("sounds") as progress:
        made = make_speech(
            out, speakers=speakers, takes=takes, seed=seed, progress=progress, **chosen
        )
    typer.echo(f"{made:,} sounds of {speakers} speakers are in {out}")


@data.command("synth-boxes")
def synth_boxes(
    out: Out,
    images: Annotated[int, typer.Option(help="How many; a fifth is for test.", min=10)] = 10_000,
    seed: Seed = 0,
    data_dir: DataDir = None,
) -> None:
    """Place Fashion-MNIST garments on cluttered canvases.

    The folder has the layout of CUB-200-2011. Then: parm-lab train --task
    parity_models_lab.tasks:Localization --network resnet18@0.25 --data-dir DIR.
    """
    with _bar("images") as progress:
        made = make_boxes(out, images=images, seed=seed, data_dir=data_dir, progress=progress)
    typer.echo(f"{made:,} images and their boxes are in {out}")


def _describe(split: Split) -> str:
    return f"{len(split):,} queries, float32 {split.inputs.shape[1:]}"


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    with ExitStack() as stack:
        bar: tqdm | None = None

        def advance(made: int, total: int) -> None:
            nonlocal bar
            if bar is None:  # only now, so that a mistake stands alone
                bar = stack.enter_context(tqdm(total=total, desc=what, unit="", unit_scale=True))
            bar.update(made - bar.n)

        yield advance

"""The command `train`: a model to serve, of labelled queries."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import click
import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from parity_models.bundle.bundle import NewModel, Training, write_bundle
from parity_models.cli.flags import Without
from parity_models.evaluation.judging import evaluate
from parity_models.options import Option, option
from parity_models.progress import Callbacks, progress_bars
from parity_models.tasks.metrics import METRICS, PredictionKind, score
from parity_models.training.device import (
    Rows,
    choose_device,
    computing,
    mirror,
    place,
    predict,
    run_reduced,
)
from parity_models.training.export import WEIGHTS, export, floats
from parity_models.training.fit import Budget, Run, RunOptions
from parity_models.training.network_plans import single_network
from parity_models.training.networks import NETWORKS, Queried
from parity_models.training.teacher import Queries, TrainingOptions
from parity_models.training.train import Trained, check_place
from parity_models_lab.published import as_published
from parity_models_lab.tasks import TASKS, Dataset, Task, find_task

LOSSES: dict[PredictionKind, Callable[[Tensor, Tensor], Tensor]] = {
    "classes": functional.cross_entropy,
    "boxes": partial(functional.smooth_l1_loss, beta=0.05),
    "values": functional.mse_loss,
}
"""The loss for each kind of prediction. Boxes are in shares of an image: an edge that is wrong by
more than a twentieth of it weighs by its distance instead of its square."""


def train(
    task: Annotated[str, Option(f"The task to learn: {', '.join(TASKS)}.", metavar="TASK")],
    out: Annotated[Path, Option("The folder to write.", metavar="DIR")],
    network: str = option(
        "mlp",
        f"One of {', '.join(NETWORKS.names)}, one with a multiple of its channels "
        "(resnet18@0.25), or package.module:name for one of your own.",
        metavar="NETWORK",
    ),
    *,
    options: Annotated[TrainingOptions, Without("output", "metric", "hflip")],
) -> None:
    """Train a model to serve, if you do not have one.

    Writes a bundle without a code: the model as ONNX, its weights, and how it was trained; next to
    it, DIR-inputs.npy, DIR-test.npy and DIR-labels.npy hold the task's queries. With them, `parm
    parity --model DIR --inputs DIR-inputs.npy` makes it resilient. The epoch that does best on a
    validation set is kept. Ctrl-C ends training early and writes the best model so far; a
    checkpoint next to DIR lets you --resume.
    """
    learned = find_task(task)
    dataset = learned.load()
    with progress_bars() as bars:
        trained = train_deployed(learned, dataset, network, out, options, callbacks=bars)
    test = dataset.test
    arrays = {"inputs": dataset.train.inputs, "test": test.inputs, "labels": test.labels}
    for name, rows in arrays.items():
        np.save(trained.path.with_name(f"{trained.path.name}-{name}.npy"), rows)
    evaluate(trained, test.inputs, test.labels, metric=learned.metric).show()
    for sentence in trained.ending:
        click.echo(sentence)


def train_deployed(
    task: Task,
    dataset: Dataset,
    network: str,
    out: Path,
    options: TrainingOptions | None = None,
    *,
    as_in_paper: bool = False,
    callbacks: Callbacks | None = None,
) -> Trained:
    """Train the network called `network` for a task, and write it to `out` as a bundle. If
    `as_in_paper`, it learns with the paper's optimiser and sees nothing mirrored. Raises
    TrainingError for settings that cannot work, and BundleError if `out` cannot hold a bundle."""
    began, options, out = time.monotonic(), options or TrainingOptions(), Path(out).resolve()
    check_place(out)
    device = choose_device(options.device)
    plan = single_network(network, Queried.of(dataset.input_shape), dataset.output_shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        module = place(plan.make(), device)
    recipe = as_published(plan.recipe) if as_in_paper else plan.recipe
    mirrored = recipe.mirror and task.flips
    said: RunOptions = {"network": network, **recipe.options, "mirror": mirrored}
    steps = recipe.steps_per_epoch(len(dataset.train))
    sha256 = queries_of(task, dataset).sha256
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    with computing(recipe.threaded):
        run = Run(
            _Labelled(module, task, dataset, steps, mirrored),
            recipe,
            Budget(options.epochs, options.seconds),
            seed=options.seed,
            checkpoint=checkpoint,
            options={"task": task.name, "inputs": sha256, "seed": options.seed, **said},
            on_progress=(callbacks or Callbacks()).on_progress,
            began=began,
        )
        fitted = run.fit(resume=options.resume)
    training = Training(
        task=task.name,
        inputs=len(dataset.train),
        inputs_sha256=sha256,
        seed=options.seed,
        epochs=fitted.epochs,
        seconds=round(fitted.seconds, 2),
        device=str(device),
        recipe=said,
    )
    weights = {name: value.cpu().contiguous() for name, value in module.state_dict().items()}
    bundle = write_bundle(
        out,
        deployed=NewModel(export(module, [floats(dataset.input_shape)]), network),
        deployed_training=training,
        files={WEIGHTS: save(weights)},
    )
    if not fitted.interrupted:
        checkpoint.unlink(missing_ok=True)
    return Trained(**vars(bundle), fitted=fitted)


def queries_of(task: Task, dataset: Dataset) -> Queries:
    """Return the queries that stand-ins for a task's model learn from; none is left to calibrate
    with, or to test."""
    inputs, held_out = dataset.train.inputs, dataset.validation
    return Queries(inputs, held_out.inputs, held_out.labels, metric=task.metric, hflip=task.flips)


class _Labelled:
    """Fitting a module to labels, scored by the task's metric."""

    def __init__(
        self, module: nn.Module, task: Task, dataset: Dataset, steps: int, mirrored: bool
    ) -> None:
        self.module = module
        self.steps = steps
        self._metric = task.metric
        self._mirrored = mirrored
        self._device = next(module.parameters()).device
        arrays = dataset.train.inputs, dataset.train.labels, dataset.validation.inputs
        tensors = (torch.from_numpy(each).to(self._device) for each in arrays)
        self._inputs, self._labels, self._held_out = tensors
        self._held_out_labels = dataset.validation.labels

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        size, kind = len(self._inputs), METRICS[self._metric].kind
        order = torch.randperm(size, generator=generator).to(self._device)
        coins = (torch.rand(size, generator=generator) < 0.5).to(self._device)
        for rows in order.tensor_split(self.steps):
            queries, labels = self._inputs[rows], self._labels[rows]
            if self._mirrored:
                queries = mirror(queries, coins[rows])
                if kind == "boxes":
                    left, top, right, bottom = labels.unbind(-1)
                    turned = torch.stack([1 - right, top, 1 - left, bottom], dim=-1)
                    labels = torch.where(coins[rows, None], turned, labels)
            yield LOSSES[kind](run_reduced(self.module, Rows((queries,))), labels)

    def score(self) -> float:
        outputs = predict(self.module, Rows((self._held_out,))).cpu().numpy()
        return score(self._metric, outputs, self._held_out_labels)

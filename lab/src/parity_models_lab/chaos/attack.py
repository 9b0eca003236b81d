"""An attack: the effect of one client's inputs on another's reconstructions.

The inputs are absurd, or those that an attacker who has the bundle finds within its envelope. On a
bundle whose slots are not isolated (sum and subtraction), every victim's query shares a group with
one of a partner: an honest one, or an attacker. Each reconstruction of a victim's prediction is
compared with the model's own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parity_models.codes import CodeSpec
from parity_models.models.bundle import Bundle
from parity_models.models.envelope import Envelope
from parity_models.models.onnx_model import OnnxModel
from parity_models.training import TrainingOptions, train
from parity_models_lab.deployed import queries_of, train_deployed
from parity_models_lab.results import Row
from parity_models_lab.tasks import Task

Array = NDArray[Any]

CODE = CodeSpec("sum", "subtraction", 2)
NETWORK = "mlp"
CONSTANTS = (5.0, 100.0, 1e30, 3e38)
HONEST = "honest partner"
SEARCHED = "searched within the envelope"
STARTS, STEPS = 4, 400
SPREAD, PARTS = (0.05, 0.2, 0.5), (0.05, 0.2, 1.0)
"""The size of the attacker's steps, and the shares of values that they change."""


def run_attack(
    task: Task,
    folder: Path,
    options: TrainingOptions,
    tell: Callable[[str], None],
    steps: int = STEPS,
) -> list[Row]:
    """Train a bundle, and reconstruct its test set next to each partner.

    Args:
        task: The task whose queries are attacked.
        folder: For bundles.
        options: Of both trainings; the seed fixes queries as well.
        tell: Progress callback.
        steps: Steps of the attacker's search, from each of STARTS honest queries.

    Returns:
        A row for each partner: the agreement of victims' reconstructions with the model, with the
        bundle's envelope and without, and the share of the partner's queries that the envelope
        keeps out of groups.

    """
    folder.mkdir(parents=True, exist_ok=True)
    # Threads would wait for each other longer than a step of so small a network takes.
    torch.set_num_threads(1)
    tell("training a deployed and a parity model")
    data = task.load()
    deployed = train_deployed(task, data, NETWORK, folder / "deployed", options)
    bundle = train(deployed, queries_of(task, data), folder / "bundle", None, CODE, options)
    envelope = bundle.envelope()
    rng = np.random.default_rng(options.seed)
    tried, victims = np.array_split(rng.permutation(data.test.inputs), [len(data.test.inputs) // 3])
    rows: list[Row] = []
    tell("searching within the envelope")
    found = [search(bundle, tried, data.train.inputs, rng, steps) for _ in range(STARTS)]
    beside = partners(victims, len(victims), rng)
    beside[SEARCHED] = np.concatenate(found)[rng.integers(STARTS, size=len(victims))]
    for name, queries in beside.items():
        agreement, kept_out = compute(bundle, envelope, victims, queries)
        without, _ = compute(bundle, None, victims, queries)
        row = {"no envelope": without, "envelope": agreement, "kept out": kept_out}
        rows.append({"partner": name, **row})
        tell(f"{name}: {agreement:.1%} agree, {without:.1%} without an envelope")
    return rows


def partners(rows: Array, count: int, rng: np.random.Generator) -> dict[str, Array]:
    """Draw the queries (count, *shape) of an honest partner from `rows`, and make those of each
    attacker."""
    shape = (count, *rows.shape[1:])
    low, high = float(rows.min()), float(rows.max())
    return {
        HONEST: rows[rng.integers(len(rows), size=count)],
        **{f"all {value:g}": np.full(shape, value, rows.dtype) for value in CONSTANTS},
        "noise in range": rng.uniform(low, high, shape).astype(rows.dtype),
        "least or most at random": np.where(rng.random(shape) < 0.5, low, high).astype(rows.dtype),
    }


def search(
    bundle: Bundle, victims: Array, honest: Array, rng: np.random.Generator, steps: int
) -> Array:
    """Change a query of `honest` (n, *shape) at random, for so many steps, where the envelope still
    takes it and no more of the victims' reconstructions agree. Return what it is then: (1, *shape).
    """
    envelope = bundle.envelope()
    best = honest[rng.integers(len(honest), size=1)]
    agreement, _ = compute(bundle, envelope, victims, np.repeat(best, len(victims), axis=0))
    for _ in range(steps):
        changed = rng.random(best.shape) < rng.choice(PARTS)
        step = rng.normal(size=best.shape) * rng.choice(SPREAD) * changed
        query = (best + step).astype(best.dtype)
        if not _unlike(envelope, query)[0]:
            found, _ = compute(bundle, envelope, victims, np.repeat(query, len(victims), axis=0))
            if found <= agreement:
                best, agreement = query, found
    return best


def compute(
    bundle: Bundle, envelope: Envelope | None, victims: Array, beside: Array
) -> tuple[float, float]:
    """Reconstruct `victims` next to others, both (n, *shape), in either slot.

    Where the envelope keeps the other query out, the next victim takes its place.

    Returns:
        The agreement of reconstructions with the model, and the share of `beside` kept out.

    """
    code = bundle.code()
    assert code is not None
    model, parity = OnnxModel(bundle.deployed_path), OnnxModel(bundle.parity_paths[0])
    name = bundle.manifest.deployed.signature.inputs[0].name
    joining = ~_unlike(envelope, victims)
    held = _unlike(envelope, beside)
    beside = np.where(
        held.reshape(-1, *[1] * (victims.ndim - 1)), np.roll(victims, 1, axis=0), beside
    )
    right = _output(model, victims).argmax(axis=-1)
    others = _output(model, beside)
    agreed = []
    with np.errstate(over="ignore", invalid="ignore"):
        for slot in range(2):
            group = [victims, beside] if slot == 0 else [beside, victims]
            predictions = [None, others] if slot == 0 else [others, None]
            parities = code.encode([{name: each} for each in group])[0]
            decoded = code.decode(predictions, [_output(parity, parities[name])])[slot]
            answers = np.ones(len(decoded), np.bool_)
            if envelope is not None:
                answers = ~envelope.impossible(decoded)
            agreed.append((decoded.argmax(axis=-1) == right)[joining & answers])
    return float(np.concatenate(agreed).mean()), float(held.mean())


def _output(model: OnnxModel, rows: Array) -> Array:
    """Return the model's only output, which may be NaN or infinite for an attacker's queries."""
    (output,) = model({model.signature.inputs[0].name: rows}).values()
    return output


def _unlike(envelope: Envelope | None, rows: Array) -> NDArray[np.bool_]:
    if envelope is None:
        return np.zeros(len(rows), np.bool_)
    return envelope.unlike({envelope.inputs[0].name: rows})

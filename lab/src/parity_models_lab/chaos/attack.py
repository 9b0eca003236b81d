"""The command `attack`: the effect of one client's inputs on another's reconstructions.

The inputs are absurd, or those that an attacker who has the bundle finds within its envelope. On a
bundle whose slots are not isolated (sum and subtraction), every victim's query shares a group with
one of a partner: an honest one, or an attacker. Each reconstruction of a victim's prediction is
compared with the model's own.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parity_models.bundle.bundle import Bundle
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.codes import CodeSpec
from parity_models.training import TrainingOptions, train
from parity_models_lab.chaos.server import RESULTS
from parity_models_lab.deployed import queries_of, train_deployed
from parity_models_lab.results import OutFolder, Row, check_out, report
from parity_models_lab.tasks import find_task

Array = NDArray[Any]

CODE = CodeSpec("sum", "subtraction", 2)
HONEST = "honest partner"
SEARCHED = "searched within the envelope"
STARTS, STEPS = 4, 400
"""Honest queries from which the attacker's search begins, and its steps from each."""
SPREAD, PARTS = (0.05, 0.2, 0.5), (0.05, 0.2, 1.0)
"""The size of the attacker's steps, and the shares of values that they change."""


def attack(out: OutFolder = RESULTS) -> None:
    """Attack other clients' reconstructions by absurd inputs, and by searched ones.

    The bundle's slots are not isolated. Victims' reconstructions are compared with the model's
    predictions, next to honest partners and attackers, with the bundle's envelope and without.
    `kept out` is the share of the partner's queries that the envelope keeps out of groups.
    """
    check_out(out)
    folder, task, options = out / "attack", find_task("digits"), TrainingOptions()
    # Threads would wait for each other longer than a step of so small a network takes.
    torch.set_num_threads(1)
    data = task.load()
    deployed = train_deployed(task, data, "mlp", folder / "deployed", options)
    bundle = train(deployed, queries_of(task, data), folder / "bundle", None, CODE, options)
    victims = _Victims(bundle)
    rng = np.random.default_rng(0)
    tried, rows = np.array_split(rng.permutation(data.test.inputs), [len(data.test.inputs) // 3])
    found = [victims.search(tried, data.train.inputs, rng) for _ in range(STARTS)]
    count, low, high = len(rows), float(rows.min()), float(rows.max())
    partners = {
        HONEST: rows[rng.integers(count, size=count)],
        **{f"all {value:g}": np.full_like(rows, value) for value in (5.0, 100.0, 1e30, 3e38)},
        "noise in range": rng.uniform(low, high, rows.shape).astype(rows.dtype),
        "least or most at random": rng.choice([low, high], rows.shape).astype(rows.dtype),
        SEARCHED: np.concatenate(found)[rng.integers(STARTS, size=count)],
    }
    agreements: list[Row] = [
        {
            "partner": name,
            "no envelope": victims.agreement(rows, queries, envelope=False),
            "envelope": victims.agreement(rows, queries),
            "kept out": float(victims.unlike(queries).mean()),
        }
        for name, queries in partners.items()
    ]
    title = "Agreement of victims' reconstructions with the model"
    report(title, agreements, out / "attack.json")


class _Victims:
    """Reconstructions of the predictions of victims of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        code, envelope = bundle.code(), bundle.envelope()
        assert code is not None
        assert envelope is not None
        self._code, self._envelope = code, envelope
        files = (bundle.manifest.deployed, bundle.manifest.parity[0])
        self._model, self._parity = (bundle.pinned(each).load() for each in files)
        self._name = bundle.manifest.deployed.signature.inputs[0].name

    def search(self, rows: Array, honest: Array, rng: np.random.Generator) -> Array:
        """Change a query of `honest` (n, *shape) at random, where the envelope still takes it and
        no more reconstructions of `rows` agree. Return what it is then: (1, *shape)."""
        best = honest[rng.integers(len(honest), size=1)]
        lowest = self.agreement(rows, np.repeat(best, len(rows), axis=0))
        for _ in range(STEPS):
            changed = rng.random(best.shape) < rng.choice(PARTS)
            step = rng.normal(size=best.shape) * rng.choice(SPREAD) * changed
            query = (best + step).astype(best.dtype)
            if not self.unlike(query)[0]:
                found = self.agreement(rows, np.repeat(query, len(rows), axis=0))
                if found <= lowest:
                    best, lowest = query, found
        return best

    def agreement(self, rows: Array, others: Array, *, envelope: bool = True) -> float:
        """Reconstruct `rows` next to others, both (n, *shape). Return the agreement with the model.
        Where the envelope keeps the other query out, the next victim takes its place."""
        counts = np.ones(len(rows), np.bool_)
        if envelope:
            held = self.unlike(others).reshape(-1, *[1] * (rows.ndim - 1))
            others = np.where(held, np.roll(rows, 1, axis=0), others)
            counts = ~self.unlike(rows)
        with np.errstate(over="ignore", invalid="ignore"):
            queries = self._code.encode([{self._name: each} for each in (rows, others)])[0]
            outputs = [self._run(self._parity, queries[self._name])]
            decoded = self._code.decode([None, self._run(self._model, others)], outputs)[0]
        if envelope:
            counts &= ~self._envelope.impossible(decoded)
        right = self._run(self._model, rows).argmax(axis=-1)
        return float((decoded.argmax(axis=-1) == right)[counts].mean())

    def _run(self, model: OnnxModel, rows: Array) -> Array:
        """Return the only output, which may be NaN or infinite for an attacker's queries."""
        (output,) = model({self._name: rows}).values()
        return output

    def unlike(self, rows: Array) -> NDArray[np.bool_]:
        """Return which queries (n, *shape) the envelope keeps out of groups."""
        return self._envelope.unlike({self._name: rows})

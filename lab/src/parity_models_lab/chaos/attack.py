"""An attack: what one client's absurd inputs do to another's answers, in a real server.

On a bundle whose slots are not isolated (sum and subtraction), victims' queries arrive in turn with
those of a partner: an honest one, or an attacker. Half of the deployed model's units are slow, so
that many answers are reconstructions. Each of these is compared with what F says. So that nothing
hangs on luck, the same is computed without a server for every victim in every slot.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parity_models.codes import CodeSpec
from parity_models.emulation import Constant, Empirical, FaultPlan
from parity_models.load.served import served
from parity_models.load.target import NoAnswerError, Target, target
from parity_models.models.bundle import Bundle, write_bundle
from parity_models.models.envelope import Envelope
from parity_models.models.onnx_model import OnnxModel
from parity_models.scheduling import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Parity
from parity_models.serving.server import ServeOptions
from parity_models.tasks import Task
from parity_models.training import TrainingOptions, train
from parity_models_lab.deployed import queries_of, train_deployed
from parity_models_lab.results import Row

Array = NDArray[Any]
Tell = Callable[[str], None]

CODE = CodeSpec("sum", "subtraction", 2)
NETWORK = "mlp"
CONSTANTS = (5.0, 100.0, 1e30, 3e38)
HONEST = "honest partner"
RATE = 40.0
"""Victims a second; as many partners."""
INSTANCES = 6
FAST, SLOW = 0.001, 0.1
"""Seconds that the deployed model takes, each as often as the other."""
GROUP_WAIT = 0.05


def run_attack(
    task: Task, folder: Path, *, victims: int, seed: int = 0, seconds: float | None, tell: Tell
) -> list[Row]:
    """Train a bundle, serve it with and without its envelope, and ask beside each partner.

    Args:
        task: Whose queries are asked.
        folder: For bundles.
        victims: Queries beside each partner.
        seed: Fixes weights and queries.
        seconds: Of training of each model; None: as long as it takes.
        tell: Progress callback.

    Returns:
        A row for each envelope and partner. `computed` is the agreement with the model of all
        victims' reconstructions, without a server; `kept out` the share of the partner's queries
        that the envelope keeps out of groups; `served` the agreement of so many `reconstructed`
        answers of the server; `unanswered` counts requests, the partner's among them.

    """
    folder.mkdir(parents=True, exist_ok=True)
    tell("training a deployed and a parity model")
    with_envelope, rows = _train(task, folder, TrainingOptions(seed=seed, seconds=seconds))
    without = without_envelope(with_envelope, folder / "without")
    found: list[Row] = []
    for envelope, bundle in (("no", without), ("yes", with_envelope)):
        for row in asyncio.run(_beside_each(bundle, rows, victims, seed)):
            found.append({"envelope": envelope, **row})
            tell(f"envelope {envelope}, {row['partner']}: {row['served']} agree")
    return found


def partners(rows: Array, count: int, rng: np.random.Generator) -> dict[str, Array]:
    """The queries (count, *shape) of an honest partner, drawn from `rows`, and of each attacker on
    a model that takes such inputs."""
    shape = (count, *rows.shape[1:])
    low, high = float(rows.min()), float(rows.max())
    return {
        HONEST: rows[rng.integers(len(rows), size=count)],
        **{f"all {value:g}": np.full(shape, value, rows.dtype) for value in CONSTANTS},
        "noise in range": rng.uniform(low, high, shape).astype(rows.dtype),
        "least or most at random": np.where(rng.random(shape) < 0.5, low, high).astype(rows.dtype),
    }


def compute(bundle: Bundle, victims: Array, beside: Array) -> tuple[float, float]:
    """Agreement of reconstructions of `victims` `beside` others (both (n, *shape)), over both
    slots; and the share of those that the bundle's envelope keeps out.

    A victim has the next victim beside it if the other is kept out.
    """
    code = bundle.code()
    assert code is not None
    model, parity = OnnxModel(bundle.deployed_path), OnnxModel(bundle.parity_paths[0])
    taken = bundle.manifest.deployed.signature.inputs[0].name
    envelope = bundle.envelope()
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
            parities = code.encode([{taken: each} for each in group])[0]
            decoded = code.decode(predictions, [_output(parity, parities[taken])])[slot]
            answers = np.ones(len(decoded), np.bool_)
            if envelope is not None:
                answers = ~envelope.impossible(decoded)
            agreed.append((decoded.argmax(axis=-1) == right)[joining & answers])
    return float(np.concatenate(agreed).mean()), float(held.mean())


def _output(model: OnnxModel, rows: Array) -> Array:
    """The model's only output, which may be NaN or infinite for an attacker's queries."""
    (output,) = model({model.signature.inputs[0].name: rows}).values()
    return output


def _unlike(envelope: Envelope | None, rows: Array) -> NDArray[np.bool_]:
    if envelope is None:
        return np.zeros(len(rows), np.bool_)
    return envelope.unlike({envelope.inputs[0].name: rows})


def _train(task: Task, folder: Path, options: TrainingOptions) -> tuple[Bundle, Array]:
    """A bundle that is not isolated, and honest queries that it has not seen."""
    # Threads would wait for each other longer than a step of so small a network takes.
    torch.set_num_threads(1)
    data = task.load()
    deployed = train_deployed(task, data, NETWORK, folder / "deployed", options)
    bundle = train(deployed, queries_of(task, data), folder / "with", None, CODE, options)
    assert not bundle.isolated
    return bundle, data.test.inputs


def without_envelope(bundle: Bundle, folder: Path) -> Bundle:
    """The same bundle, as it was before there were envelopes, in `folder`."""
    manifest = bundle.manifest
    return write_bundle(
        folder,
        deployed=bundle.stored(manifest.deployed),
        parity=[bundle.stored(parity) for parity in manifest.parity],
        code=manifest.code,
        name=manifest.name,
    )


async def _beside_each(bundle: Bundle, rows: Array, victims: int, seed: int) -> list[Row]:
    options = ServeOptions(
        policy=PolicyChoice(Parity.name, {"max_group_wait": GROUP_WAIT}),
        instances=INSTANCES,
        port=0,
        faults=FaultPlan(
            seed=seed,
            service_times={"deployed": Empirical((FAST, SLOW)), "parity-0": Constant(FAST)},
        ),
    )
    rng = np.random.default_rng(seed)
    asked = rows[rng.integers(len(rows), size=victims)]
    right = _output(OnnxModel(bundle.deployed_path), asked).argmax(axis=-1)
    served_beside = partners(rows, victims, rng)
    computed_beside = partners(rows, len(rows), rng)
    result: list[Row] = []
    async with served(bundle.path, options) as server:
        server.begin_faults()
        async with target(server.url, bundle.manifest.name) as asking:
            for name, queries in served_beside.items():
                computed, held = compute(bundle, rows, computed_beside[name])
                agreed, reconstructed, unanswered = await _ask(asking, asked, queries, right)
                result.append(
                    {
                        "partner": name,
                        "computed": computed,
                        "kept out": held,
                        "served": agreed / reconstructed if reconstructed else None,
                        "reconstructed": reconstructed,
                        "unanswered": unanswered,
                    }
                )
    return result


async def _ask(
    asking: Target, victims: Array, partners: Array, right: Array
) -> tuple[int, int, int]:
    """Reconstructions that agreed with F, reconstructions, and requests without an answer."""
    loop = asyncio.get_running_loop()
    start = loop.time() + 0.1
    rows = [row for pair in zip(victims, partners, strict=True) for row in pair]
    (takes,) = asking.model.inputs
    sends = [asking.prepare({takes.name: row[None]}) for row in rows]

    async def ask(number: int) -> bool | None:
        """Is it a reconstruction that agrees? None: of F's own, or a partner's."""
        pair, attacker = divmod(number, 2)
        # The partner comes right behind its victim.
        await asyncio.sleep(start + pair / RATE + attacker * 1e-3 - loop.time())
        answer = await sends[number](_nothing)
        if attacker or answer.sources[0] is not Source.RECONSTRUCTION:
            return None
        return bool(answer.outputs[0].argmax() == right[pair])

    ended = await asyncio.gather(*map(ask, range(len(rows))), return_exceptions=True)
    for end in ended:
        if isinstance(end, BaseException) and not isinstance(end, NoAnswerError):
            raise end
    told = [end for end in ended if isinstance(end, bool)]
    return sum(told), len(told), sum(isinstance(end, NoAnswerError) for end in ended)


def _nothing() -> None:
    """Nobody asks when a request goes out."""

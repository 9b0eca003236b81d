"""The public API as programs use it, for type checkers; nothing here runs.

A comment "type: ignore" marks a mistake that checkers must find: an unneeded one is an error.
"""

from pathlib import Path
from typing import Any, assert_type

import numpy as np

import parity_models as pm

rows = np.zeros((3000, 6), np.float32)


def protect() -> None:
    bundle = pm.protect("model.onnx", rows, out="bundle", minutes=2, differ=0.01, agreement=None)
    assert_type(bundle, pm.Protected)
    pm.protect("model.onnx", rows, out="bundle", options=pm.SearchOptions(minutes=1))
    pm.protect("model.onnx", rows, out="bundle", minute=2)  # type: ignore[call-arg]
    pm.protect("model.onnx", rows, out="bundle", minutes="2")  # type: ignore[arg-type]
    pm.protect("model.onnx", rows)  # type: ignore[call-arg]


def train(factory: Any) -> None:
    coded = pm.train_parity("model.onnx", "inputs.npy", out="bundle", network="mlp", epochs=20)
    assert_type(coded, pm.Trained)
    both = pm.train_backup(coded, {"input": rows}, out=Path("bundle"), network=factory, seed=3)
    assert_type(pm.calibrate(both, rows, agreement=(0.93,)), pm.Bundle)
    assert_type(pm.evaluate("bundle", "inputs.npy"), pm.Evaluation)
    pm.train_backup("model.onnx", rows, out="bundle")  # type: ignore[call-arg]


def size(bundle: pm.Bundle) -> None:
    assert_type(pm.plan(service_time=0.02, rate=200, p99=0.05), pm.Plans)
    assert_type(pm.plan(bundle, options=pm.Goal(rate=200, p99=0.05)), pm.Plans)
    assert_type(pm.simulate(bundle, rate=200, policies=["hedging", "adaptive"]), pm.Comparison)
    pm.simulate(bundle, p99=0.05)  # type: ignore[call-arg]


async def serve(bundle: pm.Bundle) -> None:
    with pm.serve(bundle, instances=4, policy="hedging@hedge-delay=5ms") as server:
        assert_type(server.predict(rows[:2]).sources, tuple[str, ...])
    async with pm.serve("bundle", pm.ServeOptions(port=None)) as other:
        await other.predict(rows[:2])
    pm.serve(bundle, agreement=None)
    pm.serve(bundle, agreement="none")  # type: ignore[arg-type]
    pm.serve(bundle, extra_instance=1)  # type: ignore[call-arg]


async def late(call: Any) -> None:
    answer = await pm.Late("bundle", differ=0.001)(call, rows)
    assert_type(answer, pm.LateAnswer)
    assert_type(answer.source, pm.Source)
    form = pm.Form(lambda value: value["label"], lambda label: {"label": label})
    late = pm.Late(servers=["a", "b"], form=form, on_event=lambda event: event.source)
    assert_type(late.call(call, lambda: rows, kind="rerank"), pm.LateAnswer)
    with pm.testing("model", "backup"):
        await late(call, rows, form=form)
    await late(call, others=[call])  # type: ignore[call-arg]

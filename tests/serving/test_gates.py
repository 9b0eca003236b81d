"""A server compares its reconstructions with the model while it serves, and counts correctly."""

import logging
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from parity_models.roles import DEPLOYED, Source
from parity_models.scheduling.policies import Adaptive, ApproximateBackup, Parity, Pool, StandIns
from parity_models.serving.frontend import Frontend
from parity_models.serving.metrics import Metrics
from parity_models.tensors.signature import Batch
from parity_models.training.export import floats
from parity_models.trust.envelope import Envelope
from parity_models.trust.evidence import DoubtCurve
from parity_models.trust.gate import Calibration, Gate, GateLevel, confidences
from parity_models.trust.gates import OutputGate
from puppet_engine import CODE, WEIGHTS, Puppet, asked, metric, queries, serving, settle, sources

ONE_IN = 20
DEDICATED = Parity.Options(pool=Pool.DEDICATED)
A, B = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]], np.float32)


def counted(metrics: Metrics, given: str, source: str = "reconstruction") -> tuple[float, float]:
    """Return the numbers of outputs that were compared, and that disagreed."""
    of, labels = metrics.registry.get_sample_value, {"source": source, "given": given}
    compared = of("parm_stand_in_answers_compared_total", labels)
    return compared or 0.0, of("parm_stand_in_answers_disagreed_total", labels) or 0.0


CURVE = DoubtCurve((-50.0, 0.0, 1.0), (0.2, 0.1, 0.01), 1000)
CALIBRATED = Calibration("classes", 0.0, "scores", 1000, 0.05, curve=CURVE)
UNGATED = OutputGate(dict.fromkeys((Source.RECONSTRUCTION, Source.BACKUP), Gate(CALIBRATED)))
QUIET: dict[str, Any] = {"compare": 0.0}


@pytest.mark.parametrize("compare", [0.0, 1.0])
async def test_queries_in_time_are_compared_as_often_as_the_operator_says(compare: float) -> None:
    policy = Adaptive(StandIns(None, True), Adaptive.Options(differ=0.0))  # nothing is asked first
    async with serving(policy, 2, 0, gate=UNGATED, compare=compare) as (frontend, engine):
        for number in range(20):
            request = await asked(frontend.infer(queries(1)))
            engine.finish_all("deployed")
            assert (await request).sources == [Source.MODEL]
            for unit in [*engine.units]:  # the output is wrong, now and then
                engine.finish(unit, -np.stack(unit.rows) @ WEIGHTS if number == 7 else None)
        assert counted(frontend.metrics, "in time", "backup") == (20 * compare, compare)
        assert counted(frontend.metrics, "late", "backup") == (0, 0)


def chosen(threshold: float, level: float = 0.99) -> Gate:
    reached = GateLevel(level, threshold, 0.8, level)
    known = Calibration("classes", 0.0, "scores", 1000, 0.05, (reached,), curve=CURVE)
    return Gate(known, level, reached)


def by_confidence(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """The rows, the surest first, and a confidence that the first half has."""
    sure = confidences("scores", rows @ WEIGHTS)
    order = np.argsort(-sure)
    return rows[order], float(sure[order[len(rows) // 2 - 1 : len(rows) // 2 + 1]].mean())


async def test_an_unsure_reconstruction_answers_no_query() -> None:
    rows, threshold = by_confidence(queries(4))
    gate = OutputGate({Source.RECONSTRUCTION: chosen(threshold)})
    async with serving(Parity(CODE, DEDICATED), 4, gate=gate) as (frontend, engine):
        sure = await sources(frontend, engine, rows[[0, 1]])
        assert sure == [Source.RECONSTRUCTION, Source.MODEL]
        assert await sources(frontend, engine, rows[[3, 0]]) == [Source.MODEL] * 2
        refused = "parm_stand_in_answers_refused_total"
        assert metric(frontend, refused, source="reconstruction", reason="gate") == 1
        assert metric(frontend, "parm_gate_agreement", source="reconstruction") == 0.99


async def test_an_unsure_backup_answers_no_query() -> None:
    rows, threshold = by_confidence(queries(4))
    gate = OutputGate({Source.BACKUP: chosen(threshold)})
    async with serving(ApproximateBackup(), 4, 4, gate=gate) as (frontend, engine):
        request = await asked(frontend.infer(rows[[0, 3]]))
        engine.finish_all("backup")
        await settle()
        assert not request.done()
        engine.finish_all("deployed")
        assert (await request).sources == [Source.BACKUP, Source.MODEL]
        assert counted(frontend.metrics, "late", "backup") == (1, 0), "the first is audited"


async def test_a_backup_s_answers_are_compared_with_the_model_s() -> None:
    config: dict[str, Any] = {"compare_one_in": ONE_IN, **QUIET}
    async with serving(ApproximateBackup(), 1, 1, gate=UNGATED, **config) as (frontend, engine):
        # The model was first, and now and then the backup runs on.
        for _ in range(2 * ONE_IN):
            request = await asked(frontend.infer(queries(1)))
            backup, deployed = sorted(engine.units, key=lambda unit: unit.role)
            engine.finish(deployed)
            await request
            if engine.log[-1][1] == "cancel":
                engine.fail(backup, "cancelled")
            else:
                engine.finish(backup)
        assert counted(frontend.metrics, "late", "backup") == (2, 0)


async def test_an_output_that_is_no_number_is_no_comparison() -> None:
    config: dict[str, Any] = {"compare_one_in": 1, **QUIET}
    async with serving(ApproximateBackup(), 1, 1, gate=UNGATED, **config) as (frontend, engine):
        request = await asked(frontend.infer(queries(1)))
        backup, deployed = sorted(engine.units, key=lambda unit: unit.role)
        engine.finish(backup, np.full((1, 3), np.nan, np.float32))
        engine.finish(deployed)
        assert (await request).sources == [Source.MODEL]
        assert counted(frontend.metrics, "late", "backup") == (0, 0)


async def compared(frontend: Frontend, engine: Puppet, wrong: bool) -> None:
    """A group whose predictions are both here before its parity output, which may be wrong."""
    rows = queries(2)
    request = await asked(frontend.infer(rows))
    one, other, parity = engine.units
    engine.finish(one)
    engine.finish(other)
    await request
    # Whatever is subtracted from it, what is left is of a class that neither query has.
    neither = {0, 1, 2} - set((rows @ WEIGHTS).argmax(axis=1))
    output = 100 * np.eye(3, dtype=np.float32)[[neither.pop()]]
    engine.finish(parity, output if wrong else None)


def is_open(frontend: Frontend) -> float:
    return metric(frontend, "parm_gate_open", source="reconstruction")


async def test_a_gate_steps_back_and_opens_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gate = OutputGate({Source.RECONSTRUCTION: chosen(-100.0, level=0.9)})
    config: dict[str, Any] = {"compare_one_in": 1, **QUIET}
    turned = {"source": "reconstruction", "to": "back"}
    async with serving(Parity(CODE, DEDICATED), gate=gate, **config) as (frontend, engine):
        assert is_open(frontend)
        assert metric(frontend, "parm_gate_coverage", source="reconstruction") == 0.8
        assert await sources(frontend, engine) == [Source.RECONSTRUCTION, Source.MODEL]
        for _ in range(40):
            if is_open(frontend):
                await compared(frontend, engine, wrong=True)
        assert not is_open(frontend)
        assert "the gate of the reconstruction stepped back, as its outputs for late" in caplog.text
        assert metric(frontend, "parm_gate_turns_total", **turned) == 1
        assert frontend.ready
        assert await sources(frontend, engine) == [Source.MODEL] * 2
        refused = "parm_stand_in_answers_refused_total"
        assert metric(frontend, refused, source="reconstruction", reason="closed") == 1
        for _ in range(400):
            if not is_open(frontend):
                await compared(frontend, engine, wrong=False)
        assert metric(frontend, "parm_gate_turns_total", **(turned | {"to": "open"})) == 1
        assert "the gate of the reconstruction opened further" in caplog.text
        assert await sources(frontend, engine) == [Source.RECONSTRUCTION, Source.MODEL]


@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_a_query_that_would_harm_other_reconstructions_is_served_exact(value: float) -> None:
    spoilt = queries(2)
    spoilt[1, 3] = value
    async with serving(Parity(CODE), instances=3) as (frontend, engine):
        request = await asked(frontend.infer(spoilt))
        assert [role for _, role in engine.log] == [DEPLOYED, DEPLOYED]  # no group, no parity
        engine.finish_all()
        answers = await request
        assert answers.sources == [Source.MODEL] * 2
        assert not np.isfinite(answers.outputs[1]).all()
        assert metric(frontend, "parm_queries_unlike_total") == 1


class Positive:
    """An envelope of inputs above 0, and outputs below 100."""

    inputs = (floats((2,)),)

    def unlike(self, queries: Batch) -> NDArray[np.bool_]:
        return np.asarray(~(queries["input"] > 0).all(axis=1))

    def impossible(self, outputs: NDArray[Any]) -> NDArray[np.bool_]:
        return np.asarray(~(outputs < 100).all(axis=1))


POSITIVE = OutputGate(envelope=cast(Envelope, Positive()))


async def test_queries_unlike_those_that_stand_ins_learned_from_join_no_group() -> None:
    rows = np.abs(queries(3)) + 0.1
    rows[1, 0] = -1e30
    async with serving(Parity(CODE), 4, gate=POSITIVE) as (frontend, engine):
        request = await asked(frontend.infer(rows))
        first, unlike, other, parity = engine.units
        np.testing.assert_allclose(parity.rows[0], rows[0] + rows[2])
        for unit in (unlike, other, parity):
            engine.finish(unit)
        assert (await request).sources == [Source.RECONSTRUCTION, Source.MODEL, Source.MODEL]
        engine.finish(first)


async def test_a_reconstruction_beyond_the_model_s_outputs_answers_no_query() -> None:
    rows = np.abs(queries(2)) + 0.1
    async with serving(Parity(CODE), gate=POSITIVE) as (frontend, engine):
        request = await asked(frontend.infer(rows))
        late, other, parity = engine.units
        engine.finish(other)
        engine.finish(parity, np.full((1, 3), 1e6, np.float32))
        await settle()
        assert not request.done()
        engine.finish(late)
        assert (await request).sources == [Source.MODEL] * 2
        assert metric(frontend, "parm_stand_in_outputs_impossible_total") == 1

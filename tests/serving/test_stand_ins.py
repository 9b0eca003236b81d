"""What serving says of its reconstructions, live, is counted where it can be known, and right."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parity_models.codes import Code, CodeSpec
from parity_models.scheduling import Parity, Run
from parity_models.scheduling.policies import Pool
from parity_models.serving.frontend import Frontend
from parity_models.serving.in_flight import Made
from parity_models.serving.metrics import Metrics
from parity_models.serving.stand_ins import StandIns
from parity_models.trust.gates import OutputGate
from puppet_engine import CODE, asked, queries, serving

SEPARATE = Code(CodeSpec("stack", "separate", 2), (6,), (3,))
ONE_IN = 20
DEDICATED = Parity.Options(pool=Pool.DEDICATED)
A, B = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]], np.float32)


def made(*outputs: NDArray[Any] | None) -> list[Made | None]:
    return [None if output is None else Made(output, "a") for output in outputs]


def comparing(
    code: Code, one_in: int = 1, told: list[tuple[str, bool]] | None = None
) -> tuple[StandIns, Metrics]:
    metrics, told = Metrics(), [] if told is None else told
    stand_ins = StandIns(
        code,
        OutputGate(),
        metrics,
        refuses=lambda query, source: False,
        compared=lambda *about: told.append(about),
        gate_turned=lambda source, is_open: None,
        one_in=one_in,
    )
    return stand_ins, metrics


def counted(metrics: Metrics) -> tuple[float, float, float]:
    """How many were compared, how many disagreed, and the sum of their errors."""
    of = metrics.registry.get_sample_value
    names = ("reconstructions_compared_total", "reconstructions_disagreed_total")
    compared, disagreed = (of(f"parm_{name}") or 0.0 for name in names)
    return compared, disagreed, of("parm_reconstruction_error_sum") or 0.0


def test_what_is_here_is_compared_with_what_would_replace_it() -> None:
    comparison, metrics = comparing(SEPARATE)
    parity_output = np.stack([A + np.array([0, 3, 0], np.float32), B])
    comparison.group_over(1, made(A, None), made(parity_output))
    assert counted(metrics) == pytest.approx((1, 1, 3 / np.linalg.norm(A)))
    comparison.group_over(2, made(A, B), made(parity_output))
    assert counted(metrics)[:2] == (3, 2)
    comparison.group_over(3, made(A, B), made(None))
    comparison.group_over(4, made(None, None), made(parity_output))
    assert counted(metrics)[:2] == (3, 2)


def test_one_group_in_many_that_have_a_parity_output_is_compared() -> None:
    comparison, metrics = comparing(CODE, one_in=ONE_IN)
    for group in range(3 * ONE_IN):
        comparison.group_over(2 * group, made(A, B), made(None))
        comparison.group_over(2 * group + 1, made(A, B), made(A + B))
    assert counted(metrics)[0] == 3 * 2


def test_subtraction_is_compared_only_where_the_others_are_here() -> None:
    comparison, metrics = comparing(CODE)
    comparison.group_over(1, made(A, None), made(A + B))
    assert counted(metrics)[0] == 0
    comparison.group_over(2, made(A, B), made(A + B))
    assert counted(metrics) == pytest.approx((2, 0, 0), abs=1e-6)


def test_a_parity_unit_that_runs_on_is_compared_with_the_predictions_of_its_group() -> None:
    comparison, metrics = comparing(CODE)
    comparison.sample(Run("b", 20, "parity-0", (20,)), {})
    comparison.group_over(20, made(A, B), made(None))
    comparison.finished(0, Run("b", 7, "parity-0", (7,)), A[None])
    assert counted(metrics)[0] == 0
    comparison.finished(0, Run("b", 20, "parity-0", (20,)), (A + B)[None])
    assert counted(metrics)[0] == 2
    comparison.sample(Run("b", 40, "parity-0", (40,)), {})
    comparison.lost(40)
    comparison.finished(0, Run("b", 40, "parity-0", (40,)), A[None])
    assert counted(metrics)[0] == 2


async def answer_group(frontend: Frontend, engine: Any) -> NDArray[np.float32]:
    """A group whose predictions are all here before its parity output."""
    rows = queries(2)
    request = await asked(frontend.infer(rows))
    for unit in [unit for unit in engine.units if unit.role == "deployed"]:
        engine.finish(unit)
    await request
    return rows


async def test_the_server_lets_one_parity_unit_in_many_finish_and_counts_it() -> None:
    async with serving(Parity(CODE, DEDICATED), compare_one_in=ONE_IN) as (frontend, engine):
        metrics = frontend.metrics
        for number in range(1, ONE_IN + 1):
            await answer_group(frontend, engine)
            cancelled = [what for _, what in engine.log].count("cancel")
            assert cancelled == min(number, ONE_IN - 1)
            (parity,) = engine.units
            engine.finish(parity)
        assert counted(metrics) == pytest.approx((2, 0, 0), abs=1e-5)


async def test_answered_queries_are_encoded_for_nobody_but_the_comparison() -> None:
    policy = Parity(CODE, Parity.Options(parity_delay=100.0))
    async with serving(policy, compare_every=1e-6) as (frontend, engine):
        for row in queries(3):
            request = await asked(frontend.infer(row[None]))
            (unit,) = engine.units
            engine.finish(unit)
            await request
        (parity,) = engine.units
        assert parity.role == "parity-0"
        engine.finish(parity)
        assert counted(frontend.metrics) == pytest.approx((2, 0, 0), abs=1e-5)


def test_who_made_what_is_compared_is_told_whether_it_agreed() -> None:
    told: list[tuple[str, bool]] = []
    comparison, _ = comparing(SEPARATE, told=told)
    comparison.group_over(1, [Made(A, "0"), Made(B, "1")], [Made(np.stack([A, A]), "2")])
    assert told == [("0", True), ("2", True), ("1", False), ("2", False)]

"""What serving says of its reconstructions, live, is counted where it can be known, and right."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parity_models.codes import Code, CodeSpec
from parity_models.scheduling import Parity, Run
from parity_models.scheduling.policies import Pool
from parity_models.serving.comparison import ONE_IN, Comparison, Made
from parity_models.serving.frontend import Frontend
from parity_models.serving.metrics import Metrics
from puppet_engine import CODE, asked, queries, serving

SEPARATE = Code(CodeSpec("stack", "separate", 2), (6,), (3,))
A, B = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]], np.float32)


def made(*outputs: NDArray[Any] | None) -> list[Made | None]:
    return [None if output is None else Made(output, "a") for output in outputs]


def to_nobody(instance: str, agreed: bool) -> None:
    pass


def counted(metrics: Metrics) -> tuple[float, float, float]:
    """How many were compared, how many disagreed, and the sum of their errors."""
    of = metrics.registry.get_sample_value
    names = ("reconstructions_compared_total", "reconstructions_disagreed_total")
    compared, disagreed = (of(f"parm_{name}") or 0.0 for name in names)
    return compared, disagreed, of("parm_reconstruction_error_sum") or 0.0


def test_what_is_here_is_compared_with_what_would_replace_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("parity_models.serving.comparison.ONE_IN", 1)
    metrics = Metrics()
    comparison = Comparison(SEPARATE, metrics, to_nobody)
    parity_output = np.stack([A + np.array([0, 3, 0], np.float32), B])
    comparison.group_over(1, made(A, None), made(parity_output))
    assert counted(metrics) == pytest.approx((1, 1, 3 / np.linalg.norm(A)))
    comparison.group_over(2, made(A, B), made(parity_output))
    assert counted(metrics)[:2] == (3, 2)
    comparison.group_over(3, made(A, B), made(None))
    comparison.group_over(4, made(None, None), made(parity_output))
    assert counted(metrics)[:2] == (3, 2)


def test_one_group_in_many_that_have_a_parity_output_is_compared() -> None:
    metrics = Metrics()
    comparison = Comparison(CODE, metrics, to_nobody)
    for group in range(3 * ONE_IN):
        comparison.group_over(2 * group, made(A, B), made(None))
        comparison.group_over(2 * group + 1, made(A, B), made(A + B))
    assert counted(metrics)[0] == 3 * 2


def test_subtraction_is_compared_only_where_the_others_are_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("parity_models.serving.comparison.ONE_IN", 1)
    metrics = Metrics()
    comparison = Comparison(CODE, metrics, to_nobody)
    comparison.group_over(1, made(A, None), made(A + B))
    assert counted(metrics)[0] == 0
    comparison.group_over(2, made(A, B), made(A + B))
    assert counted(metrics) == pytest.approx((2, 0, 0), abs=1e-6)


def test_one_cancelled_parity_unit_in_many_runs_on_and_one_at_a_time() -> None:
    metrics = Metrics()
    comparison = Comparison(CODE, metrics, to_nobody)

    def spared(first: int, count: int) -> list[int]:
        units = range(first, first + count)
        return [unit for unit in units if comparison.spares(unit, [unit])]

    assert spared(1, 2 * ONE_IN) == [ONE_IN]
    comparison.group_over(ONE_IN, made(A, B), made(None))
    comparison.finished(0, Run("b", 7, "parity-0", (7,)), A[None])
    assert counted(metrics)[0] == 0
    comparison.finished(0, Run("b", ONE_IN, "parity-0", (ONE_IN,)), (A + B)[None])
    assert counted(metrics)[0] == 2
    (unit,) = spared(1, ONE_IN)
    comparison.lost(unit)
    comparison.finished(0, Run("b", unit, "parity-0", (unit,)), A[None])
    assert counted(metrics)[0] == 2


async def answer_group(frontend: Frontend, engine: Any) -> NDArray[np.float32]:
    """A group whose predictions are all here before its parity output."""
    rows = queries(2)
    request = await asked(frontend.infer(rows))
    for unit in [unit for unit in engine.units if unit.work == "deployed"]:
        engine.finish(unit)
    await request
    return rows


async def test_the_server_lets_one_parity_unit_in_many_finish_and_counts_it() -> None:
    async with serving(Parity(CODE, Parity.Options(pool=Pool.DEDICATED))) as (frontend, engine):
        metrics = frontend._metrics
        for number in range(1, ONE_IN + 1):
            await answer_group(frontend, engine)
            cancelled = [what for _, what in engine.log].count("cancel")
            assert cancelled == min(number, ONE_IN - 1)
            (parity,) = engine.units
            engine.finish(parity)
        assert counted(metrics) == pytest.approx((2, 0, 0), abs=1e-5)


async def test_a_parity_unit_that_is_lost_is_not_waited_for() -> None:
    async with serving(Parity(CODE, Parity.Options(pool=Pool.DEDICATED))) as (frontend, engine):
        for number in range(1, 2 * ONE_IN + 1):
            await answer_group(frontend, engine)
            (parity,) = engine.units
            if number == ONE_IN:
                engine.lose(parity.instance, "another")
            else:
                engine.finish(parity)
        assert counted(frontend._metrics)[0] == 2


def test_who_made_what_is_compared_is_told_whether_it_agreed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("parity_models.serving.comparison.ONE_IN", 1)
    told: list[tuple[str, bool]] = []
    comparison = Comparison(SEPARATE, Metrics(), lambda *about: told.append(about))
    comparison.group_over(1, [Made(A, "0"), Made(B, "1")], [Made(np.stack([A, A]), "2")])
    assert told == [("0", True), ("2", True), ("1", False), ("2", False)]


def test_one_comparison_without_a_number_does_not_spoil_the_sum_of_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("parity_models.serving.comparison.ONE_IN", 1)
    metrics = Metrics()
    comparison = Comparison(CODE, metrics, to_nobody)
    comparison.group_over(1, made(A, np.full(3, 3e38, np.float32)), made(np.full(3, np.inf)))
    comparison.group_over(2, made(A, B), made(A + B))
    assert counted(metrics)[2] == pytest.approx(0, abs=1e-6)
